"""
The time between the signal and the drain, on a fake clock.
"""

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from kvserver.connections.drain import DrainDelay


def begun(delay: DrainDelay) -> list[None]:
    """
    Begin it.

    @return: What has one element as soon as the drain may begin.
    """
    over: list[None] = []
    delay.begin().addCallback(over.append)
    return over


def test_delay() -> None:
    """
    The drain begins when the time is over, and not before.
    """
    clock = Clock()
    delay = DrainDelay(clock, 10)
    assert not delay.isRunning
    with capturedLogs() as logs:
        over = begun(delay)
    assert [event["seconds"] for event in logs] == [10]
    clock.advance(9.9)
    assert (over, delay.isRunning) == ([], True)
    clock.advance(0.1)
    assert (over, delay.isRunning) == ([None], False)


def test_noDelay() -> None:
    """
    Without a delay the drain begins at once, and nothing is logged.
    """
    clock = Clock()
    with capturedLogs() as logs:
        assert begun(DrainDelay(clock, 0)) == [None]
    assert (logs, clock.getDelayedCalls()) == ([], [])


@pytest.mark.parametrize("isEarly", [False, True])
def test_abort(isEarly: bool) -> None:
    """
    A second signal ends the delay, also one that comes before the delay has begun.
    """
    clock = Clock()
    delay = DrainDelay(clock, 10)
    if isEarly:
        delay.abort()
    over = begun(delay)
    delay.abort()
    delay.abort()
    assert (over, delay.isRunning, clock.getDelayedCalls()) == ([None], False, [])
