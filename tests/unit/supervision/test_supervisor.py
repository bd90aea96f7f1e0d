"""
The order in which the service tree starts and stops, and what is restarted.
"""

import errno
import os
from collections.abc import Callable

import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from kvserver.supervision.supervisor import (
    CannotStart,
    ChildSpec,
    Restart,
    RestartIntensity,
    Supervisor,
)


class Child(Service):
    """
    Writes down what happens to it, and stops when it is told that it has.
    """

    def __init__(self, family: "Family", died: Callable[[Exception], None]) -> None:
        self.family = family
        self.die = died
        self.stopped: Deferred[None] = Deferred()

    def privilegedStartService(self) -> None:
        self.family.events.append(f"prepare {self.name}")

    def startService(self) -> None:
        if self.name in self.family.unable:
            raise CannotListenError("192.0.2.1", 4040, OSError(errno.EADDRINUSE, os.strerror(98)))
        super().startService()
        self.family.events.append(f"start {self.name}")

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.family.events.append(f"stop {self.name}")
        return self.stopped


class Family:
    """
    A supervisor with three children.

    @ivar events: What happens to the children.

    @ivar unable: The names of those that can't start.

    @ivar givenUp: Has the supervisor given up?

    @ivar left: What the supervisor waits for before it stops its children.
    """

    def __init__(self, restart: Restart = "permanent") -> None:
        self.clock = Clock()
        self.events: list[str] = []
        self.unable: set[str] = set()
        self.givenUp = False
        self.left: Deferred[None] = succeed(None)
        self.supervisor = Supervisor(
            [ChildSpec(name, lambda died: Child(self, died), restart) for name in "abc"],
            RestartIntensity(self.clock.seconds),
            self.giveUp,
            lambda: self.left,
        )

    def giveUp(self) -> None:
        """
        What the supervisor does when it gives up.
        """
        self.givenUp = True

    def happened(self) -> list[str]:
        """
        What has happened since the last time.
        """
        events = self.events[:]
        self.events.clear()
        return events

    def child(self, name: str) -> Child:
        """
        The child that has that name now.
        """
        child = self.supervisor.getServiceNamed(name)
        assert isinstance(child, Child)
        return child


def test_startsInOrder() -> None:
    """
    The children start in order.
    """
    family = Family()
    family.supervisor.privilegedStartService()
    assert family.happened() == ["prepare a", "prepare b", "prepare c"]
    family.supervisor.startService()
    assert family.happened() == ["start a", "start b", "start c"]


def test_stopsOneByOneInReverse() -> None:
    """
    Each child stops when the one that was started after it has stopped.
    """
    family = Family()
    family.supervisor.startService()
    family.happened()
    done: list[object] = []
    family.supervisor.stopService().addCallback(done.append)
    assert not family.supervisor.running
    for name in "cba":
        assert done == []
        assert family.happened() == [f"stop {name}"]
        family.child(name).stopped.callback(None)
    assert done == [None]


def test_oneThatCannotStop() -> None:
    """
    A child that fails to stop is logged, and the others stop.
    """
    family = Family()
    family.supervisor.startService()
    family.happened()
    family.child("c").stopped.errback(ZeroDivisionError())
    with capturedLogs() as logs:
        family.supervisor.stopService()
    assert family.happened() == ["stop c", "stop b"]
    assert [(event["log_level"], event["child"]) for event in logs] == [(LogLevel.error, "c")]


