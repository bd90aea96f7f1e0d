"""
The drain: how all connections leave when the daemon stops.
"""

import termios
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from kvserver.connections.transport import Transport

QUIET_PERIOD = 0.3
"""
For how long a connection must have been silent to be at rest, in seconds: a client that sends
without a pause is not cut between two segments.
"""

DRAIN_INTERVAL = 0.1
"""
How often a drain looks for connections at rest, in seconds.
"""


def isAtRest(transport: Transport, silent: float) -> bool:
    """
    May a drain close this connection? No line has begun, nothing is unread or unsent, and no byte
    has moved for L{QUIET_PERIOD}.

    @param silent: For how many seconds no byte has moved.
    """
    return silent >= QUIET_PERIOD and transport.isIdle() and not transport.queued(termios.FIONREAD)


class Drain:
    """
    Waits until all connections have ended, but not for longer than its deadline.
    """

    def __init__(self, reactor: Any, seconds: float, abortAll: Callable[[], None]) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param seconds: When the deadline is.

        @param abortAll: Called at the deadline: resets the connections that are left.
        """
        self._abortAll = abortAll
        self._deadline = reactor.callLater(seconds, abortAll)
        self.finished: Deferred[None] = Deferred()
        """
        Fires when all connections have ended.
        """

    def abort(self) -> None:
        """
        Do not wait any longer.
        """
        if self._deadline.active():
            self._deadline.cancel()
            self._abortAll()

    def allHaveEnded(self) -> None:
        """
        No connection is left.
        """
        if self._deadline.active():
            self._deadline.cancel()
        finished, self.finished = self.finished, Deferred()
        finished.callback(None)
