"""
No file, pipe or terminal that the daemon writes to or reads from stops it.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, slow
from tests.support.daemon import (
    COMMAND,
    PATIENCE,
    TWIST,
    TWISTD,
    Daemon,
    environment,
    quietPort,
    waitFor,
)
from tests.support.wires import Authority, TLSClient

LOST = b"of this log, which could not be written"


class Unread:
    """
    Standard output and standard error that nobody reads.

    @ivar theirs: The end of the daemon.
    """

    def __init__(self, kind: str) -> None:
        if kind == "pipe":
            self._ours, self.theirs = os.pipe()
            fcntl.fcntl(self.theirs, fcntl.F_SETPIPE_SZ, 64 * 1024)
        elif kind == "terminal":
            self._ours, self.theirs = os.openpty()
            tty.setraw(self.theirs)
        else:
            self._ours, self.theirs = (end.detach() for end in socket.socketpair())
        os.set_blocking(self._ours, False)
        self.read = b""

    def drain(self) -> bytes:
        """
        Read what there is.

        @return: All that has been read so far.
        """
        with contextlib.suppress(OSError):
            while data := os.read(self._ours, 1 << 16):
                self.read += data
        return self.read

    def close(self) -> None:
        """
        Close it.
        """
        os.close(self._ours)
        os.close(self.theirs)


@pytest.fixture(params=["pipe", "terminal", "socket"])
def unread(request: pytest.FixtureRequest) -> Iterator[Unread]:
    """
    Each kind of output that may block.
    """
    unread = Unread(request.param)
    yield unread
    unread.close()


@contextlib.contextmanager
def started(folder: Path, unread: Unread, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """
    A daemon that writes there.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=unread.theirs,
        stderr=unread.theirs,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def answered(port: int, count: int = 1) -> None:
    """
    So many clients come, one after the other, and each is answered.
    """
    for _ in range(count):
        with connect(port) as client:
            assert ask(client, b"hello\n") == b"hello\n"


def isAnswered(port: int) -> bool:
    """
    Is one?
    """
    with contextlib.suppress(ConnectionRefusedError):
        answered(port)
        return True
    return False


@pytest.mark.parametrize(
    "command",
    [
        (TWISTD, "-n", "--pidfile=", "kvserver"),
        slow((TWIST, "--log-format=text", "kvserver")),
        slow(COMMAND),
    ],
    ids=["twistd", "twist", "kvserver"],
)
def test_fullOutput(tmp_path: Path, unread: Unread, command: tuple[str, ...]) -> None:
    """
    With an access log that goes to an output that nobody reads each client is answered, what could
    not be written is counted, and TERM is obeyed. Whoever shares that output finds it as it was.
    """
    port = quietPort()
    options = (f"--port={port}", "--interface=127.0.0.1", "--access-log=-")
    with started(tmp_path, unread, *command, *options) as process:
        waitFor(lambda: isAnswered(port), "it listens")
        # A record is 300 bytes long, and each of these outputs takes less than 500 of them.
        answered(port, 500)
        waitFor(lambda: LOST in unread.drain(), "how many were lost")
        answered(port)
        waitFor(lambda: unread.drain().count(b'"bytes_out": 6') > 3, "a record")
        answered(port, 500)
        assert os.get_blocking(unread.theirs)
        process.send_signal(signal.SIGHUP)
        answered(port, 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM
    lines = unread.drain().decode().splitlines()
    assert not any("Traceback" in line for line in lines)


def test_fifoAsCertificate(tmp_path: Path, authority: Authority) -> None:
    """
    A FIFO in the place of a certificate stops nobody at HUP: the old one stays.
    """
    certificate, key = authority.issue("localhost")
    own = tmp_path / "server.pem"
    own.write_bytes(certificate.read_bytes())
    options = ("--listen", "tcp:0", "--listen", "tls:tcp:0")
    files = (f"--tls-certificate={own}", f"--tls-private-key={key}")
    with Daemon(tmp_path, *options, *files) as daemon:
        own.unlink()
        os.mkfifo(own)
        daemon.process.send_signal(signal.SIGHUP)
        line = f"The certificates stay as they were: --tls-certificate: '{own}' is no regular file"
        daemon.waitForLog(line)
        answered(daemon.port, 10)
        raw = connect(int(daemon.listening[1]))
        with TLSClient(raw, authority.client()) as client:
            assert ask(client, b"hello\n") == b"hello\n"


@pytest.mark.parametrize("which", [0, 1])
def test_fifoAtTheStart(tmp_path: Path, authority: Authority, which: int) -> None:
    """
    At the start it is refused in one line.
    """
    files = list(map(str, authority.issue("localhost")))
    files[which] = str(tmp_path / "fifo")
    os.mkfifo(files[which])
    options = (f"--tls-certificate={files[0]}", f"--tls-private-key={files[1]}")
    done = subprocess.run(
        [TWISTD, "-n", "--pidfile=", "kvserver", "--listen=tls:tcp:0", *options],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    option = ("--tls-certificate", "--tls-private-key")[which]
    assert done.returncode == 1
    assert f"kvserver: {option}: '{files[which]}' is no regular file" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_fifoAsAccessLog(tmp_path: Path) -> None:
    """
    A FIFO as access log, with a reader that reads nothing, or with none, stops nobody.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Daemon(tmp_path, "--port=0", f"--access-log={fifo}") as daemon:
        answered(daemon.port, 10)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            answered(daemon.port, 400)
            daemon.waitForLog("can't be written: Resource temporarily unavailable")
            daemon.process.send_signal(signal.SIGHUP)
            answered(daemon.port, 10)
        finally:
            os.close(reader)
        assert daemon.logs("Traceback") == 0
