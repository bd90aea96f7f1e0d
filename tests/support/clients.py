"""
What talks to the daemon: plain sockets, and the programs that people use.
"""

import contextlib
import hashlib
import os
import resource
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest
from typing_extensions import Self

from tests.support.daemon import PATIENCE, waitFor

REQUIRED = "KVSERVER_REQUIRE_PROGRAMS"
"""
The environment variable that turns a test that is skipped for want of something into a failed one.
"""

SMALL = 1 << 14
"""
So many bytes are taken by the kernel also when nobody reads their echo.
"""

LINES = b"".join(b"%d\n" % number for number in range(1, 200_001))
"""
What C{seq 1 200000} prints.
"""


def _hasIPv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HAS_IPV6 = _hasIPv6()

needsIPv6 = pytest.mark.skipif(not HAS_IPV6, reason="this host has no IPv6 on loopback")


def skip(reason: str) -> NoReturn:
    """
    Skip the test, or fail it where everything that tests need is required.
    """
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


def slow(*values: object) -> Any:
    """
    One more case of a test, which CI alone need try.
    """
    return pytest.param(*values, marks=pytest.mark.slow)


def program(*names: str) -> str:
    """
    Find a program that a test needs.

    @param names: What it may be called, the best first.

    @return: Its path. Without it the test is skipped, or fails where all programs are required.
    """
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    skip(f"needs the program {names[0]}, which is not installed")


class Stream(Protocol):
    """
    What the tests of the contract do with a connection: a socket can do it all.
    """

    def sendall(self, data: bytes, /) -> None:
        """
        Send all.
        """

    def recv(self, size: int, /) -> bytes:
        """
        Receive something, or nothing at the end.
        """

    def shutdown(self, how: int, /) -> None:
        """
        Say that there is no more to come.
        """

    def settimeout(self, seconds: float | None, /) -> None:
        """
        Wait no longer.
        """

    def close(self) -> None:
        """
        Close.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    """
    Connect, so that each C{send} leaves at once.
    """
    client = socket.create_connection((host, port), PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def receive(client: Stream, size: int) -> bytes:
    """
    Receive C{size} bytes, or fewer if the connection ends before.
    """
    data = bytearray()
    while len(data) < size:
        chunk = client.recv(min(size - len(data), 1 << 20))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def ask(client: Stream, line: bytes) -> bytes:
    """
    Send a line, and receive as many bytes.
    """
    client.sendall(line)
    return receive(client, len(line))


def silent(client: Stream, seconds: float = 0.2) -> bool:
    """
    Does nothing come in this time? As a promise that nothing comes at all it is weak, but it is
    never wrong about a daemon that keeps that promise.
    """
    client.settimeout(seconds)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(PATIENCE)
    return False


def exchange(client: Stream, chunks: Iterable[bytes]) -> bytes:
    """
    Send all, then FIN, while receiving until the other side closes.
    """
    chunks = list(chunks)
    if sum(map(len, chunks)) <= SMALL:
        client.sendall(b"".join(chunks))
        client.shutdown(socket.SHUT_WR)
        return receive(client, 1 << 40)
    sender = Sender(client, chunks)
    data = receive(client, 1 << 40)
    sender.join()
    return data


def digest(chunks: Iterable[bytes]) -> str:
    """
    What tells two long streams of bytes apart.
    """
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def received(client: Stream) -> Iterator[bytes]:
    """
    What comes, until the other side closes.
    """
    while chunk := client.recv(1 << 17):
        yield chunk


def comesBack(client: Stream, chunks: Iterable[bytes]) -> bool:
    """
    Is what comes, until the other side closes, exactly this? None of it is kept.
    """
    expected = iter(chunks)
    chunk, place = b"", 0
    for data in received(client):
        begin = 0
        while begin < len(data):
            if place == len(chunk):
                chunk, place = next(expected, b""), 0
                if not chunk:
                    return False
            size = min(len(data) - begin, len(chunk) - place)
            if data[begin : begin + size] != chunk[place : place + size]:
                return False
            begin += size
            place += size
    return place == len(chunk) and next(expected, None) is None


class Sender(threading.Thread):
    """
    Sends all, then FIN, while the test does something else.

    @ivar sent: How many bytes the kernel has taken.
    """

    def __init__(
        self, client: Stream, chunks: Iterable[bytes], end: Callable[[], None] | None = None
    ) -> None:
        """
        @param end: What to do at the end, if it is not the client's own way to say it.
        """
        super().__init__(daemon=True)
        self._end = end or partial(client.shutdown, socket.SHUT_WR)
        self.sent = 0
        self._client = client
        self._chunks = chunks
        self.start()

    def isStuck(self) -> bool:
        """
        Has the kernel taken something, and then nothing more for a while?
        """
        before = self.sent
        time.sleep(0.3)
        return 0 < before == self.sent

    def run(self) -> None:
        """
        Send.
        """
        # If the daemon, or the test, closes before all is sent, the test sees that in what comes
        # back.
        with contextlib.suppress(OSError):
            for chunk in self._chunks:
                for begin in range(0, len(chunk), 1 << 16):
                    piece = chunk[begin : begin + (1 << 16)]
                    self._client.sendall(piece)
                    self.sent += len(piece)
            self._end()


def stick(client: socket.socket) -> None:
    """
    Send until nothing more is taken, and read nothing.
    """
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(LINES)
    client.settimeout(PATIENCE)


def reset(client: Stream) -> None:
    """
    Close so that the other side sees a reset, and what it has not read is dropped: linger for 0
    seconds.
    """
    raw: Any = getattr(client, "raw", client)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextlib.contextmanager
def manyDescriptors(count: int) -> Iterator[None]:
    """
    Let this process, and what it starts, have so many file descriptors; else the test is skipped.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        skip(f"needs {count} file descriptors, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _feed(process: "subprocess.Popen[bytes]", stopped: threading.Event) -> None:
    """
    Be the C{seq 1 200000} before it, which is in the middle of a line when the daemon is stopped.
    """
    middle = LINES.index(b"\n100000\n") + 4
    assert process.stdin
    # If it ends before, that is seen in what has come back.
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(LINES[:middle])
        stopped.wait(PATIENCE)
        process.stdin.write(LINES[middle:])


def stopInTheMiddle(folder: Path, port: int, stop: Callable[[], object]) -> None:
    """
    Stop the daemon in the middle of C{seq 1 200000 | nc -N} by 20 clients, and see that they lose
    no line.

    @param folder: Takes what comes back.

    @param stop: Stops the daemon.
    """
    command = [program("nc.openbsd", "nc"), "-N", "127.0.0.1", str(port)]
    outputs = [folder / f"output{number}" for number in range(20)]
    with contextlib.ExitStack() as stack:
        clients = []
        for path in outputs:
            file = stack.enter_context(path.open("wb"))
            client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, bufsize=0)
            stack.enter_context(client)
            stack.callback(client.kill)
            clients.append(client)
        stopped = threading.Event()
        stack.callback(stopped.set)
        feeding = [threading.Thread(target=_feed, args=[client, stopped]) for client in clients]
        for thread in feeding:
            thread.start()
        waitFor(lambda: all(path.stat().st_size for path in outputs), "all have begun")
        stop()
        stopped.set()
        for client, thread, path in zip(clients, feeding, outputs, strict=True):
            thread.join(PATIENCE)
            assert client.wait(PATIENCE) == 0
            assert path.read_bytes() == LINES


def get(port: int, path: str) -> tuple[int, str]:
    """
    Ask the operations site.

    @return: The status and the body.
    """
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
