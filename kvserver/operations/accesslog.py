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

from twisted.application.service import Service
from twisted.logger import Logger

from kvserver.connections.addresses import formatAddress
from kvserver.connections.record import ConnectionRecord
from kvserver.connections.throttle import REPEATED, LogThrottle
from kvserver.supervision.supervisor import CannotStart

_log = Logger(namespace="kvserver.accesslog")


def formatRecord(record: ConnectionRecord, now: float) -> str:
    """
    What is said of a connection that has ended.

    @param now: The time, in seconds since the epoch.
    """
    return json.dumps(
        {
            "time": datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds"),
            "id": record.id,
            "listener": record.listener,
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
    Writes to the log of the daemon.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        """
        @param time: The time, in seconds since the epoch.
        """
        self._time = time

    def report(self, record: ConnectionRecord) -> None:
        """
        A connection has ended.
        """
        _log.info("{record}", record=formatRecord(record, self._time()))

    def reopen(self) -> None:
        """
        The log is not ours to open.
        """


class AccessLogFile(Service):
    """
    Writes to a file, and never waits for it: a record that can't be written is lost, and that is
    logged, at most once a minute, with a count.
    """

    def __init__(self, path: str, time: Callable[[], float], reactor: Any) -> None:
        """
        @param time: The time, in seconds since the epoch.

        @param reactor: Provides C{IReactorTime}.
        """
        # Later another folder may be the working directory.
        self._path = os.path.abspath(path) if path else path
        self._time = time
        self._throttle = LogThrottle(reactor)
        self._file = -1

    def startService(self) -> None:
        """
        Open the file, as the user that C{twistd --uid} has switched to.

        @raise CannotStart: The file can't be written. Says why.
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
        # Without O_NONBLOCK, a FIFO that nobody reads would hang the daemon.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        opened = os.open(self._path, flags, 0o640)
        self._endsInPartialLine = self._hasPartialLine()
        return opened

    def _hasPartialLine(self) -> bool:
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
        A connection has ended.
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
        @raise OSError: It can't be written.
        """
        if not os.fstat(self._file).st_nlink:
            # Somebody has removed it; what is written there nobody will read.
            self._openAgain()
        if self._endsInPartialLine:
            # The line that did not find room ends here.
            data = b"\n" + data
        self._endsInPartialLine = os.write(self._file, data) < len(data)
        if self._endsInPartialLine:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
