"""
Signals, and the exit status.
"""

import signal
import time
from collections.abc import Iterator

import pytest
from twisted.internet.error import ReactorNotRunning
from twisted.internet.testing import MemoryReactorClock

from kvserver.supervision.process import useMonotonicClock
from kvserver.supervision.signals import Reload, Signals, processSignals
from kvserver.supervision.terminal import Terminal


class Reactor(MemoryReactorClock):
    """
    Calls at once what a thread, or a signal, leaves it to call.

    @ivar isStopped: Whether it has been told to stop.
    """

    isStopped = False

    def stop(self) -> None:
        """
        Stop. As with Twisted's, that can be done once.
        """
        if self.isStopped:
            raise ReactorNotRunning
        self.isStopped = True

    def callFromThread(self, f, *args):  # type: ignore
        """
        Call.
        """
        f(*args)


class Harness:
    """
    Two service trees on a fake reactor.

    @ivar happened: What signals have brought about.

    @ivar trees: What each tree has for signals.

    @ivar hasTerminal: Whether the process has a terminal.
    """

    def __init__(self) -> None:
        self.hasTerminal = False
        self.happened: list[str] = []
        self.reactor = Reactor()
        reload = Reload(
            lambda: self.happened.append("before"),
            [
                lambda: self.happened.append(str(1 / 0)),
                lambda: self.happened.append("step"),
            ],
            lambda: self.happened.append("after"),
        )
        self.trees = (
            Signals(self.reactor, lambda: self.happened.append("abort"), reload),
            Signals(
                self.reactor,
                lambda: self.happened.append("abort 2"),
                lambda: self.happened.append("reload 2"),
            ),
        )

    def run(self) -> None:
        """
        The reactor sets its handlers, as Twisted does, and runs.
        """
        for tree in self.trees:
            tree.startService()

        def stop(number: int, frame: object) -> None:
            self.happened.append("stop")

        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, stop)
        for call, args, kwargs in self.reactor.whenRunningHooks:
            call(*args, **kwargs)

    def stop(self) -> None:
        """
        The reactor begins to stop.
        """
        for call, args, kwargs in self.reactor.triggers["before"]["shutdown"]:
            call(*args, **kwargs)

    def get(self, *numbers: int) -> list[str]:
        """
        Signals come. Return what has happened in all.
        """
        for number in numbers:
            signal.raise_signal(number)
        self.reactor.advance(0)
        return self.happened


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """
    The service, and the handlers as they were when the test is over.
    """
    monkeypatch.setattr(
        "kvserver.supervision.signals.Terminal",
        lambda reactor: Terminal(reactor, lambda: made.hasTerminal),
    )
    made = Harness()
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield made
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def test_hangUp(harness: Harness) -> None:
    """
    HUP reloads each tree that runs, and ends nothing, also when none runs.
    """
    harness.run()
    assert harness.get(signal.SIGHUP) == ["before", "step", "after", "reload 2"]
    first, second = harness.trees
    first.stopService()
    harness.happened.clear()
    assert harness.get(signal.SIGHUP) == ["reload 2"]
    first.startService()
    second.stopService()
    harness.happened.clear()
    assert harness.get(signal.SIGHUP) == ["before", "step", "after"]
    first.stopService()
    harness.happened.clear()
    assert harness.get(signal.SIGHUP) == []


def test_hangUpOfTheApplication(harness: Harness) -> None:
    """
    A handler for HUP that the application has set before is called as well.
    """
    signal.signal(signal.SIGHUP, lambda number, frame: harness.happened.append("application"))
    harness.run()
    assert "application" in harness.get(signal.SIGHUP)
    assert harness.happened.count("reload 2") == 1


