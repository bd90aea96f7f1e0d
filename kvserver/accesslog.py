"""
One record a connection, as a line of JSON (RFC 8259).
"""

import errno
import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

from twisted.logger import Logger

from kvserver.connections import REPEATED, OncePerMinute
from kvserver.record import Record, shown


def line(record: Record, now: float) -> str:
    """
    What is said of a connection that has ended.

    @param now: The time, in seconds since the epoch.
    """
    return json.dumps(
        {
            "time": datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds"),
            "id": record.number,
            "listener": record.listener,
            "peer": shown(record.peer),
            "client": record.client and shown(record.client),
            "tls": record.tls,
            "subject": record.subject,
            **({} if record.unit is None else {record.unit: record.work}),
            "bytes_in": record.received,
            "bytes_out": record.sent,
            "seconds": round(record.seconds or 0.0, 6),
            "reason": record.ending and record.ending.value,
        }
    )


class ToLog:
    """
    Writes to the log of the daemon.
    """

    _log = Logger()

    def __init__(self, time: Callable[[], float]) -> None:
        """
        @param time: The time, in seconds since the epoch.
        """
        self._time = time

    def report(self, record: Record) -> None:
        """
        A connection has ended.
        """
        self._log.info("{record}", record=line(record, self._time()))

    def reopen(self) -> None:
        """
        The log is not ours to open.
        """


class ToFile:
    """
    Writes to a file, and never waits for it: a record that can't be written is lost, and that is
    logged, once a minute as long as it goes on.
    """

    _log = Logger()

    def __init__(
        self, path: str, time: Callable[[], float], reactor: Any, owner: tuple[int, int] = (-1, -1)
    ) -> None:
        """
        @param time: The time, in seconds since the epoch.

        @param reactor: Provides C{IReactorTime}.

        @param owner: The numbers of the user and group that the file is to have, so that they can
            open it again; -1: as it is.

        @raise OSError: The file can't be written to.
        """
        # Later another folder may be the working directory.
        self._path = os.path.abspath(path)
        self._time = time
        self._oncePerMinute = OncePerMinute(reactor)
        self._file = self._open()
        if owner != (-1, -1):
            os.fchown(self._file, *owner)

    def _open(self) -> int:
        # Not to wait matters with a FIFO that nobody reads.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        opened = os.open(self._path, flags, 0o640)
        self._torn = self._endsTorn()
        return opened

    def _endsTorn(self) -> bool:
        """
        Does the file end in the middle of a line, for which there was no room?
        """
        try:
            if not os.path.isfile(self._path):
                return False
            with open(self._path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                return file.read() not in (b"", b"\n")
        except OSError:
            return False

    def reopen(self) -> None:
        """
        Write to the file that has the path now: a rotation has given the old one another. If it
        can't be opened the old one is kept.
        """
        try:
            self._openAgain()
        except OSError as error:
            self._log.error(
                "--access-log: {path} can't be opened again: {reason}",
                path=self._path,
                reason=error.strerror,
            )
        else:
            self._log.info("--access-log: {path} has been opened again", path=self._path)

    def _openAgain(self) -> None:
        opened = self._open()
        os.close(self._file)
        self._file = opened

    def report(self, record: Record) -> None:
        """
        A connection has ended.
        """
        try:
            self._write(line(record, self._time()).encode() + b"\n")
        except OSError as error:
            self._oncePerMinute("", partial(self._complain, str(error.strerror)))

    def _complain(self, reason: str, count: int) -> None:
        text = "--access-log: {path} can't be written: {reason}"
        self._log.error(text + REPEATED[count > 1], path=self._path, reason=reason, count=count)

    def _write(self, data: bytes) -> None:
        """
        @raise OSError: It can't be written.
        """
        if not os.fstat(self._file).st_nlink:
            # Somebody has removed it; what is written there nobody will read.
            self._openAgain()
        if self._torn:
            # The line that did not find room ends here.
            data = b"\n" + data
        self._torn = os.write(self._file, data) < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
