"""
Which connection sends how many lines, and when: by a schedule, or as others come back.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvserver.check.connection import CheckedConnection
from kvserver.check.run import Run
from kvserver.check.timer import Timer

DEPTH = 16

DURATION = 10.0

_TICK = 0.0001
"""
The least time between two looks at what is due, in seconds.
"""

_WAITING = 1_000_000
"""
How many lines may be due and not sent. If there are more, the path does not take them, and the
oldest are left out.
"""


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


class Client:
    """
    A connection of a load.

    @ivar quota: How many lines it may still be given. None: any number.

    @ivar begun: When it was begun, by the monotonic clock, in seconds.
    """

    def __init__(self, connection: CheckedConnection, quota: int | None, begun: float) -> None:
        self.connection = connection
        self.quota = quota
        self.begun = begun


class Giving:
    """
    Gives lines to the connections of a load.
    """

    def __init__(self, run: Run, plan: Plan) -> None:
        """
        @param run: Whose connections they are.
        """
        self._run = run
        self._plan = plan
        self._left = plan.lines
        self._clients: list[Client] = []
        self._next = 0
        self._waiting: deque[float] = deque(maxlen=_WAITING)
        self._due = 0
        self._begin: float | None = None
        self._scheduled = 0
        self._isOver = False
        self._calls: list[Any] = []
        self._timer = Timer(run.reactor, self._tick)

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        self._calls = [each for each in self._calls if each.active()]
        self._calls.append(self._run.reactor.callLater(delay, call))

    def _isFinished(self) -> bool:
        """
        Is nothing left to be sent?
        """
        isOver = self._isOver or self._left == 0
        return isOver and not self._waiting

    def _give(self, client: Client, count: int, due: float) -> int:
        """
        Let a connection send lines that are due now.

        @return: How many.
        """
        if self._isOver:
            return 0
        if self._left is not None:
            count = min(count, self._left)
        count = self._grant(client, count)
        if self._left is not None:
            self._left -= count
        if count:
            self._count(count)
            client.connection.give(count, due)
        return count

    def _grant(self, client: Client, count: int) -> int:
        """
        Take so many lines from what a connection may still be given.

        @return: How many there were.
        """
        if client.quota is not None:
            count = min(count, client.quota)
            client.quota -= count
        return count

    def _hasRoom(self, client: Client) -> bool:
        """
        Can this connection be given one more line?
        """
        connection = client.connection
        depth = self._plan.depth
        return (
            connection.isOpen
            and connection.ending is None
            and client.quota != 0
            and connection.inFlight < (depth or _WAITING)
        )

    def _giveWaiting(self, client: Client) -> None:
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
            if self._isFinished():
                self._checkEnds()

    def _passed(self, client: Client, count: int) -> None:
        self._count(-count)
        if self._plan.rate is None:
            if self._give(client, count, self._run.clock()):
                client.connection.pump()
        elif self._waiting:
            self._giveWaiting(client)
        if self._isOver or self._left == 0 or client.quota == 0:
            self._checkEnd(client)

    def _checkEnd(self, client: Client) -> None:
        """
        When all is back that a connection was to send, it ends.
        """
        connection = client.connection
        isLast = client.quota == 0 or self._isFinished()
        if isLast and connection.isOpen and connection.inFlight == 0:
            connection.sendEnd()

    def _checkEnds(self) -> None:
        for client in list(self._clients):
            self._checkEnd(client)

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
        touched: list[Client] = []
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
            self._checkEnds()
            return
        following = self._begin + self._scheduled / rate
        self._timer.start(max(_TICK, following - self._run.clock()))

    def _nextClient(self) -> Client | None:
        for _ in range(len(self._clients)):
            self._next = (self._next + 1) % len(self._clients)
            client = self._clients[self._next]
            if self._hasRoom(client):
                return client
        return None
