"""
The drain: how the connections end when the daemon stops.
"""

import termios
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from kvserver.connections.connection import Connection

_log = Logger(namespace="kvserver.connections.DrainDelay")

QUIET_PERIOD = 0.3
"""
How long a connection must have been silent to be at rest, in seconds. So a client that sends
without a pause is not cut off between two segments.
"""

DRAIN_INTERVAL = 0.1
"""
The interval between two sweeps of a drain, in seconds.
"""


def isAtRest(connection: Connection, silent: float) -> bool:
    """
    Return whether a drain may close this connection. No line must have begun, nothing must be
    unread or unsent, and no byte must have moved for L{QUIET_PERIOD}.

    @param silent: How long no byte has moved, in seconds.
    """
    return (
        silent >= QUIET_PERIOD and connection.isIdle() and not connection.queued(termios.FIONREAD)
    )


class DrainDelay:
    """
    The time between the signal to stop and the drain. Clients are still accepted and served, and
    C{/readyz} says no, so that balancers stop sending new clients first.

    @ivar isRunning: Whether this time has begun and is not over.
    """

    isRunning = False
    _isAborted = False
    _call: IDelayedCall | None = None

    def __init__(self, reactor: Any, seconds: float) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param seconds: How long it is. 0: there is no delay.
        """
        self._reactor = reactor
        self._seconds = seconds
        self._over: Deferred[None] = Deferred()

    def begin(self) -> Deferred[None]:
        """
        The signal has come.

        @return: Fires when the drain may begin.
        """
        if self._isAborted or not self._seconds:
            return succeed(None)
        _log.info(
            "Stopping: not ready any more, and still accepting for {seconds} s",
            seconds=self._seconds,
        )
        self.isRunning = True
        self._call = self._reactor.callLater(self._seconds, self._end)
        return self._over

    def abort(self) -> None:
        """
        Do not wait, neither now nor later.
        """
        self._isAborted = True
        if self._call is not None and self._call.active():
            self._call.cancel()
            self._end()

    def _end(self) -> None:
        self.isRunning = False
        self._over.callback(None)


class Drain:
    """
    Waits until all connections have ended, or until the deadline.
    """

    def __init__(self, reactor: Any, seconds: float, abortAll: Callable[[], None]) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param seconds: How far away the deadline is.

        @param abortAll: Called at the deadline. It resets the connections that are left.
        """
        self._reactor = reactor
        self._abortAll = abortAll
        self._deadline = reactor.callLater(seconds, self._expire)
        self._end = reactor.seconds() + seconds
        self.finished: Deferred[None] = Deferred()
        """
        Fires when all connections have ended.
        """

    def _expire(self) -> None:
        """
        The deadline. If it comes late, the process was paused, and the lines that have arrived
        meanwhile are unread: the connections get a little time to come to rest, but only once.
        """
        late = self._reactor.seconds() - self._end
        if late > DRAIN_INTERVAL:
            self._end = float("inf")
            self._deadline = self._reactor.callLater(2 * QUIET_PERIOD, self._expire)
        else:
            self._abortAll()

    def abort(self) -> None:
        """
        Bring the deadline forward to now.
        """
        if self._deadline.active():
            self._deadline.cancel()
            self._abortAll()

    def allHaveEnded(self) -> None:
        """
        No connection is left: the drain is over.
        """
        if self._deadline.active():
            self._deadline.cancel()
        finished, self.finished = self.finished, Deferred()
        finished.callback(None)
