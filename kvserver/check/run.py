"""
What all connections of a run share: their numbers, their ends, their faults.
"""

import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zope.interface import Attribute, Interface

from kvserver.check.faults import LISTED, Faults
from kvserver.check.latency import Latency, Pauses
from kvserver.check.stream import Pool, Stream
from kvserver.check.target import Address, Target

CLOSED = "closed"
DROPPED = "dropped"
CUT = "cut"
RESET = "reset"
TIMEOUT = "timeout"
REFUSED = "refused"
ALERT = "alert"

GAP = 0.1
"""
A time without any echo that is at least so long is listed, in seconds.
"""

SWEEP = 0.02

_LOOKS = 5
"""
In every fifth sweep all connections are looked at: there may be thousands.
"""


@dataclass(frozen=True)
class Settings:
    """
    How to connect, and what to send.

    @ivar context: What TLS needs; None: no TLS.

    @ivar serverName: Whose certificate is asked for.

    @ivar proxyVersion: 1 or 2.

    @ivar proxySource: The client that a PROXY header names: an address, and a port, which may be 0.
        None: our end.

    @ivar sizes: The length of the shortest and of the longest line, in bytes.

    @ivar timeout: The bound of each wait, in seconds.

    @ivar hasBanner: Does the other side send a line of its own before the echo?
    """

    target: Target
    context: ssl.SSLContext | None
    serverName: str | None
    proxyVersion: int
    proxySource: tuple[str, int] | None
    sizes: tuple[int, int]
    binary: bool
    timeout: float
    hasBanner: bool = False


@dataclass(frozen=True)
class End:
    """
    How a connection ended.

    @ivar local: Our end of it; None: it was not established.

    @ivar offset: How many bytes had come back.

    @ivar outstanding: How many had been sent, and not come back.

    @ivar time: When, by the monotonic clock, in seconds.
    """

    connection: int
    local: str | None
    ending: str
    offset: int
    outstanding: int
    time: float


@dataclass
class Gap:
    """
    A time without any echo, though lines were due.

    @ivar time: When it began: the last echo before it, by the monotonic clock, in seconds.

    @ivar duration: Until the first echo after it, in seconds.

    @ivar lost: How many connections ended in it.
    """

    time: float
    duration: float
    lost: int


class IChecked(Interface):
    """
    A connection, as a run sees it.
    """

    linesSent = Attribute("Whole lines that were sent.")
    linesReturned = Attribute("Lines that came back in their place.")
    bytesSent = Attribute("Bytes that were sent.")
    bytesReturned = Attribute("Bytes that came back in their place.")

    def look(now: float) -> None:
        """
        Has a wait been too long?
        """

    def close() -> None:
        """
        End it by our own doing.
        """


class Run:
    """
    A run, from its first connection to its last end.

    @ivar begin: When the first connection was begun, by the monotonic clock, in seconds.

    @ivar lastEnd: When the last connection ended.

    @ivar live: The connections that have not ended.

    @ivar addresses: Those of the target.

    @ivar sizes: How long the lines of some connections are, by their number, if it is not as the
        settings have it.

    @ivar owedSince: Since when lines are due without a break; None: none is.

    @ivar whyNot: Why a connection did not come about, the first time.
    """

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        settings: Settings,
        addresses: list[Address],
        seed: int,
        latency: Latency | None = None,
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime} and C{IReactorFDSet}.

        @param clock: The monotonic clock, in seconds.

        @param seed: What makes the lines of this run differ from those of others.

        @param latency: Takes the times, if they are wanted.
        """
        self.reactor = reactor
        self.clock = clock
        self.settings = settings
        self.addresses = addresses
        self.pool = Pool(seed, settings.binary)
        self.latency = latency
        self.begin = self.lastEnd = clock()
        self.pauses = Pauses(self.begin, SWEEP) if latency is not None else None
        self.faults = Faults()
        self.endings: Counter[str] = Counter()
        self.ends: list[End] = []
        self.gaps: list[Gap] = []
        self.opened = 0
        self.live: set[IChecked] = set()
        self.sizes: dict[int, tuple[int, int]] = {}
        self.whyNot: str | None = None
        self.interrupted = False
        self.onEnd: Callable[[End], None] = lambda end: None
        self.owedSince: float | None = None
        self._lastEcho = self.begin
        self._lost = 0
        self._pausesBefore = 0.0
        self._begun = 0
        self._sums: Counter[str] = Counter()
        self._sweepCall: Any = None
        self._sweepDue = 0.0
        self._sweeps = 0

    def start(self) -> None:
        """
        Look after all waits from now on.
        """
        self.begin = self.lastEnd = self._lastEcho = self.clock()
        self._sweepDue = self.begin
        self._sweep()

    def stop(self) -> None:
        """
        Do no more.
        """
        if self._sweepCall is not None and self._sweepCall.active():
            self._sweepCall.cancel()

    def _sweep(self) -> None:
        now = self.clock()
        if self.pauses is not None:
            self.pauses.look(now)
            self.pauses.note(now - self._sweepDue)
            self.pauses.late.take()
        self._sweeps += 1
        if self._sweeps % _LOOKS == 0:
            for connection in list(self.live):
                connection.look(now)
        self._sweepDue = self.clock() + SWEEP
        self._sweepCall = self.reactor.callLater(SWEEP, self._sweep)

    def begins(self, connection: IChecked) -> int:
        """
        A connection is begun.

        @return: Its number.
        """
        self.live.add(connection)
        self._begun += 1
        return self._begun - 1

    @property
    def isInVain(self) -> bool:
        """
        Has not one connection come about, of those that were begun?
        """
        return self.opened == 0 and (self._begun > 0 or self.interrupted)

    def foreign(self, connection: int) -> Stream:
        """
        The lines of the connection of that number.
        """
        return Stream(self.pool, connection, self.sizes.get(connection, self.settings.sizes))

    def echoed(self, now: float) -> None:
        """
        Something came back.
        """
        if now - self._lastEcho >= GAP:
            self._checkGap(now)
        self._lastEcho = now
        self._lost = 0
        if self.pauses is not None:
            self._pausesBefore = self.pauses.total

    def _checkGap(self, now: float) -> None:
        begin = self._lastEcho
        own = 0.0 if self.pauses is None else self.pauses.total - self._pausesBefore
        # Our own pauses are not the path's.
        if self.owedSince is None or now - max(begin, self.owedSince) - own < GAP:
            return
        if len(self.gaps) < LISTED:
            self.gaps.append(Gap(begin, now - begin, self._lost))

    def finish(self) -> None:
        """
        No connection is left: a gap that is still open ends here.
        """
        self.stop()
        if self.owedSince is not None:
            self._checkGap(self.clock())

    def noteEnd(self, connection: IChecked, end: End) -> None:
        """
        A connection, or an attempt, has ended.
        """
        self.live.discard(connection)
        self.lastEnd = end.time
        self.endings[end.ending] += 1
        for name in ("linesSent", "linesReturned", "bytesSent", "bytesReturned"):
            self._sums[name] += getattr(connection, name)
        if end.ending != CLOSED:
            self._lost += end.local is not None
            if len(self.ends) < LISTED:
                self.ends.append(end)
        self.onEnd(end)

    def total(self, name: str) -> int:
        """
        The sum of one of the counters of all connections.
        """
        living = sum(int(getattr(connection, name)) for connection in self.live)
        return self._sums[name] + living

    def time(self, moment: float) -> float:
        """
        A moment, counted from the beginning of the run, in seconds.
        """
        return round(max(0.0, moment - self.begin), 6)
