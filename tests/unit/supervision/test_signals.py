"""
Signals, and the exit status.
"""

import signal
import time
from collections.abc import Iterator

import pytest
from twisted.internet.testing import MemoryReactorClock

from kvserver.supervision.process import useMonotonicClock
from kvserver.supervision.signals import Reload, Signals


class Reactor(MemoryReactorClock):
    """
    Calls at once what a thread, or a signal, leaves it to call.
    """

    def callFromThread(self, f, *args):  # type: ignore
        """
        Call.
        """
        f(*args)


class Harness:
    """
    The service on a fake reactor.

    @ivar happened: What signals have brought about.
    """

    def __init__(self) -> None:
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
        self.signals = Signals(self.reactor, lambda: self.happened.append("abortDrain"), reload)

    def run(self) -> None:
        """
        The reactor sets its handlers, and runs.
        """
        self.signals.startService()
        for number in signal.SIGTERM, signal.SIGINT:
            signal.signal(number, lambda number, frame: self.happened.append("stop"))
        for call, args, kwargs in self.reactor.whenRunningHooks:
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
def harness() -> Iterator[Harness]:
    """
    The service, and the handlers as they were when the test is over.
    """
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield Harness()
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def test_hangUp(harness: Harness) -> None:
    """
    HUP ends nothing, as long as the service runs and after it, and reloads what there is.
    """
    harness.run()
    assert harness.get(signal.SIGHUP) == ["before", "step", "after"]
    harness.signals.stopService()
    assert harness.get(signal.SIGHUP) == ["before", "step", "after"] * 2


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_secondSignal(harness: Harness, first: int, second: int) -> None:
    """
    The first TERM or INT is the reactor's; the next one is in a hurry, however soon it comes.
    """
    harness.run()
    assert harness.get(first, second) == ["stop", "abortDrain"]
    assert harness.get(second) == ["stop", "abortDrain", "abortDrain"]


def test_signalAfterAnotherStop(harness: Harness) -> None:
    """
    When something else has stopped the services a first signal is in a hurry.
    """
    harness.run()
    harness.signals.stopService()
    assert harness.get(signal.SIGTERM) == ["abortDrain"]


def test_keepTime() -> None:
    """
    A reactor goes by the monotonic clock, if nothing has been timed by its own.
    """
    reactor = MemoryReactorClock()
    useMonotonicClock(reactor)
    assert reactor.seconds is time.monotonic
    busy = MemoryReactorClock()
    busy.callLater(1, list)
    useMonotonicClock(busy)
    assert busy.seconds() == 0
