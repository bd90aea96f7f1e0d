"""
The terminal that a process in the foreground was started from, and how it goes away.
"""

import os
from collections.abc import Callable
from typing import Any

LOOK_INTERVAL = 5.0
"""
The time between two looks whether the terminal is still there, in seconds.
"""


def hasTerminal() -> bool:
    """
    Return whether the process has a controlling terminal. When a terminal goes away, the kernel
    takes it from each process of its session before it sends SIGHUP (tty(4), setsid(2)).
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(terminal)
    return True


class Terminal:
    """
    Tells a hang-up from a SIGHUP that somebody sends. For both the signal is the same, but only
    after a hang-up the terminal has just gone.

    A process that C{twistd} has made a daemon, or that a service manager has started, has no
    terminal. A process that its shell left alone when the terminal went away (C{disown}) has none
    any more: it is told nothing then, and a later SIGHUP comes from somebody.
    """

    def __init__(self, reactor: Any, isThere: Callable[[], bool] = hasTerminal) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param isThere: Returns whether there is a terminal now.
        """
        self._reactor = reactor
        self._isThere = isThere
        self._lastSeen: float | None = None
        self._nextLook: Any = None

    def start(self) -> None:
        """
        Begin to look, if there is a terminal.
        """
        self._nextLook = None
        if self._isThere():
            self._lastSeen = self._reactor.seconds()
            self._nextLook = self._reactor.callLater(LOOK_INTERVAL, self.start)

    def stop(self) -> None:
        """
        Look no more. From now on, nothing is a hang-up.
        """
        self._lastSeen = None
        if self._nextLook is not None:
            self._nextLook.cancel()
            self._nextLook = None

    def hasJustGone(self) -> bool:
        """
        Return whether the terminal went away between the last two looks, or since. The next look
        may be long overdue: a process that was stopped (SIGTSTP) gets a HUP before it can look.
        """
        if self._lastSeen is None or self._isThere():
            return False
        isRecent = self._reactor.seconds() - self._lastSeen <= 2 * LOOK_INTERVAL
        return isRecent or self._nextLook is not None
