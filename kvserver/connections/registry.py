"""
The registry of connections: it counts them, limits them, and ends them.
"""

import resource
from collections.abc import Callable, Iterator
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from kvserver.connections.activity import Activity
from kvserver.connections.addresses import formatAddress, sourceKey
from kvserver.connections.connection import Connection
from kvserver.connections.counters import Counters
from kvserver.connections.drain import DRAIN_INTERVAL, Drain, isAtRest
from kvserver.connections.limits import Limits, maxConnectionsAllowed
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.sweep import Sweep
from kvserver.connections.throttle import REPEATED, LogThrottle, SourceLog, connectionsText
from kvserver.interfaces import IWorkers

_log = Logger(namespace="kvserver.connections.Connections")

SWEEPS_PER_TIMEOUT = 8
"""
The number of sweeps within the shortest time-out. A sweep finds a connection that has timed out up
to two sweeps late.
"""


class Connections(Service):
    """
    Every live connection. It takes the place of the guide's C{Task.Supervisor}.

    A connection is temporary, in OTP's terms: when it ends, for whatever reason, it is forgotten
    and never restarted.

    @ivar limits: The limits on connections.

    @ivar maxConnections: The most connections at a time.

    @ivar unit: What the protocols count. None: they count nothing.

    @ivar counters: Sums over the connections that have ended.

    @ivar sourceLog: Logs the warnings that a client can cause.

    @ivar workers: The processes that serve connections; None: this process serves all.

    @ivar isDraining: Whether the drain has begun.
    """

    name = "connections"

    def __init__(
        self,
        reactor: Any,
        limits: Limits,
        report: Callable[[ConnectionRecord], None] | None = None,
        verbose: bool = False,
        unit: str | None = None,
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param limits: The limits on connections.

        @param report: Called with the record of each connection that has ended.

        @param verbose: Whether to log the start and the end of each connection. twistd has no log
            levels, and would always show these messages.

        @param unit: What the protocols count. None: they count nothing.
        """
        self._reactor = reactor
        self.limits = limits
        self.unit = unit
        self.counters = Counters()
        self.sourceLog = SourceLog(reactor)
        self.workers: IWorkers | None = None
        self.isDraining = False
        self.maxConnections = limits.maxConnections or maxConnectionsAllowed()
        self._report = report
        self._verbose = verbose
        self._live: dict[Connection, Activity | None] = {}
        self._perSource: dict[str, int] = {}
        self._throttle = LogThrottle(reactor)
        self._onNextEnd: list[Callable[[], None]] = []
        self._drain: Drain | None = None
        self._drainIsAborted = False
        self._sweep = Sweep(reactor, self.__iter__, self._closeIfDue)

    def __len__(self) -> int:
        """
        Return the number of connections, including those that have no protocol yet.
        """
        return len(self._live)

    def __iter__(self) -> Iterator[Connection]:
        """
        Iterate over the connections of this moment. Others may start and end during the iteration.
        """
        return iter(list(self._live))

    def byAge(self, newestFirst: bool = False) -> Iterator[Connection]:
        """
        Iterate over the connections by age. None may start or end meanwhile.
        """
        return reversed(self._live) if newestFirst else iter(self._live)

    def counts(self) -> tuple[int, int, int]:
        """
        Return the work of the protocols, the bytes received and the bytes sent. Each is a sum over
        the live connections and those that have ended.
        """
        work, received, sent = self.counters.work, self.counters.received, self.counters.sent
        for connection in self._live:
            work += connection.work
            received += connection.record.received
            sent += connection.record.sent
        return work, received, sent

    # The two events of a connection.

    def accepted(self, connection: Connection) -> None:
        """
        A connection has been accepted. It counts from now on.
        """
        record = connection.record
        self.counters.accepted += 1
        self.counters.acceptedBy[record.listener] += 1
        now = self._reactor.seconds()
        # In a worker, the master has numbered the connection already.
        record.id = record.id or self.counters.accepted
        record.acceptedAt = record.acceptedAt or now
        record.unit = self.unit
        self._live[connection] = Activity(now)
        if self._verbose:
            _log.debug(
                "Connection {number} from {peer} on {listener}",
                number=record.id,
                peer=formatAddress(record.peer),
                listener=record.listener,
            )

    def handedOver(self, connection: Connection) -> None:
        """
        A worker has the connection now: it looks after the time-outs and the drain.
        """
        self._live[connection] = None

    def ended(self, connection: Connection) -> None:
        """
        A connection has ended, and its record has the reason. The record is counted and written
        before the connection is forgotten, so a drain is not over before the last record is
        written.
        """
        record = connection.record
        record.endedAt = record.endedAt or self._reactor.seconds()
        record.duration = record.endedAt - record.acceptedAt
        self.counters.add(record)
        try:
            if self._report is not None:
                self._report(record)
        finally:
            self._forget(connection)
        if self._verbose:
            _log.debug(
                "Connection {number} ended: {ending}",
                number=record.id,
                ending=record.reason and record.reason.value,
                **({} if record.unit is None else {record.unit: record.work}),
                seconds=record.duration,
            )

    def _forget(self, connection: Connection) -> None:
        del self._live[connection]
        source = connection.source
        if source is not None:
            self._perSource[source] -= 1
            if not self._perSource[source]:
                del self._perSource[source]
        if self._onNextEnd:
            calls, self._onNextEnd = self._onNextEnd, []
            for call in calls:
                call()
        if self._drain and not self._live:
            self._drain.allHaveEnded()

    # Whether a connection may be accepted.

    def hasRoom(self) -> bool:
        """
        Return whether one more connection may be accepted. If not, log that.
        """
        if len(self._live) >= self.maxConnections and self.workers is not None:
            self.workers.receive()
        if len(self._live) < self.maxConnections:
            return True
        self._throttle("all", self._logFull)
        return False

    def _logFull(self, count: int) -> None:
        what = connectionsText(self.maxConnections, "connections")
        text = f"{what}: no more are accepted until one ends"
        _log.warn(text + REPEATED[count > 1], connections=self.maxConnections, count=count)

    def onNextEnd(self, call: Callable[[], None]) -> None:
        """
        Call C{call} once, when the next connection has ended.
        """
        self._onNextEnd.append(call)

    def admits(self, connection: Connection) -> bool:
        """
        Return whether this source may have one more connection. If so, the connection counts for
        its source until it ends. If not, log that.
        """
        limit = self.limits.maxPerSource
        source = sourceKey(connection.getPeer()) if limit else None
        if source is None:
            return True
        if self._perSource.get(source, 0) >= limit and self.workers is not None:
            self.workers.receive()
        count = self._perSource.get(source, 0)
        if count >= limit:
            self.sourceLog.warn(
                connection.getPeer(),
                f"{{source}} has {connectionsText(limit, 'limit')}: more are refused",
                limit=limit,
            )
            return False
        self._perSource[source] = count + 1
        connection.source = source
        return True

    # How the connections end.

    def startService(self) -> None:
        """
        Raise the soft limit of file descriptors to the hard limit, and start the sweeps that find
        time-outs.
        """
        super().startService()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limits = self.limits
        shortest = min(limits.writeTimeout, limits.idleTimeout or limits.writeTimeout)
        self._sweep.start(shortest / SWEEPS_PER_TIMEOUT)

    def stopService(self) -> Deferred[None]:
        """
        Drain.

        @return: Fires when no connection is left.
        """
        super().stopService()
        self.isDraining = True
        self._sweep.stop()
        if not self._live:
            return succeed(None)
        seconds = 0 if self._drainIsAborted else self.limits.drainTimeout
        what = connectionsText(len(self))
        _log.info(f"Draining {what}, for at most {{seconds}} s", count=len(self), seconds=seconds)
        return self.drain(seconds)

    def drain(self, seconds: float) -> Deferred[None]:
        """
        Close each connection as soon as it is at rest (L{isAtRest}), and reset those that are left
        after a time.

        @param seconds: That time.

        @return: Fires when no connection is left.
        """
        self._drain = Drain(self._reactor, seconds, self._abortAll)
        finished = self._drain.finished
        if self.workers is not None:
            self.workers.drain(seconds)
        self._sweep.stop()
        self._sweep.start(DRAIN_INTERVAL)
        return finished.addCallback(lambda _: self._sweep.stop())

    def abortDrain(self) -> None:
        """
        Do not wait until connections are at rest, neither in this drain nor in a later one.
        """
        self._drainIsAborted = True
        if self._drain:
            self._drain.abort()

    def _abortAll(self) -> None:
        self.warnOfBusy(len(self))
        if self.workers is not None:
            self.workers.abort()
        for connection in self:
            if self._live[connection] is not None:
                self._abort(connection, CloseReason.ABORTED)

    def warnOfBusy(self, count: int) -> None:
        """
        Log how many connections were still busy at the end of the drain.
        """
        what = "1 connection that was" if count == 1 else "{count} connections that were"
        _log.warn(f"Reset {what} still busy at the end of the drain", count=count)

    def _abort(self, connection: Connection, reason: CloseReason) -> None:
        connection.record.closeWith(reason)
        connection.abortConnection()

    def _closeIfDue(self, connection: Connection) -> bool:
        """
        Close or reset a connection if it is due.

        @return: Whether it was due.
        """
        activity = self._live.get(connection)
        if activity is None:
            # The connection has ended since the sweep began, or a worker looks after it.
            return False
        silent = activity.observe(connection, self._reactor.seconds())
        if activity.unsent:
            if silent < self.limits.writeTimeout:
                return False
            self._abort(connection, CloseReason.WRITE_TIMEOUT)
            return True
        if self._drain:
            if not isAtRest(connection, silent):
                return False
            connection.record.closeWith(CloseReason.DRAINED)
        else:
            if not 0 < self.limits.idleTimeout <= silent or connection.hasUnread():
                return False
            connection.record.closeWith(CloseReason.IDLE_TIMEOUT)
        connection.close()
        return True
