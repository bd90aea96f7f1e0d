"""
Looks at every connection again and again: time-outs then cost nothing for each line.
"""

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Cooperator, LoopingCall, deferLater
from twisted.logger import Logger, LogLevel

from kvserver.connections.record import CloseReason
from kvserver.connections.transport import Transport

_log = Logger(namespace="kvserver.connections.Connections")

CLOSES_PER_TURN = 50
"""
The most connections that a sweep closes in one turn of the reactor.
"""


class Sweep:
    """
    Visits every connection, again and again. It takes turns with the traffic: 5,000 connections
    that time out together delay no other.
    """

    def __init__(
        self,
        reactor: Any,
        transports: Callable[[], Iterator[Transport]],
        visit: Callable[[Transport], bool],
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param transports: Gives all connections, at the beginning of a sweep.

        @param visit: Looks at one connection, and may close it. Returns whether it did.
        """
        self._reactor = reactor
        self._transports = transports
        self._visit = visit
        self._cooperator = Cooperator(scheduler=lambda turn: reactor.callLater(0, turn))
        self._loop: LoopingCall | None = None

    def start(self, interval: float) -> None:
        """
        Begin a sweep now, and then every C{interval} seconds.
        """
        self._loop = LoopingCall(lambda: self._cooperator.coiterate(self._sweep()))
        self._loop.clock = self._reactor
        self._loop.start(interval)

    def stop(self) -> None:
        """
        Begin no more sweeps.
        """
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def _sweep(self) -> Iterator[Deferred[None] | None]:
        closed = 0
        for transport in self._transports():
            try:
                closes = self._visit(transport)
            except Exception:
                _log.failure(
                    "A connection could not be looked at, and is aborted", level=LogLevel.error
                )
                transport.record.closeWith(CloseReason.ERROR)
                transport.abortConnection()
                closes = True
            closed += closes
            # A close only begins here. Its work is done in the reactor's next turn, and must not
            # take too long for those who are served in the same one.
            pause = closes and closed % CLOSES_PER_TURN == 0
            yield deferLater(self._reactor, 0) if pause else None
