"""
Visits every connection at intervals, so that time-outs add no cost to a line.
"""

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Cooperator, LoopingCall, deferLater
from twisted.logger import Logger, LogLevel

from kvserver.connections.connection import Connection
from kvserver.connections.record import CloseReason

_log = Logger(namespace="kvserver.connections.Connections")

CLOSES_PER_TURN = 50
"""
The most connections that a sweep closes in one turn of the reactor.
"""

VISITS_PER_STEP = 16
"""
How many connections a sweep visits before it asks whether the reactor is to have its turn: to ask
costs more than a visit.
"""

SHORTEST_INTERVAL = 0.05
"""
The shortest time between two sweeps, in seconds.
"""


class Sweep:
    """
    Visits every connection at intervals. It takes turns with the traffic: if 5,000 connections time
    out together, the others are not delayed.
    """

    def __init__(
        self,
        reactor: Any,
        connections: Callable[[], Iterator[Connection]],
        visit: Callable[[Connection], bool],
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param connections: Returns all connections. Called when a sweep begins.

        @param visit: Looks at one connection, and may close it. Returns whether it did.
        """
        self._reactor = reactor
        self._transports = connections
        self._visit = visit
        self._cooperator = Cooperator(scheduler=lambda turn: reactor.callLater(0, turn))
        self._loop: LoopingCall | None = None

    def start(self, interval: float) -> None:
        """
        Start a sweep now, and another one every C{interval} seconds, but not more often than every
        L{SHORTEST_INTERVAL}.
        """
        self._loop = LoopingCall(lambda: self._cooperator.coiterate(self._sweep()))
        self._loop.clock = self._reactor
        self._loop.start(max(interval, SHORTEST_INTERVAL))

    def stop(self) -> None:
        """
        Start no more sweeps.
        """
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def _sweep(self) -> Iterator[Deferred[None] | None]:
        closed = 0
        for number, connection in enumerate(self._transports(), 1):
            try:
                closes = self._visit(connection)
            except BaseException:
                _log.failure(
                    "A connection could not be looked at, and is aborted", level=LogLevel.error
                )
                connection.record.closeWith(CloseReason.ERROR)
                connection.abortConnection()
                closes = True
            closed += closes
            # A close only begins here. The reactor does the rest in its next turn, which must not
            # become too long for the other connections.
            if closes and closed % CLOSES_PER_TURN == 0:
                yield deferLater(self._reactor, 0)
            elif number % VISITS_PER_STEP == 0:
                yield None
