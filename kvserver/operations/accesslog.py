"""
One record per connection, as a line of JSON (RFC 8259).
"""

import errno
import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from kvserver.connections.addresses import formatAddress
from kvserver.connections.record import ConnectionRecord
from kvserver.connections.throttle import REPEATED, LogThrottle
from kvserver.supervision.supervisor import CannotStart

_log = Logger(namespace="kvserver.accesslog")


def formatRecord(record: ConnectionRecord, now: float) -> str:
    """
    Format the record of a connection that has ended.

    @param now: The time, in seconds since the epoch.
    """
    return json.dumps(
        {
            "time": datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds"),
            "id": record.id,
            "listener": record.listener,
            **({} if record.worker is None else {"worker": record.worker}),
            "peer": formatAddress(record.peer),
            "client": record.client and formatAddress(record.client),
            "tls": record.tls,
            "subject": record.subject,
            **({} if record.unit is None else {record.unit: record.work}),
            "bytes_in": record.received,
            "bytes_out": record.sent,
            "seconds": round(record.duration or 0.0, 6),
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
        _log.info("{record}", record=formatRecord(record, self._time()))

    def reopen(self) -> None:
        """
        Do nothing: the daemon's log is not ours to reopen.
        """


class AccessLogFile(Service):
    """
    An access log that goes to a file. It never waits for the file: if a record can't be written, it
    is lost. That is logged at most once a minute, with a count.
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

    def startService(self) -> None:
        """
        Open the file, as the user that C{twistd --uid} has switched to.

        @raise CannotStart: The file can't be written. The message says why.
        """
        try:
            self._file = self._open()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CannotStart(
                f"kvserver: --access-log: {self._path!r} can't be written: {reason}"
            ) from None
        super().startService()

    def stopService(self) -> None:
        """
        Close the file.
        """
        super().stopService()
        opened, self._file = self._file, -1
        if opened >= 0:
            os.close(opened)

    def _open(self) -> int:
        # Without O_NONBLOCK, the daemon would hang on a FIFO that nobody reads.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        opened = os.open(self._path, flags, 0o640)
        self._endsInPartialLine = self._hasPartialLine()
        return opened

    def _hasPartialLine(self) -> bool:
        """
        Return whether the file ends in the middle of a line, because the disk was full.
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
        Open the file at the path again, since a log rotation has renamed the old one. If that
        fails, the old file stays in use.
        """
        try:
            self._openAgain()
        except OSError as error:
            _log.error(
                "--access-log: {path} can't be opened again: {reason}",
                path=self._path,
                reason=error.strerror,
            )
        else:
            _log.info("--access-log: {path} has been opened again", path=self._path)

    def _openAgain(self) -> None:
        opened = self._open()
        os.close(self._file)
        self._file = opened

    def report(self, record: ConnectionRecord) -> None:
        """
        Write the record of a connection that has ended.
        """
        try:
            self._write(formatRecord(record, self._time()).encode() + b"\n")
        except OSError as error:
            self._throttle("", partial(self._complain, str(error.strerror)))

    def _complain(self, reason: str, count: int) -> None:
        text = "--access-log: {path} can't be written: {reason}"
        _log.error(text + REPEATED[count > 1], path=self._path, reason=reason, count=count)

    def _write(self, data: bytes) -> None:
        """
        Append to the file.

        @raise OSError: The data can't be written, or only a part of it.
        """
        if not os.fstat(self._file).st_nlink:
            # The file has been removed: nobody will read what is written to it.
            self._openAgain()
        if self._endsInPartialLine:
            # End the partial line, so that this record has a line of its own.
            data = b"\n" + data
        self._endsInPartialLine = os.write(self._file, data) < len(data)
        if self._endsInPartialLine:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
