"""
One record per connection, as a line of JSON (RFC 8259).
"""

import errno
import json
import os
import stat
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger, LogLevel

from kvserver.connections.addresses import formatAddress
from kvserver.connections.record import ConnectionRecord
from kvserver.connections.throttle import REPEATED, LogThrottle
from kvserver.operations.logfile import newWriter, openLog
from kvserver.supervision.supervisor import CannotStart

_log = Logger(namespace="kvserver.accesslog")


class LoggedRecord(dict[str, Any]):
    """
    The record of a connection that has ended. As text it is JSON. A log that is JSON itself takes
    it as the object that it is.
    """

    def __str__(self) -> str:
        return json.dumps(self)


def formatTime(now: float) -> str:
    """
    Format a time as logs have it: RFC 3339, in UTC, with milliseconds.

    @param now: The time, in seconds since the epoch.
    """
    return datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds")


def describe(record: ConnectionRecord, work: int, sent: int, seconds: float) -> dict[str, Any]:
    """
    Describe a connection that is open, or has ended.

    @param work: What its protocol has done, by its own count.

    @param sent: How many bytes have gone to the client.

    @param seconds: How long it has lasted.
    """
    return {
        "id": record.id,
        "listener": record.listener,
        **({} if record.worker is None else {"worker": record.worker}),
        "peer": formatAddress(record.peer),
        "client": record.client and formatAddress(record.client),
        "tls": record.tls,
        "subject": record.subject,
        **({} if record.unit is None else {record.unit: work}),
        "bytes_in": record.received,
        "bytes_out": sent,
        "seconds": seconds,
    }


def loggedRecord(record: ConnectionRecord, now: float) -> LoggedRecord:
    """
    Build what is written of a connection that has ended.

    @param now: The time, in seconds since the epoch.
    """
    return LoggedRecord(
        {
            "time": formatTime(now),
            **describe(record, record.work, record.delivered, round(record.duration or 0.0, 6)),
            "reason": record.reason and record.reason.value,
        }
    )


class AccessLogStream(Service):
    """
    An access log that goes to the daemon's log.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        """
        @param time: Returns the time, in seconds since the epoch.
        """
        self._time = time

    def report(self, record: ConnectionRecord) -> None:
        """
        Write the record of a connection that has ended.
        """
        _log.info("{record}", record=loggedRecord(record, self._time()))

    def reopen(self) -> None:
        """
        Do nothing: the daemon's log is not ours to reopen.
        """


_WRONG_AS_WRITTEN = {
    errno.EINVAL,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
}
"""
Errors that mean that the path is wrong. The cause of any other error may go away while the daemon
runs: permissions, a full or read-only disk, a FIFO without a reader, somebody's symbolic link.
"""


class AccessLogFile(Service):
    """
    An access log that goes to a file. It never waits for the file: if a record can't be written, it
    is lost. That is logged at most once a minute for each reason, with a count.
    """

    def __init__(self, path: str, time: Callable[[], float], reactor: Any) -> None:
        """
        @param path: The path of the file.

        @param time: Returns the time, in seconds since the epoch.

        @param reactor: Provides C{IReactorTime}.
        """
        # The working directory may change before the file is opened.
        self._path = os.path.abspath(path) if path else path
        self._time = time
        self._throttle = LogThrottle(reactor)
        self._file = -1
        self._put: Callable[[bytes], int]
        # Whether the file at the path must still be opened.
        self._isDue = False
        self._endsInPartialLine = False

    def privilegedStartService(self) -> None:
        """
        See whether the path is wrong, before anything listens. Nothing is opened.

        @raise CannotStart: It is. The message says why.
        """
        super().privilegedStartService()
        if os.path.isdir(self._path):
            raise self._cannotStart(os.strerror(errno.EISDIR))
        if not os.path.isdir(os.path.dirname(self._path)):
            raise self._cannotStart(os.strerror(errno.ENOENT))

    def _cannotStart(self, reason: object) -> CannotStart:
        line = f"kvserver: --access-log: {self._path!r} can't be written: {reason}"
        return CannotStart(line)

    def startService(self) -> None:
        """
        Open the file, as the user that C{twistd --uid} has switched to. If that fails, but may
        succeed later, try again at each record.

        @raise CannotStart: The path is wrong. The message says why.
        """
        try:
            self._open()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            if not isinstance(error, OSError) or error.errno in _WRONG_AS_WRITTEN:
                raise self._cannotStart(reason) from None
            self._isDue = True
            _log.warn(
                "--access-log: {path} can't be opened: {reason}. Trying again at each record",
                path=self._path,
                reason=reason,
            )
        super().startService()

    def stopService(self) -> None:
        """
        Close the file.
        """
        super().stopService()
        self._isDue = False
        self._close()

    def _close(self) -> None:
        opened, self._file = self._file, -1
        if opened >= 0:
            os.close(opened)

    def _open(self) -> None:
        """
        Open the file at the path, and close the old one.

        @raise OSError: The file can't be opened. The old one stays open.
        """
        opened = openLog(self._path)
        self._close()
        self._file = opened
        self._put = newWriter(opened)
        self._isDue = False
        self._endsInPartialLine = _endsInPartialLine(opened)

    def reopen(self) -> None:
        """
        Open the file at the path again, since a log rotation has renamed the old one. Until that
        succeeds, the old file stays in use.
        """
        self._isDue = True
        try:
            self._openAgain()
        except OSError as error:
            _log.emit(
                LogLevel.error if error.errno in _WRONG_AS_WRITTEN else LogLevel.warn,
                "--access-log: {path} can't be opened again: {reason}. Trying again at each record",
                path=self._path,
                reason=error.strerror,
            )

    def _openAgain(self) -> None:
        self._open()
        _log.info("--access-log: {path} has been opened again", path=self._path)

    def report(self, record: ConnectionRecord) -> None:
        """
        Write the record of a connection that has ended.
        """
        try:
            self._write(f"{loggedRecord(record, self._time())}\n".encode())
        except OSError as error:
            reason = str(error.strerror)
            self._throttle(reason, partial(self._complain, reason))

    def _complain(self, reason: str, count: int) -> None:
        text = "--access-log: {path} can't be written: {reason}"
        _log.error(text + REPEATED[count > 1], path=self._path, reason=reason, count=count)

    def _write(self, data: bytes) -> None:
        """
        Append to the file.

        @raise OSError: The data can't be written, or only a part of it.
        """
        if self._isDue or self._isRemoved():
            try:
                self._openAgain()
            except OSError:
                if self._isRemoved():
                    raise
        if self._endsInPartialLine:
            # End the partial line, so that this record has a line of its own.
            data = b"\n" + data
        # If the kernel takes only a part, it says why when it gets the rest.
        place = 0
        try:
            while place < len(data):
                place += self._put(data[place:])
        finally:
            if place:
                self._endsInPartialLine = data[place - 1 : place] != b"\n"

    def _isRemoved(self) -> bool:
        """
        Return whether no file is open, or one that has been removed: nobody would read it.
        """
        return self._file < 0 or not os.fstat(self._file).st_nlink


def _endsInPartialLine(opened: int) -> bool:
    """
    Return whether the file ends in the middle of a line, because the disk was full.
    """
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return False
        # Open it anew: it was opened for writing only. Reading it may be forbidden.
        with open(f"/proc/self/fd/{opened}", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read() not in (b"", b"\n")
    except OSError:
        return False
