"""
Many lines on many connections, by a schedule.
"""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from kvserver.check import run as runs
from kvserver.check.connection import CheckedConnection
from kvserver.check.giving import DEPTH, Client, Giving, Plan
from kvserver.check.latency import Interval
from kvserver.check.run import Run
from kvserver.check.target import Address

_RETRY = 0.1
"""
How long there is at least from a failed attempt to connect to the next, in seconds.
"""

_ATTEMPT = 0.4
"""
How long an attempt may take in the middle of a soak, in seconds: it is to be tried twice a second,
and it is not looked at all the time.
"""

_GRACE = 1.0

_LEAVE = 3.0
"""
When interrupted: how long lines in flight, and then closes, are waited for, in seconds.
"""


Find = Callable[[Callable[[list[Address] | str], None]], None]
"""
Finds addresses, and calls what it is given with them, or with why there are none.
"""


class Load(Giving):
    """
    A load.

    @ivar onInterval: Called once a second with what it was like.
    """

    def __init__(self, run: Run, plan: Plan, find: Find | None = None) -> None:
        """
        @param find: Looks up the addresses of the target. A soak does so before it reconnects: a
            failover may be one of names.
        """
        super().__init__(run, plan)
        self._find = find
        self._finding: list[Callable[[], None]] = []
        self._retries: set[Any] = set()
        self._lastTick = 0.0
        self.done: Deferred[None] = Deferred()
        self.onInterval: Callable[[Interval], None] = lambda interval: None

    def start(self) -> "Deferred[None]":
        """
        Begin.

        @return: Fires when no connection is left.
        """
        for _ in range(self._plan.connections):
            self._connect()
        self._lastTick = self._run.clock()
        self._tickSecond()
        return self.done

    def share(self) -> float | None:
        """
        How much of it is done, from 0 to 1; None: it has no end.
        """
        plan = self._plan
        if plan.lines is not None:
            return min(1.0, self._run.total("linesReturned") / plan.lines)
        if plan.duration is None or self._begin is None:
            return None
        return min(1.0, (self._run.clock() - self._begin) / plan.duration)

    def interrupt(self) -> None:
        """
        End it as its end would, in a few seconds.
        """
        self._run.interrupted = True
        self._waiting.clear()
        self._stopGiving()
        self._later(_GRACE, self._endAll)
        self._later(_LEAVE, self._closeAll)
        self._checkDone()

    def _endAll(self) -> None:
        for client in list(self._clients):
            if client.connection.isOpen:
                client.connection.sendEnd()
            else:
                client.connection.close()

    def _closeAll(self) -> None:
        for client in list(self._clients):
            client.connection.close()

    # Connections

    def _connect(self) -> None:
        connection = CheckedConnection(self._run)
        client = Client(connection, self._plan.churn, self._run.clock())
        if self._plan.soak and self._begin is not None:
            connection.connectTimeout = min(connection.connectTimeout, _ATTEMPT)
        connection.onOpen = lambda: self._opened(client)
        connection.onPassed = lambda count: self._passed(client, count)
        connection.onEnd = lambda: self._ended(client)
        self._clients.append(client)
        connection.begin()

    def _opened(self, client: Client) -> None:
        now = self._run.clock()
        if self._begin is None:
            self._begin = now
            if self._plan.duration is not None:
                self._later(self._plan.duration, self._stopGiving)
            if self._plan.rate is None:
                self._run.owedSince = now
            else:
                self._tick()
        if self._plan.rate is None:
            self._give(client, self._plan.depth or DEPTH, now)
        self._giveWaiting(client)
        self._checkEnd(client)

    def _ended(self, client: Client) -> None:
        connection = client.connection
        self._clients.remove(client)
        back = connection.takeBack()
        self._count(-connection.inFlight)
        if self._left is not None:
            self._left += len(back)
        if self._plan.rate is not None and not self._isOver:
            self._waiting.extendleft(reversed(back))
            if self._left is not None:
                self._left -= len(back)
            self._count(len(back))
        self._forget()
        byUs = connection.ending == runs.CLOSED
        isReplaced = self._plan.soak or self._plan.churn is not None
        if isReplaced and self._run.opened and not self._isFinished():
            isFailed = not (connection.isOpen or byUs)
            wait = client.begun + _RETRY - self._run.clock() if isFailed else 0.0
            self._retryLater(max(0.0, wait))
        else:
            for other in list(self._clients):
                self._giveWaiting(other)
        self._checkDone()

    def _forget(self) -> None:
        """
        When all is over, and nobody is left who could send what waits, it is left out.
        """
        if self._isOver and not any(client.connection.isOpen for client in self._clients):
            self._waiting.clear()

    def _retryLater(self, delay: float) -> None:
        def retry() -> None:
            self._retries.discard(call)
            if self._plan.soak and self._find is not None and not self._isFinished():
                self._findAndConnect(self._find)
            else:
                self._connectUnlessFinished()

        call = self._run.reactor.callLater(delay, retry)
        self._retries.add(call)

    def _connectUnlessFinished(self) -> None:
        if self._isFinished():
            self._checkDone()
        else:
            self._connect()

    def _findAndConnect(self, find: Find) -> None:
        """
        Connect to where the target is now. If that is not known in time, it is where it was.
        """

        def connect() -> None:
            if call not in self._retries:
                return
            self._retries.discard(call)
            if call.active():
                call.cancel()
            self._connectUnlessFinished()

        call = self._run.reactor.callLater(_ATTEMPT, connect)
        self._retries.add(call)
        self._finding.append(connect)
        # One question at a time, whoever waits for the answer.
        if len(self._finding) == 1:
            find(self._found)

    def _found(self, found: list[Address] | str) -> None:
        if not isinstance(found, str):
            self._run.addresses = found
        waiting, self._finding = self._finding, []
        for connect in waiting:
            connect()

    def _checkDone(self) -> None:
        if self._clients or self._retries or self.done.called:
            return
        self._timer.stop()
        for call in self._calls:
            if call.active():
                call.cancel()
        if self._run.latency is not None:
            now = self._run.clock()
            self._run.latency.tick(self._run.time(self._lastTick), now - self._lastTick)
        self.done.callback(None)

    def _stopGiving(self) -> None:
        """
        Nothing more becomes due.
        """
        self._isOver = True
        for retry in list(self._retries):
            if retry.active() and self._isFinished():
                retry.cancel()
                self._retries.discard(retry)
        self._forget()
        self._count(0)
        self._checkEnds()
        self._checkDone()

    # Time

    def _tickSecond(self) -> None:
        latency = self._run.latency
        now = self._run.clock()
        if latency is not None and now > self._lastTick:
            interval = latency.tick(self._run.time(self._lastTick), now - self._lastTick)
            if interval.duration > 0.5:
                self.onInterval(interval)
        self._lastTick = now
        for client in self._clients:
            self._probe(client, now)
        self._later(1.0, self._tickSecond)

    def _probe(self, client: Client, now: float) -> None:
        """
        After a difference, nothing comes any more: one more line shows where the place is, or the
        end does.
        """
        connection = client.connection
        if connection.isOpen and connection.isQuiet():
            if self._give(client, 1, now):
                connection.pump()
            elif self._isFinished() or client.quota == 0:
                connection.sendEnd()
