"""
A stream for the daemon's own log that never blocks the event loop.
"""

import io
import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from functools import partial
from threading import RLock
from typing import Any, TextIO

from twisted.logger import Logger

_log = Logger(namespace="kvserver.logstream.LogStream")

RETRY_INTERVAL = 1.0
"""
The time between two attempts to log how many messages were lost, in seconds.
"""

_PIECE = 256
"""
How many bytes are written at once to a blocking output, after poll(2) has said that there is room.
A pipe then takes 4096 bytes (PIPE_BUF, pipe(7)); a terminal guarantees nothing.
"""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY


def protectLog(options: Any, reactor: Any) -> None:
    """
    Let C{twist}, or C{twistd} in the foreground, log to a stream that never blocks. Both set up
    their log after they have called C{makeService}.

    @param options: The options of C{twist} or C{twistd}.

    @param reactor: Provides C{IReactorTime} and C{IReactorFromThreads}.
    """
    if "logFile" in options:
        options["logFile"] = _unblocked(options["logFile"], reactor)
    elif options.get("nodaemon"):
        sys.stdout = _unblocked(sys.stdout, reactor)


def _unblocked(stream: Any, reactor: Any) -> Any:
    """
    Return a stream that writes to the same output and never blocks. A stream to a regular file is
    returned as it is.
    """
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):
        # The stream is closed, or in memory.
        return stream
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)):
        return stream
    stream.flush()
    return LogStream(stream, descriptor, reactor)


class LogStream(io.TextIOBase):
    """
    A text stream to a pipe, terminal or socket that never blocks: a message that can't be written
    is lost, and counted. The count is logged as soon as there is room again.

    The output is shared with other processes, such as the shell, so it must not get O_NONBLOCK. A
    pipe or terminal is opened anew. If that is forbidden, because it belongs to another user, then
    poll(2) is asked before each write.

    @ivar lost: How many messages have been lost since the count was last logged.
    """

    def __init__(self, stream: TextIO, descriptor: int, reactor: Any) -> None:
        """
        @param stream: The stream that this one replaces.

        @param descriptor: The file descriptor of the output.

        @param reactor: Provides C{IReactorTime} and C{IReactorFromThreads}.
        """
        super().__init__()
        self.lost = 0
        self._stream = stream
        self._descriptor = descriptor
        self._reactor = reactor
        self._take = _writer(descriptor)
        # The rest of a message of which a part has been written.
        self._rest = b""
        self._isTelling = False
        self._isRetrying = False
        # Messages may come from any thread.
        self._lock = RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """
        See C{TextIOBase}.
        """
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """
        See C{IOBase}.
        """
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """
        See C{IOBase}.
        """
        return True

    def write(self, text: str) -> int:
        """
        Write a message now, or lose it.
        """
        with self._lock:
            self._tellLost()
            data = text.encode(self.encoding, "backslashreplace")
            if (self.lost and not self._isTelling) or not self._put(data):
                self.lost += 1
            if (self.lost or self._rest) and not self._isRetrying:
                self._isRetrying = True
                self._reactor.callFromThread(self._retryLater)
        return len(text)

    def _put(self, data: bytes) -> bool:
        """
        Write a message. If only a part can be written, keep the rest for later.

        @return: Whether anything was written.
        """
        self._rest = self._taken(self._rest)
        if self._rest:
            return False
        rest = self._taken(data)
        if data and len(rest) == len(data):
            return False
        self._rest = rest
        return True

    def _taken(self, data: bytes) -> bytes:
        """
        Write as much as there is room for.

        @return: The rest.
        """
        place = 0
        try:
            while place < len(data):
                place += self._take(data[place:])
        except OSError:
            # There is no room, or the reader has gone.
            return data[place:]
        return b""

    def _tellLost(self) -> None:
        """
        If there is room again, log how many messages have been lost. The log formats that message
        and passes it to L{write}.
        """
        if self._isTelling or not (self.lost and _hasRoom(self._descriptor)):
            return
        count, self.lost = self.lost, 0
        self._isTelling = True
        try:
            what = "1 message" if count == 1 else "{count} messages"
            _log.error(f"Lost {what} of this log, which could not be written", count=count)
        finally:
            self._isTelling = False
            if self.lost:
                # There was no room for that message. Keep the count.
                self.lost = count

    def _retryLater(self) -> None:
        self._reactor.callLater(RETRY_INTERVAL, self._retry)

    def _retry(self) -> None:
        with self._lock:
            self._tellLost()
            self._rest = self._taken(self._rest)
            self._isRetrying = bool(self.lost or self._rest)
            if self._isRetrying:
                self._retryLater()


def _hasRoom(descriptor: int) -> bool:
    """
    Return whether a write would succeed, at least in part.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return [event for _, event in poll.poll(0)] == [select.POLLOUT]


def _writer(descriptor: int) -> Callable[[bytes], int]:
    """
    Return a function that writes without blocking. It returns how many bytes were written, and
    raises C{OSError} if there is no room.
    """
    try:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            # As with systemd's journal. A socket can't be opened anew, and need not be.
            opened = socket.socket(fileno=os.dup(descriptor))
            return lambda data: opened.send(data, socket.MSG_DONTWAIT)
        return partial(os.write, os.open(f"/proc/self/fd/{descriptor}", _FLAGS))
    except OSError:
        return partial(_writePiece, descriptor)


def _writePiece(descriptor: int, data: bytes) -> int:
    if not _hasRoom(descriptor):
        raise BlockingIOError
    return os.write(descriptor, data[:_PIECE])
