"""
Many lines on many connections, by a schedule.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred

from kvserver.check import run as runs
from kvserver.check.connection import QUIET, CheckedConnection
from kvserver.check.latency import Interval
from kvserver.check.run import Run

DEPTH = 16

DURATION = 10.0

_TICK = 0.0002
"""
The least time between two looks at what is due, in seconds; epoll(7) waits for whole milliseconds.
"""

_RETRY = 0.1
"""
How long to wait before an attempt to connect that follows a failed one, in seconds.
"""

_ATTEMPT = 0.5
"""
How long an attempt may take in the middle of a soak, in seconds: it is to be tried twice a second.
"""

_GRACE = 1.0

_LEAVE = 3.0
"""
When interrupted: how long lines in flight, and then closes, are waited for, in seconds.
"""

_WAITING = 1_000_000


@dataclass(frozen=True)
class Plan:
    """
    What is to be sent.

    @ivar connections: How many at once.

    @ivar rate: Lines a second, for all of them. None: a line is sent when another is back.

    @ivar depth: How many lines may be in flight on each. None: any number.

    @ivar lines: How many in all. None: no bound.

    @ivar duration: For how long, in seconds. None: no bound.

    @ivar churn: After how many lines a connection is replaced. None: never.

    @ivar soak: Are connections replaced that have ended by themselves?
    """

    connections: int = 1
    rate: float | None = None
    depth: int | None = DEPTH
    lines: int | None = None
    duration: float | None = DURATION
    churn: int | None = None
    soak: bool = False


class _Client:
    """
    A connection of a load.

    @ivar quota: How many lines it may still be given. None: any number.
    """

    def __init__(self, connection: CheckedConnection, quota: int | None) -> None:
        self.connection = connection
        self.quota = quota
        self.given = 0


class Load:
    """
    A load.

    @ivar onInterval: Called once a second with what it was like.
    """

    def __init__(self, run: Run, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._left = plan.lines
        self._clients: list[_Client] = []
        self._next = 0
        self._waiting: deque[float] = deque(maxlen=_WAITING)
        self._due = 0
        self._begin: float | None = None
        self._scheduled = 0
        self._isOver = False
        self._begun = 0
        self._retries: set[Any] = set()
        self._calls: list[Any] = []
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

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        self._calls = [each for each in self._calls if each.active()]
        self._calls.append(self._run.reactor.callLater(delay, call))

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
        client = _Client(connection, self._plan.churn)
        if self._plan.soak and self._begin is not None:
            connection.connectTimeout = min(connection.connectTimeout, _ATTEMPT)
        connection.onOpen = lambda: self._opened(client)
        connection.onPassed = lambda count: self._passed(client, count)
        connection.onEnd = lambda: self._ended(client)
        self._clients.append(client)
        connection.begin()

    def _opened(self, client: _Client) -> None:
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

    def _ended(self, client: _Client) -> None:
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
        byUs = connection.ending == runs.CLOSED
        isReplaced = self._plan.soak or self._plan.churn is not None
        if isReplaced and self._run.opened and not self._isFinished():
            delay = 0.0 if connection.isOpen or byUs else _RETRY
            self._retryLater(delay)
        else:
            for other in list(self._clients):
                self._giveWaiting(other)
                if self._plan.rate is None and len(back):
                    self._give(other, 0, 0.0)
        self._checkDone()

    def _retryLater(self, delay: float) -> None:
        def retry() -> None:
            self._retries.discard(call)
            if self._isFinished():
                self._checkDone()
            else:
                self._connect()

        call = self._run.reactor.callLater(delay, retry)
        self._retries.add(call)

    def _isFinished(self) -> bool:
        """
        Is nothing left to be sent?
        """
        isOver = self._isOver or self._left == 0
        return isOver and not self._waiting

    def _checkDone(self) -> None:
        if self._clients or self._retries or self.done.called:
            return
        for call in self._calls:
            if call.active():
                call.cancel()
        if self._run.latency is not None:
            now = self._run.clock()
            self._run.latency.tick(self._run.time(self._lastTick), now - self._lastTick)
        self.done.callback(None)

    # Lines

    def _give(self, client: _Client, count: int, due: float) -> int:
        """
        Let a connection send lines that are due now.

        @return: How many.
        """
        if self._isOver:
            return 0
        count = self._grant(client, count)
        if self._left is not None:
            count = min(count, self._left)
            self._left -= count
        if count:
            client.given += count
            self._count(count)
            client.connection.give(count, due)
        return count

    def _grant(self, client: _Client, count: int) -> int:
        if client.quota is not None:
            count = min(count, client.quota)
            client.quota -= count
        return count

    def _hasRoom(self, client: _Client) -> bool:
        connection = client.connection
        depth = self._plan.depth
        return (
            connection.isOpen
            and connection.ending is None
            and client.quota != 0
            and (depth is None or connection.inFlight < depth)
        )

    def _giveWaiting(self, client: _Client) -> None:
        """
        Lines that were due before, and found no room.
        """
        given = False
        while self._waiting and self._hasRoom(client):
            self._grant(client, 1)
            client.connection.give(1, self._waiting.popleft())
            given = True
        if given:
            client.connection.pump()

    def _passed(self, client: _Client, count: int) -> None:
        self._count(-count)
        if self._plan.rate is None:
            if self._give(client, count, self._run.clock()):
                client.connection.pump()
        elif self._waiting:
            self._giveWaiting(client)
        if self._isOver or self._left == 0 or client.quota == 0:
            self._checkEnd(client)

    def _checkEnd(self, client: _Client) -> None:
        """
        When all is back that a connection was to send, it ends.
        """
        connection = client.connection
        isLast = client.quota == 0 or self._isFinished()
        if isLast and connection.isOpen and connection.inFlight == 0:
            connection.sendEnd()

    def _count(self, change: int) -> None:
        """
        So many lines more are due, or are no more.
        """
        self._due += change
        if self._plan.rate is None:
            if self._isOver and self._due <= 0:
                self._run.owedSince = None
        elif self._due <= 0:
            self._run.owedSince = None
        elif self._run.owedSince is None:
            self._run.owedSince = self._run.clock()

    def _stopGiving(self) -> None:
        """
        Nothing more becomes due.
        """
        self._isOver = True
        for retry in list(self._retries):
            if retry.active() and self._isFinished():
                retry.cancel()
                self._retries.discard(retry)
        if not self._clients:
            # Nobody is left who could send what waits.
            self._waiting.clear()
        self._count(0)
        for client in list(self._clients):
            self._checkEnd(client)
        self._checkDone()

    # Time

    def _tick(self) -> None:
        """
        Give the lines that have become due.
        """
        rate = self._plan.rate
        if self._isOver or rate is None or self._begin is None:
            return
        now = self._run.clock()
        pauses = self._run.pauses
        if pauses is not None:
            pauses.look(now)
        isFirst = True
        touched: list[_Client] = []
        while True:
            due = self._begin + self._scheduled / rate
            if due > now:
                break
            if self._left == 0:
                break
            if isFirst and pauses is not None:
                pauses.note(now - due)
            isFirst = False
            self._scheduled += 1
            if self._left is not None:
                self._left -= 1
            self._count(1)
            client = None if self._waiting else self._nextClient()
            if client is None:
                self._waiting.append(due)
            else:
                self._grant(client, 1)
                client.connection.give(1, due)
                touched.append(client)
        for client in dict.fromkeys(touched):
            client.connection.pump()
        if self._left == 0:
            for client in list(self._clients):
                self._checkEnd(client)
            return
        following = self._begin + self._scheduled / rate
        self._later(max(_TICK, following - self._run.clock()), self._tick)

    def _nextClient(self) -> _Client | None:
        for _ in range(len(self._clients)):
            self._next = (self._next + 1) % len(self._clients)
            client = self._clients[self._next]
            if self._hasRoom(client):
                return client
        return None

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

    def _probe(self, client: _Client, now: float) -> None:
        """
        After a difference, nothing comes any more: one more line shows where the place is, or the
        end does.
        """
        connection = client.connection
        if (
            connection.isOpen
            and connection.comparison.difference is not None
            and now - connection.lastReceived > QUIET
        ):
            if self._give(client, 1, now):
                connection.pump()
            elif self._isFinished() or client.quota == 0:
                connection.sendEnd()