@pytest.mark.parametrize("start", ["privilegedStartService", "startService"])
def test_cannotStart(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An address that can't be had ends the process: with one line for a person, and as an exception
    that twistd cleans up after.
    """
    family = Family()
    family.unable.add("b")
    monkeypatch.setattr(Child, "privilegedStartService", Child.startService)
    with pytest.raises(SystemExit, match=r"192\.0\.2\.1.*Address already in use") as caught:
        getattr(family.supervisor, start)()
    assert isinstance(caught.value, CannotStart)
    assert isinstance(caught.value, Exception)


def test_restart() -> None:
    """
    A child that has died is stopped, and another one built and started in its place. No other child
    is touched.
    """
    family = Family()
    family.supervisor.startService()
    family.happened()
    a, dead, c = family.supervisor
    with capturedLogs() as logs:
        family.child("b").die(ZeroDivisionError("its reason"))
    assert family.happened() == ["stop b", "prepare b", "start b"]
    assert list(family.supervisor) == [a, family.child("b"), c]
    assert family.child("b") is not dead
    assert [(event["child"], str(event["reason"])) for event in logs] == [("b", "its reason")]
    assert logs[0]["log_level"] == LogLevel.warn


def test_diesOnce() -> None:
    """
    A child that was replaced has nothing more to say.
    """
    family = Family()
    family.supervisor.startService()
    dead = family.child("b")
    dead.die(ZeroDivisionError())
    family.happened()
    dead.die(ZeroDivisionError())
    assert family.happened() == []


def test_temporary() -> None:
    """
    A temporary child is not restarted.
    """
    family = Family("temporary")
    family.supervisor.startService()
    family.happened()
    family.child("b").die(ZeroDivisionError())
    assert family.happened() == ["stop b"]
    assert [child.name for child in family.supervisor] == ["a", "c"]
    assert not family.givenUp


def test_givesUp() -> None:
    """
    The fourth death in 5 seconds is one too many, whichever children died; it is logged with the
    child and its reason.
    """
    family = Family()
    family.supervisor.startService()
    for name in "abc":
        family.child(name).die(ZeroDivisionError())
        family.clock.advance(1.5)
    alive = not family.givenUp
    assert alive
    with capturedLogs() as logs:
        family.child("a").die(ZeroDivisionError("the last"))
    assert family.givenUp
    (event,) = logs
    assert event["log_level"] == LogLevel.critical
    assert event["log_format"].format(**event) == (
        "More than 3 restarts in 5.0 s: giving up. a died last: the last"
    )


def test_neverGivesUp() -> None:
    """
    A death every 3 seconds is none too many, for as long as it takes.
    """
    family = Family()
    family.supervisor.startService()
    for _ in range(100):
        family.child("a").die(ZeroDivisionError())
        family.clock.advance(3)
    assert not family.givenUp


def test_doesNotComeUp() -> None:
    """
    A child that can't be started again has died again.
    """
    family = Family()
    family.supervisor.startService()
    family.unable.add("b")
    with capturedLogs() as logs:
        family.child("b").die(ZeroDivisionError())
    assert family.givenUp
    assert len(logs) == 4
    assert "Address already in use" in str(logs[-1]["reason"])


def test_deathWhileStopping() -> None:
    """
    Nothing is restarted when everything stops.
    """
    family = Family()
    family.supervisor.startService()
    family.supervisor.stopService()
    family.happened()
    family.child("a").die(ZeroDivisionError())
    assert family.happened() == []


def test_leaving() -> None:
    """
    While the supervisor leaves, its children run on, and one that dies is restarted.
    """
    family = Family()
    family.left = Deferred()
    family.supervisor.startService()
    family.happened()
    family.supervisor.stopService()
    assert family.happened() == []
    family.child("c").die(ZeroDivisionError())
    assert family.happened() == ["stop c", "prepare c", "start c"]
    family.left.callback(None)
    assert family.happened() == ["stop c"]
    family.child("b").die(ZeroDivisionError())
    assert family.happened() == []


def test_intensity() -> None:
    """
    Restarts are counted in a window that moves with time.
    """
    clock = Clock()
    intensity = RestartIntensity(clock.seconds, restarts=2, period=10)
    assert [intensity.allowsRestart() for _ in range(3)] == [True, True, False]
    clock.advance(10.1)
    assert intensity.allowsRestart()
    clock.advance(5)
    assert intensity.allowsRestart()
    clock.advance(4)
    assert not intensity.allowsRestart()
    clock.advance(5)
    assert not intensity.allowsRestart()
