"""
The daemon's own log: a pipe, terminal or socket that nobody reads never blocks the event loop.
"""

import contextlib
import fcntl
import io
import os
import socket
import sys
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher, textFileLogObserver

from kvserver.operations.logstream import RETRY_INTERVAL, LogStream, protectLog
from tests.support.memory import timesOpen

SIZE = 4096
"""
What the smallest pipe takes.
"""

TEXT = "x" * 99 + "\n"
"""
A message.
"""


class Reactor(MemoryReactorClock):
    """
    A reactor that is called from its own thread alone.
    """

    def callFromThread(self, call: Callable[[], None]) -> None:
        """
        See C{IReactorFromThreads}.
        """
        call()


class Output:
    """
    Somewhere to write to, and the stream that does.

    @ivar writer: The file descriptor that is written to.

    @ivar reader: The other end.

    @ivar stream: The stream.
    """

    def __init__(self, kind: str) -> None:
        self.clock = Reactor()
        if kind == "pipe":
            self.reader, self.writer = os.pipe()
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, SIZE)
        elif kind == "terminal":
            self.reader, self.writer = os.openpty()
            tty.setraw(self.writer)
        else:
            ends = socket.socketpair()
            ends[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SIZE)
            self.reader, self.writer = (end.detach() for end in ends)
        os.set_blocking(self.reader, False)
        self._file = open(self.writer, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        options: dict[str, Any] = {"logFile": self._file}
        protectLog(options, self.clock)
        self.stream: LogStream = options["logFile"]
        self.observer = textFileLogObserver(self.stream)
        globalLogPublisher.addObserver(self.observer)

    def fill(self) -> int:
        """
        Write until nothing more is taken.

        @return: How many messages were taken.
        """
        for number in range(100_000):
            self.stream.write(TEXT)
            if self.stream.lost:
                return number
        raise AssertionError("it takes more and more")

    def read(self) -> str:
        """
        What has been written.
        """
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.reader, 1 << 20):
                data += more
        return data.decode()

    def close(self) -> None:
        """
        Forget it.
        """
        globalLogPublisher.removeObserver(self.observer)
        for descriptor in self.reader, self.writer:
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture(params=["pipe", "terminal", "socket"])
def output(request: pytest.FixtureRequest) -> Iterator[Output]:
    """
    Each kind of output that may block.
    """
    output = Output(request.param)
    yield output
    output.close()


@pytest.fixture
def pipe() -> Iterator[Output]:
    """
    A pipe.
    """
    output = Output("pipe")
    yield output
    output.close()


def test_written(output: Output) -> None:
    """
    What there is room for is written at once, and others that share the output are left alone: for
    them it still blocks.
    """
    output.stream.write("")
    output.stream.write("hello, wörld\n")
    output.stream.flush()
    assert output.stream.lost == 0
    assert output.read() == "hello, wörld\n"
    assert os.get_blocking(output.writer)
    assert output.clock.getDelayedCalls() == []


def test_full(output: Output) -> None:
    """
    What there is no room for is lost; no message is torn; and the number of those that were lost is
    logged as soon as there is room, also if there is nothing else to log.
    """
    taken = output.fill()
    for _ in range(9):
        output.stream.write(TEXT)
    output.clock.advance(RETRY_INTERVAL)
    read = output.read()
    output.clock.advance(RETRY_INTERVAL)
    read += output.read()
    *messages, told = read.splitlines(keepends=True)
    assert messages == [TEXT] * taken
    assert "#error] Lost 10 messages of this log, which could not be written" in told
    assert output.stream.lost == 0
    output.clock.advance(RETRY_INTERVAL)
    assert output.clock.getDelayedCalls() == []
    output.stream.write(TEXT)
    assert output.read() == TEXT


def test_toldBefore(pipe: Output) -> None:
    """
    If there is something to log before that, the number comes first.
    """
    pipe.fill()
    pipe.read()
    pipe.stream.write(TEXT)
    told, text = pipe.read().splitlines(keepends=True)[-2:]
    assert "Lost 1 message of this log, which" in told
    assert text == TEXT


def test_noRoomToTell(pipe: Output) -> None:
    """
    If there is no room for the number either, it is kept.
    """
    pipe.fill()
    pipe.stream.write(TEXT)
    # There is room for a byte, but only for whole messages up to the size of a page (pipe(7)).
    assert os.read(pipe.reader, 1)
    pipe.clock.advance(RETRY_INTERVAL)
    assert pipe.stream.lost == 2
    pipe.read()
    pipe.clock.advance(RETRY_INTERVAL)
    assert " 2 messages" in pipe.read()


def test_long(pipe: Output) -> None:
    """
    A message that is longer than there is room for is written in parts, and nothing comes between
    them.
    """
    text = "".join(f"{number}\n" for number in range(5_000))
    pipe.stream.write(text)
    read = pipe.read()
    for _ in range(100):
        pipe.clock.advance(RETRY_INTERVAL)
        read += pipe.read()
    assert read == text
    pipe.stream.write(text)
    pipe.stream.write(TEXT)
    read = ""
    for _ in range(100):
        read += pipe.read()
        pipe.clock.advance(RETRY_INTERVAL)
    assert read.startswith(text)
    assert " 1 message " in read[len(text) :]


def test_nobodyReads(pipe: Output) -> None:
    """
    If the reader has gone, messages are lost, and nothing fails.
    """
    os.close(pipe.reader)
    for _ in range(3):
        pipe.stream.write(TEXT)
    assert pipe.stream.lost == 3


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_ofAnother(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A pipe or terminal that we may not open anew, as that of who has called sudo, does not block
    either.
    """

    def opens(path: str, flags: int) -> int:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opens)
        output = Output(kind)
    try:
        output.stream.write("hello\n")
        assert output.read() == "hello\n"
        assert output.fill() >= 1
        output.stream.write(TEXT)
        output.read()
        output.clock.advance(RETRY_INTERVAL)
        assert " 2 messages " in output.read()
    finally:
        output.close()


def test_unencodable(pipe: Output) -> None:
    """
    What the encoding can't say does not fail.
    """
    pipe.stream.write("\udcff\n")
    assert pipe.read() == "\\udcff\n"


def test_leftAlone(tmp_path: Path) -> None:
    """
    What can't block stays as it is: a file that the shell has opened, what is in memory, what is
    closed.
    """
    closed = (tmp_path / "closed").open("w")
    closed.close()
    with (tmp_path / "log").open("w") as file, open(os.devnull, "w") as null:
        for stream in file, null, closed, io.StringIO(), None:
            options = {"logFile": stream}
            protectLog(options, MemoryReactorClock())
            assert options["logFile"] is stream


@pytest.mark.parametrize("foreground", [True, False])
def test_twistd(foreground: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    C{twistd} in the foreground logs to C{sys.stdout}; in the background it must not hold on to
    that: who reads it waits for its end.
    """
    reader, writer = os.pipe()
    with open(reader), open(writer, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        before = timesOpen(Path(f"/proc/self/fd/{writer}"))
        protectLog({"nodaemon": foreground}, MemoryReactorClock())
        assert isinstance(sys.stdout, LogStream) is foreground
        assert timesOpen(Path(f"/proc/self/fd/{writer}")) == before + foreground
        monkeypatch.undo()
