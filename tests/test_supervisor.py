"""
The order in which the service tree starts and stops.
"""

import errno
import os

import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import LogLevel, capturedLogs

from kvserver.supervisor import CannotStart, Supervisor


class Child(Service):
    """
    Writes down what happens to it, and stops when it is told that it has.
    """

    def __init__(self, name: str, events: list[str]) -> None:
        self.setName(name)
        self.events = events
        self.stopped: Deferred[None] = Deferred()

    def privilegedStartService(self) -> None:
        self.events.append(f"prepare {self.name}")

    def startService(self) -> None:
        super().startService()
        self.events.append(f"start {self.name}")

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.events.append(f"stop {self.name}")
        return self.stopped


class Unable(Service):
    """
    Can't have its address.
    """

    name = "unable"

    def startService(self) -> None:
        raise CannotListenError("192.0.2.1", 4040, OSError(errno.EADDRINUSE, os.strerror(98)))

    privilegedStartService = startService


def family() -> tuple[Supervisor, list[Child], list[str]]:
    """
    A supervisor with three children, and the list of what happens to them.
    """
    supervisor = Supervisor()
    events: list[str] = []
    children = [Child(name, events) for name in "abc"]
    for child in children:
        child.setServiceParent(supervisor)
    return supervisor, children, events


def test_startsInOrder() -> None:
    """
    The children start in the order in which they were added.
    """
    supervisor, _, events = family()
    supervisor.privilegedStartService()
    supervisor.startService()
    assert events == ["prepare a", "prepare b", "prepare c", "start a", "start b", "start c"]


def test_stopsOneByOneInReverse() -> None:
    """
    Each child stops when the one that was started after it has stopped.
    """
    supervisor, (a, b, c), events = family()
    supervisor.startService()
    events.clear()
    done: list[object] = []
    supervisor.stopService().addCallback(done.append)
    assert not supervisor.running
    assert events == ["stop c"]
    c.stopped.callback(None)
    assert events == ["stop c", "stop b"]
    b.stopped.callback(None)
    assert events == ["stop c", "stop b", "stop a"]
    assert not done
    a.stopped.callback(None)
    assert done == [None]


def test_oneThatCannotStop() -> None:
    """
    A child that fails to stop is logged, and the others stop.
    """
    supervisor, (a, b, c), events = family()
    supervisor.startService()
    events.clear()
    c.stopped.errback(ZeroDivisionError())
    b.stopped.callback(None)
    a.stopped.callback(None)
    with capturedLogs() as logs:
        supervisor.stopService()
    assert events == ["stop c", "stop b", "stop a"]
    assert [(event["log_level"], event["child"]) for event in logs] == [(LogLevel.critical, "c")]


@pytest.mark.parametrize("start", ["privilegedStartService", "startService"])
def test_cannotStart(start: str) -> None:
    """
    An address that can't be had ends the process: with one line for a person, and as an exception
    that twistd cleans up after.
    """
    supervisor, _, _ = family()
    Unable().setServiceParent(supervisor)
    with pytest.raises(SystemExit, match=r"192\.0\.2\.1.*Address already in use") as caught:
        getattr(supervisor, start)()
    assert isinstance(caught.value, CannotStart)
    assert isinstance(caught.value, Exception)
