"""
The log as JSON.
"""

import io
import json
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.logger import LogBeginner, LogEvent, Logger, LogPublisher
from twisted.python.failure import Failure

from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.operations.accesslog import AccessLogStream
from kvserver.operations.jsonlog import jsonLogObserver


class Log:
    """
    A log in memory.
    """

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.publisher = LogPublisher(jsonLogObserver(self.stream))
        self.logger = Logger("name.space", observer=self.publisher)

    def only(self) -> dict[str, Any]:
        """
        The one line that has been written.
        """
        (line,) = self.stream.getvalue().splitlines(keepends=True)
        assert line.endswith("}\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def log() -> Log:
    """
    It.
    """
    return Log()


def test_event(log: Log) -> None:
    """
    An event is an object: when, how bad, where, what, and its fields. What JSON has no value for is
    text.
    """
    log.logger.warn("{count} of {where}", count=2, where=IPv4Address("TCP", "192.0.2.1", 1))
    event = log.only()
    assert event.pop("time")[-6:] == "+00:00"
    where = "IPv4Address(type='TCP', host='192.0.2.1', port=1)"
    about = {"level": "warn", "logger": "name.space", "message": f"2 of {where}"}
    assert event == about | {"count": 2, "where": where}


class Mute:
    """
    Has no text.
    """

    def __str__(self) -> str:
        raise ValueError("no text")


_ENDLESS: list[object] = []
_ENDLESS.append(_ENDLESS)


@pytest.mark.parametrize("value", [{b"key": 1}, _ENDLESS, Mute()])
def test_noValue(log: Log, value: object) -> None:
    """
    A field that JSON can't have at all costs no message.
    """
    log.logger.info("There is one", value=value)
    event = log.only()
    assert (event["level"], event["message"]) == ("info", "There is one")
    assert isinstance(event["value"], str)


def test_failure(log: Log) -> None:
    """
    A failure has its traceback, on the same line.
    """
    try:
        raise ValueError("wrong")
    except ValueError:
        log.logger.failure("It failed", Failure())
    event = log.only()
    assert (event["level"], event["message"]) == ("critical", "It failed")
    assert event["traceback"].startswith("Traceback")
    assert "ValueError: wrong" in event["traceback"]


def test_takenNames(log: Log) -> None:
    """
    A field does not take the place of what every object has.
    """
    log.logger.info("x", time=1, logger=2, message=3, traceback=4, system=5)
    event = log.only()
    del event["time"]
    assert event == {"level": "info", "logger": "name.space", "message": "x"}


def test_printed() -> None:
    """
    What a protocol prints is an event as any other.
    """
    log = Log()

    class System:
        __stdout__ = stdout = io.StringIO()
        __stderr__ = stderr = io.StringIO()

    system = System()
    warnings: Any = type("Warnings", (), {"showwarning": None})
    beginner = LogBeginner(log.publisher, io.StringIO(), system, warnings)
    beginner.beginLoggingTo([], redirectStandardIO=True)
    print("hello", file=system.stdout)
    assert log.only()["message"] == "hello"


def test_record(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The record of a connection is an object in the object, and as text it is the line that a file
    has.
    """
    events: list[LogEvent] = []
    observer: Any = events.append
    monkeypatch.setattr("kvserver.operations.accesslog._log", log.logger)
    log.publisher.addObserver(observer)
    record = ConnectionRecord("tcp:4040", IPv4Address("TCP", "192.0.2.1", 1))
    record.unit = "lines"
    record.closeWith(CloseReason.CLIENT_CLOSED)
    AccessLogStream(lambda: 1.0).report(record)
    event = log.only()
    assert "message" not in event
    assert event["record"]["peer"] == "192.0.2.1:1"
    assert json.loads(str(events[0]["record"])) == event["record"]
