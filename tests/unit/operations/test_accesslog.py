"""
The records of connections, and where they are written.
"""

import errno
import json
import os
from pathlib import Path

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from kvserver.connections.addresses import formatAddress
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.throttle import REPEAT_INTERVAL
from kvserver.operations.accesslog import AccessLogFile, AccessLogStream, loggedRecord
from kvserver.supervision.supervisor import CannotStart
from tests.support.memory import PLENTY, MemoryServer, timesOpen

OPEN = "kvserver.operations.accesslog.openLog"


def record(number: int = 1) -> ConnectionRecord:
    """
    A connection that has ended.
    """
    record = ConnectionRecord("tcp:0", IPv4Address("TCP", "192.0.2.1", 1024))
    record.id = number
    record.unit = "lines"
    record.reason = CloseReason.RESET
    record.duration = 1.5
    return record


def now() -> float:
    """
    What time it is: a second past the epoch.
    """
    return 1.0


def test_shown() -> None:
    """
    Addresses are written as people write them.
    """
    assert formatAddress(IPv4Address("TCP", "192.0.2.1", 1024)) == "192.0.2.1:1024"
    assert formatAddress(IPv6Address("TCP", "2001:db8::1", 1024)) == "[2001:db8::1]:1024"
    assert formatAddress(UNIXAddress(b"/x")) == "unix"


def test_line() -> None:
    """
    A record has all that is known, in a line of JSON.
    """
    expected = {
        "time": "1970-01-01T00:00:01.000+00:00",
        "id": 1,
        "listener": "tcp:0",
        "peer": "192.0.2.1:1024",
        "client": None,
        "tls": None,
        "subject": None,
        "lines": 0,
        "bytes_in": 0,
        "bytes_out": 0,
        "seconds": 1.5,
        "reason": "reset",
    }
    some = record()
    assert json.loads(str(loggedRecord(some, 1.0))) == expected
    some.unit = None
    del expected["lines"]
    assert json.loads(str(loggedRecord(some, 1.0))) == expected
    some.client = IPv6Address("TCP", "::1", 1)
    some.tls = "TLSv1.3"
    some.subject = 'CN="\n'
    some.unit = "orders"
    some.received, some.sent, some.work = 10, 9, 2
    written = str(loggedRecord(some, 1.0))
    assert "\n" not in written
    assert json.loads(written) == expected | {
        "client": "[::1]:1",
        "tls": "TLSv1.3",
        "subject": 'CN="\n',
        "orders": 2,
        "bytes_in": 10,
        "bytes_out": 9,
    }


def test_reported() -> None:
    """
    What is written of a connection is what came and went, and what could not be sent is not
    counted as sent.
    """
    server = MemoryServer()
    log = AccessLogStream(now)
    with capturedLogs() as logs:
        server.connections._report = log.report
        pair = server.enter()
        pair.peer.sendall(b"1\n2\n3")
        server.turn()
        pair.transport.write(PLENTY)
        server.clock.advance(1.5)
        pair.reset()
        server.turn()
    (event,) = logs
    said = event["record"]
    assert (said["lines"], said["bytes_in"], said["reason"]) == (2, 5, "reset")
    assert 4 < said["bytes_out"] == pair.record.sent < 4 + len(PLENTY)
    assert (said["id"], said["peer"], said["seconds"]) == (1, "192.0.2.1:1024", 1.5)


def test_endsOnce() -> None:
    """
    The first reason to end is the one that remains.
    """
    some = ConnectionRecord("tcp:0", UNIXAddress(None))
    for ending in CloseReason.DRAINED, CloseReason.RESET:
        some.closeWith(ending)
        assert some.reason is CloseReason.DRAINED


def test_toLog() -> None:
    """
    The log takes records as information.
    """
    with capturedLogs() as logs:
        AccessLogStream(now).report(record())
        AccessLogStream(now).reopen()
    (event,) = logs
    assert event["log_level"] == LogLevel.info
    assert event["record"]["id"] == 1


