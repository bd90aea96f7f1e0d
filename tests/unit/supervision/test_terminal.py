"""
A hang-up is told from a HUP that somebody sends.
"""

from twisted.internet.task import Clock

from kvserver.supervision.terminal import LOOK_INTERVAL, Terminal


class Harness:
    """
    A terminal that is there, or is not, as the test says.
    """

    def __init__(self, isThere: bool) -> None:
        self.isThere = isThere
        self.clock = Clock()
        self.terminal = Terminal(self.clock, lambda: self.isThere)
        self.terminal.start()


def test_hangUp() -> None:
    """
    A terminal that was there, and is not there now, has gone, however long it was there.
    """
    harness = Harness(True)
    assert not harness.terminal.hasJustGone()
    harness.clock.pump([LOOK_INTERVAL] * 10)
    assert not harness.terminal.hasJustGone()
    harness.isThere = False
    assert harness.terminal.hasJustGone()


def test_lookBetween() -> None:
    """
    So it is when a look comes between the end of the terminal and the signal.
    """
    harness = Harness(True)
    harness.isThere = False
    harness.clock.advance(LOOK_INTERVAL)
    assert harness.terminal.hasJustGone()


def test_stoppedBefore() -> None:
    """
    So it is when the process was stopped for long, and the terminal goes meanwhile: the signal
    comes before the look that is due.
    """
    harness = Harness(True)
    harness.isThere = False
    harness.clock.rightNow += 100 * LOOK_INTERVAL
    assert harness.terminal.hasJustGone()


def test_leftAlone() -> None:
    """
    When nothing has come of it, a later signal is somebody's. The process is not woken for it.
    """
    harness = Harness(True)
    harness.isThere = False
    harness.clock.pump([LOOK_INTERVAL] * 3)
    assert not harness.terminal.hasJustGone()
    assert harness.clock.getDelayedCalls() == []


def test_noTerminal() -> None:
    """
    A process without a terminal has none to lose, and is not woken for it.
    """
    harness = Harness(False)
    assert not harness.terminal.hasJustGone()
    assert harness.clock.getDelayedCalls() == []
    harness.terminal.stop()


def test_stop() -> None:
    """
    After the stop nothing is looked for.
    """
    harness = Harness(True)
    harness.terminal.stop()
    assert harness.clock.getDelayedCalls() == []
    harness.isThere = False
    assert not harness.terminal.hasJustGone()