def test_terminalHangsUp(harness: Harness) -> None:
    """
    HUP reloads as long as the terminal is there; when it has gone, HUP stops the reactor. Further
    ones do no harm.
    """
    harness.hasTerminal = True
    harness.run()
    assert harness.get(signal.SIGHUP)[-1] == "reload 2"
    assert not harness.reactor.isStopped
    harness.hasTerminal = False
    harness.happened.clear()
    assert harness.get(signal.SIGHUP, signal.SIGHUP) == []
    assert harness.reactor.isStopped


def test_noHangUp(harness: Harness) -> None:
    """
    If HUP is ignored at the start, as under nohup(1), it reloads when the terminal has gone, too.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    harness.hasTerminal = True
    harness.run()
    harness.hasTerminal = False
    assert harness.get(signal.SIGHUP)[-1] == "reload 2"
    assert not harness.reactor.isStopped


def test_nothingIsLeft(harness: Harness) -> None:
    """
    When no tree runs, nothing is timed any more.
    """
    harness.hasTerminal = True
    harness.run()
    assert len(harness.reactor.getDelayedCalls()) == 1
    for tree in harness.trees:
        tree.stopService()
    assert harness.reactor.getDelayedCalls() == []


def test_endedBy(harness: Harness) -> None:
    """
    The first TERM or INT is known, for the status of the process.
    """
    harness.run()
    signals = processSignals(harness.reactor)
    assert signals.endedBy is None
    harness.get(signal.SIGINT, signal.SIGTERM)
    assert signals.endedBy == signal.SIGINT


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_secondSignal(harness: Harness, first: int, second: int) -> None:
    """
    The first TERM or INT is the reactor's; the next one is in a hurry, however soon it comes.
    """
    harness.run()
    assert harness.get(first, second) == ["stop", "abort", "abort 2"]
    harness.stop()
    assert harness.get(second) == ["stop", *["abort", "abort 2"] * 2]


def test_secondSignalEndsATree(harness: Harness) -> None:
    """
    A tree that a second signal ends at once, as it does when the delay was all that was waited for,
    does not keep the signal from the next one.
    """
    harness.run()
    first = harness.trees[0]
    first.abortDrain = first.stopService
    assert harness.get(signal.SIGTERM, signal.SIGTERM) == ["stop", "abort 2"]


def test_secondSignalInTheFirst(harness: Harness) -> None:
    """
    The next one may come even before the first one has changed the handlers, as when it is sent to
    a process, and to the group of the process.
    """
    harness.run()
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler)
    for _ in range(2):
        handler(signal.SIGTERM, None)
    assert harness.happened == ["stop", "abort", "abort 2"]


def test_signalAfterAnotherStop(harness: Harness) -> None:
    """
    When something else has stopped the reactor a first signal is in a hurry.
    """
    harness.run()
    harness.stop()
    assert harness.get(signal.SIGTERM) == ["abort", "abort 2"]


def test_stopOfOneTree(harness: Harness) -> None:
    """
    When one tree has been stopped, and not the reactor, a first signal is the reactor's.
    """
    harness.run()
    harness.trees[0].stopService()
    assert harness.get(signal.SIGTERM) == ["stop"]
    assert harness.get(signal.SIGTERM) == ["stop", "abort 2"]


def test_ignored(harness: Harness) -> None:
    """
    INT that is ignored, as in a background job of a shell, stays ignored, also during the drain.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    harness.run()
    assert harness.get(signal.SIGINT) == []
    harness.stop()
    assert harness.get(signal.SIGINT) == []
    assert harness.get(signal.SIGTERM) == ["abort", "abort 2"]


def test_keepTime() -> None:
    """
    A reactor goes by the monotonic clock, if nothing has been timed by its own.
    """
    reactor = MemoryReactorClock()
    useMonotonicClock(reactor)
    assert reactor.seconds is time.monotonic
    busy = MemoryReactorClock()
    call = busy.callLater(1, list)
    useMonotonicClock(busy)
    assert busy.seconds() == 0
    # Another service tree comes, when connections of the first one have been timed.
    call.cancel()
    useMonotonicClock(busy)
    assert busy.seconds() == 0