class File:
    """
    An access log in a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.log = AccessLogFile(str(path), now, self.clock)
        self.log.startService()

    def numbers(self) -> list[int]:
        """
        Of the records that have been written.
        """
        return [json.loads(line)["id"] for line in self.path.read_text().splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> File:
    """
    An access log.
    """
    (tmp_path / "logs").mkdir()
    return File(tmp_path / "logs" / "access.log")


class TestToFile:
    """
    A file.
    """

    def test_appends(self, file: File) -> None:
        """
        Each record is there as soon as it is reported, after those of an earlier process.
        """
        file.log.report(record(1))
        assert file.numbers() == [1]
        File(file.path).log.report(record(2))
        file.log.report(record(3))
        assert file.numbers() == [1, 2, 3]
        assert file.path.stat().st_mode & 0o7 == 0

    def test_workingDirectory(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A path is what it was when it was given.
        """
        monkeypatch.chdir(file.path.parent)
        relative = File(Path("relative.log"))
        monkeypatch.chdir("/")
        relative.log.reopen()
        relative.log.report(record(1))
        assert File(file.path.parent / "relative.log").numbers() == [1]

    def test_reopen(self, file: File, tmp_path: Path) -> None:
        """
        After a rotation records go to the new file.
        """
        file.log.report(record(1))
        file.path.rename(tmp_path / "old")
        file.log.report(record(2))
        file.log.reopen()
        file.log.report(record(3))
        assert file.numbers() == [3]
        assert len((tmp_path / "old").read_text().splitlines()) == 2

    def test_reopenFails(self, file: File, tmp_path: Path) -> None:
        """
        If there can be no new file, the old one stays in use, and the reason is logged; it is tried
        again at each record.
        """
        os.rename(tmp_path / "logs", tmp_path / "moved")
        with capturedLogs() as logs:
            file.log.reopen()
            file.log.report(record(1))
            file.log.report(record(2))
            (event,) = logs
            assert event["log_level"] == LogLevel.error
            assert event["reason"] == "No such file or directory"
            assert len((tmp_path / "moved" / "access.log").read_text().splitlines()) == 2
            file.path.parent.mkdir()
            file.log.report(record(3))
        assert file.numbers() == [3]
        assert [event["log_level"] for event in logs[1:]] == [LogLevel.info]

    def test_removed(self, file: File) -> None:
        """
        A file that somebody has removed is made again.
        """
        file.log.report(record(1))
        file.path.unlink()
        file.log.report(record(2))
        assert file.numbers() == [2]

    def test_lost(self, file: File) -> None:
        """
        If it can't be made, records are lost; that is one line a minute, with how many.
        """
        file.path.unlink()
        file.path.parent.rmdir()
        with capturedLogs() as logs:
            for number in range(3):
                file.log.report(record(number))
            assert [event["log_level"] for event in logs] == [LogLevel.error]
            file.path.parent.mkdir()
            file.log.report(record(3))
            file.clock.advance(REPEAT_INTERVAL)
        assert file.numbers() == [3]
        assert [event["count"] for event in logs if "count" in event] == [1, 2]

    def test_full(self) -> None:
        """
        A full disk is one line.
        """
        log = File(Path("/dev/full")).log
        with capturedLogs() as logs:
            for number in range(3):
                log.report(record(number))
        assert [event["reason"] for event in logs] == ["No space left on device"]

    def test_torn(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A record that found no room for its end does not spoil the next one, and the reason is the
        one that the kernel gives.
        """
        write = os.write
        room = [10]

        def writes(opened: int, data: bytes) -> int:
            """
            The disk has room for so many bytes, and then the quota is used up.
            """
            if not room[0]:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            taken = write(opened, data[: room[0]])
            room[0] -= taken
            return taken

        with capturedLogs() as logs:
            with monkeypatch.context() as patched:
                patched.setattr(os, "write", writes)
                file.log.report(record(1))
            file.log.report(record(2))
        assert [event["reason"] for event in logs] == ["Disk quota exceeded"]
        torn, whole = file.path.read_text().splitlines()
        assert len(torn) == 10
        assert json.loads(whole)["id"] == 2
        # Also if somebody else has left it so.
        with file.path.open("a") as other:
            other.write("torn")
        for number in 3, 4:
            File(file.path).log.report(record(number))
        assert [json.loads(one)["id"] for one in file.path.read_text().splitlines()[3:]] == [3, 4]

    def test_inParts(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A record that is taken in parts is whole.
        """
        write = os.write
        with capturedLogs() as logs, monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda opened, data: write(opened, data[:7]))
            for number in 1, 2:
                file.log.report(record(number))
        assert file.numbers() == [1, 2]
        assert logs == []

    def test_eachReason(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Each reason is logged for itself, with its own count.
        """
        reasons = [errno.ENOSPC, errno.EDQUOT, errno.ENOSPC, errno.EDQUOT, errno.EDQUOT]

        def writes(opened: int, data: bytes) -> int:
            number = reasons.pop(0)
            raise OSError(number, os.strerror(number))

        with capturedLogs() as logs, monkeypatch.context() as patched:
            patched.setattr(os, "write", writes)
            for number in range(len(reasons)):
                file.log.report(record(number))
            file.clock.advance(REPEAT_INTERVAL)
        assert [(event["reason"], event["count"]) for event in logs] == [
            ("No space left on device", 1),
            ("Disk quota exceeded", 1),
            ("No space left on device", 1),
            ("Disk quota exceeded", 2),
        ]

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("/nowhere/x", "No such file or directory"),
            ("/", "Is a directory"),
            ("", "No such file or directory"),
            ("/a\0b", "embedded null"),
        ],
    )
    def test_cannotStart(self, path: str, reason: str) -> None:
        """
        A file that can't be written ends the start, with one line that names it.
        """
        with pytest.raises(CannotStart) as caught:
            AccessLogFile(path, now, Clock()).startService()
        line = f"kvserver: --access-log: {path!r} can't be written: {reason}"
        # Python 3.13 says more about a NUL.
        assert str(caught.value).replace("open: ", "").startswith(line)

    def test_fifo(self, tmp_path: Path) -> None:
        """
        A FIFO that nobody reads is not waited for; when somebody reads it, it is written to, and
        when it is full it is not waited for either.
        """
        path = tmp_path / "fifo"
        os.mkfifo(path)
        with capturedLogs() as logs:
            log = File(path).log
            log.report(record(1))
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                log.report(record(2))
                assert json.loads(os.read(reader, 1 << 16))["id"] == 2
                for number in range(10_000):
                    log.report(record(number))
            finally:
                os.close(reader)
        assert [(event["log_level"], event.get("reason")) for event in logs] == [
            (LogLevel.warn, "No such device or address"),
            (LogLevel.error, "No such device or address"),
            (LogLevel.info, None),
            (LogLevel.error, "Resource temporarily unavailable"),
        ]

    @pytest.mark.parametrize(
        "number", [errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EIO]
    )
    def test_mended(self, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        What can be mended while the daemon runs is a warning at the start, and lost records until
        then; afterwards they are written.
        """

        def opens(path: str) -> int:
            raise OSError(number, os.strerror(number))

        with capturedLogs() as logs:
            with monkeypatch.context() as patched:
                patched.setattr(OPEN, opens)
                file = File(tmp_path / "access.log")
                for count in range(3):
                    file.log.report(record(count))
            file.log.report(record(3))
            file.clock.advance(REPEAT_INTERVAL)
        assert file.numbers() == [3]
        assert [(event["log_level"], event.get("count")) for event in logs] == [
            (LogLevel.warn, None),
            (LogLevel.error, 1),
            (LogLevel.info, None),
            (LogLevel.error, 2),
        ]
        assert {event.get("reason", os.strerror(number)) for event in logs} == {os.strerror(number)}

    def test_rotatedForAnother(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        If a rotation has made a file that is not ours to write, the old one is written to, until
        the new one can be opened.
        """
        old = file.path.rename(file.path.with_suffix(".old"))

        def opens(path: str) -> int:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

        with capturedLogs() as logs:
            with monkeypatch.context() as patched:
                patched.setattr(OPEN, opens)
                file.log.reopen()
                file.log.report(record(1))
            file.log.report(record(2))
        assert file.numbers() == [2]
        assert File(old).numbers() == [1]
        assert [event["log_level"] for event in logs] == [LogLevel.warn, LogLevel.info]

    def test_closed(self, file: File) -> None:
        """
        A service that has stopped holds no file.
        """
        assert timesOpen(file.path) == 1
        file.log.stopService()
        assert timesOpen(file.path) == 0
