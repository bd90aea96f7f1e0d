"""
Who is connected, who may connect, and how they leave.
"""

import resource
import termios
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Cooperator, LoopingCall, deferLater
from twisted.logger import Logger, LogLevel

from kvserver.record import Ending, Record, shown
from kvserver.transport import Transport

RESERVED_FDS = 32
"""
How many file descriptors the default of C{--max-connections} leaves for all that is no connection:
the log, the listeners, the reactor's own, and one that is accepted only to be refused.
"""

REST = 0.3
"""
For how long, in seconds, a connection must have been silent before a drain takes it to be at rest:
a client that sends without pause is not cut in between two segments.
"""

DRAIN_INTERVAL = 0.1
"""
How often a drain looks for connections at rest, in seconds.
"""

LOOKS = 8
"""
How often connections are looked at in the shortest time-out. It takes up to two looks longer than
the time-out to find a connection.
"""

MINUTE = 60.0
"""
How long what was logged is not logged again, in seconds.
"""

KNOWN = 1000
"""
How many different things are kept from filling the log, each by itself.
"""

DURATIONS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
"""
By which durations connections are told apart in the metrics, in seconds.
"""

CLOSED_AT_ONCE = 50
"""
How many connections are closed by us in one turn of the reactor.
"""


def mostConnections() -> int:
    """
    How many connections the hard limit of file descriptors admits.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, hard - RESERVED_FDS)


def sourceOf(address: IAddress) -> str | None:
    """
    What counts as one source: an IPv4 address; of an IPv6 address its /64, which is what one
    subscriber has; none for what is no IP.
    """
    if isinstance(address, IPv4Address):
        return address.host
    if isinstance(address, IPv6Address):
        host, _, _ = address.host.partition("%")
        return str(ip_network((host, 64), strict=False))
    return None


@dataclass(frozen=True)
class Limits:
    """
    What the connections are held to.

    @ivar connections: The most there may be at a time; 0: as many as file descriptors allow.

    @ivar perSource: The most there may be at a time from one source; 0: no limit.

    @ivar idle: For how many seconds nothing may come or go before a connection is closed; 0: for
        ever.

    @ivar write: For how many seconds a client may leave its echo unread.

    @ivar drain: For how many seconds a stop waits for connections to come to rest.
    """

    connections: int = 0
    perSource: int = 0
    idle: int = 0
    write: int = 60
    drain: int = 15


REPEATED = ("", " ({count} times in a minute)")
"""
What is added to the format of what is logged once a minute: once it has happened, and more often.
"""


class OncePerMinute:
    """
    Keeps what repeats itself from filling the log: it is logged at once, and then once a minute as
    long as it goes on, with how often it has happened.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: Provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._counts: dict[str, int] = {}

    def __call__(self, what: str, log: Callable[[int], None]) -> None:
        """
        It has happened.

        @param what: Tells it from all else. Past L{KNOWN} different ones in a minute all more are
            one.

        @param log: Logs it, with how often it has happened since it was logged last.
        """
        if what not in self._counts and len(self._counts) >= KNOWN:
            what = "more"
        if what in self._counts:
            self._counts[what] += 1
        else:
            self._log(what, 1, log)

    def _log(self, what: str, count: int, log: Callable[[int], None]) -> None:
        self._counts[what] = 0
        self._reactor.callLater(MINUTE, self._expire, what, log)
        log(count)

    def _expire(self, what: str, log: Callable[[int], None]) -> None:
        count = self._counts.pop(what)
        if count:
            self._log(what, count, log)


class _Watch:
    """
    What the last look at a connection has found.

    @ivar received: What progress there had been of what comes in.

    @ivar unsent: How many bytes of the echo the peer had not acknowledged; None before it was
        asked.

    @ivar settled: Can nothing be unsent any more, until something comes in?

    @ivar since: When something last came or went.
    """

    __slots__ = ("received", "settled", "since", "unsent")

    def __init__(self, now: float) -> None:
        self.received = 0
        self.unsent: int | None = 0
        self.settled = True
        self.since = now

    def look(self, transport: Transport, now: float) -> float:
        """
        Look again.

        @return: For how many seconds nothing has come or gone.
        """
        received = transport.progress()
        if received != self.received:
            self.received = received
            self.unsent = None
            self.settled = False
            self.since = now
        elif not self.settled:
            # Only connections that have just fallen silent, or hang, cost a system call. One look
            # is not enough to settle it: what the transport still holds reaches the kernel by the
            # next.
            before, self.unsent = self.unsent, transport.queued(termios.TIOCOUTQ)
            self.settled = before == self.unsent == 0
            if before is not None and before != self.unsent:
                self.since = now
        return now - self.since


class Totals:
    """
    What all connections have come to that have ended.

    @ivar accepted: How many have begun; these have not all ended.

    @ivar ended: How many have ended, by the reason.

    @ivar work: How much the protocols have done.

    @ivar received: How many bytes have come in.

    @ivar sent: How many bytes have been sent back.

    @ivar durations: How many have lasted at most so long as L{DURATIONS} says, and longer than what
        is before; at last, how many have lasted longer than that.

    @ivar seconds: How long they have lasted together.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.ended = dict.fromkeys(Ending, 0)
        self.work = 0
        self.received = 0
        self.sent = 0
        self.durations = [0] * (len(DURATIONS) + 1)
        self.seconds = 0.0

    def add(self, record: Record, ending: Ending, seconds: float) -> None:
        """
        One more has ended.
        """
        self.ended[ending] += 1
        self.work += record.work
        self.received += record.received
        self.sent += record.sent
        self.durations[bisect_left(DURATIONS, seconds)] += 1
        self.seconds += seconds


class Connections(Service):
    """
    Every live connection; the place of the guide's C{Task.Supervisor}.

    A connection is temporary, in the sense of OTP: one that ends, for whatever reason, is forgotten
    and never restarted.

    Time-outs are found by looking at all connections every now and then, which costs a connection
    nothing for each line.
    """

    name = "connections"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        limits: Limits,
        report: Callable[[Record], None] | None = None,
        verbose: bool = False,
        unit: str | None = None,
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param limits: What the connections are held to.

        @param report: Is called with the record of each connection that has ended.

        @param verbose: Log the begin and the end of each connection? twistd has no levels, and
            would always show it.

        @param unit: What the protocols count, if they do.

        @ivar totals: What they have come to so far.

        @ivar acceptPauses: How often nothing was accepted for a while, since accept(2) could not.
        """
        self._reactor = reactor
        self.limits = limits
        self._most = limits.connections or mostConnections()
        self._live: dict[Transport, _Watch] = {}
        self._sources: dict[str, int] = {}
        self._report = report
        self._verbose = verbose
        self.unit = unit
        self.totals = Totals()
        self.acceptPauses = 0
        self._oncePerMinute = OncePerMinute(reactor)
        self._waiting: list[Callable[[], None]] = []
        self._drained: Deferred[None] | None = None
        self._hurried = False
        self._stopping = False
        # Takes turns with the traffic: 5,000 connections that time out together delay nobody.
        self._cooperator = Cooperator(scheduler=lambda turn: reactor.callLater(0, turn))
        self._looking = self._lookingCall()

    def __len__(self) -> int:
        """
        How many there are, with those that have no client yet.
        """
        return len(self._live)

    def __iter__(self) -> Iterator[Transport]:
        """
        Each of them, as of now: it may end, and others may begin, while the caller goes through
        them.
        """
        return iter(list(self._live))

    def counts(self) -> tuple[int, int, int]:
        """
        How much the protocols have done, and how many bytes have come in and have been sent, on
        these connections and on those that have ended.
        """
        work, received, sent = self.totals.work, self.totals.received, self.totals.sent
        for transport in self._live:
            work += transport.work
            received += transport.record.received
            sent += transport.record.sent
        return work, received, sent

    @property
    def draining(self) -> bool:
        """
        Has the end begun?
        """
        return self._stopping

    def accepted(self, transport: Transport) -> None:
        """
        A connection has been accepted. From now on it counts.
        """
        record = transport.record
        self.totals.accepted += 1
        record.number = self.totals.accepted
        record.begun = self._reactor.seconds()
        record.unit = self.unit
        self._live[transport] = _Watch(record.begun)
        if self._verbose:
            self._log.debug(
                "Connection {number} from {peer} on {listener}",
                number=record.number,
                peer=shown(record.peer),
                listener=record.listener,
            )

    def ended(self, transport: Transport) -> None:
        """
        A connection has ended, and why is known. When all that is to be known of it is written
        down, it counts no more.
        """
        record = transport.record
        assert record.ending
        record.seconds = self._reactor.seconds() - record.begun
        self.totals.add(record, record.ending, record.seconds)
        try:
            if self._report is not None:
                self._report(record)
        finally:
            self._forget(transport)
        if self._verbose:
            self._log.debug(
                "Connection {number} ended: {ending}",
                number=record.number,
                ending=record.ending.value,
                **({} if record.unit is None else {record.unit: record.work}),
                seconds=record.seconds,
            )

    def _forget(self, transport: Transport) -> None:
        del self._live[transport]
        source = transport.source
        if source is not None:
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for call in waiting:
                call()
        if self._drained and not self._live:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def _logFull(self, count: int) -> None:
        text = "{connections} connections: no more are accepted until one ends"
        self._log.warn(text + REPEATED[count > 1], connections=self._most, count=count)

    def whenRoom(self, accept: Callable[[], None]) -> bool:
        """
        May one more connection be accepted?

        @param accept: If not: is called when one has ended.
        """
        if len(self._live) < self._most:
            return True
        self._oncePerMinute("all", self._logFull)
        self.whenLeft(accept)
        return False

    def whenLeft(self, call: Callable[[], None]) -> None:
        """
        Call, once, when one connection has ended.
        """
        self._waiting.append(call)

    def admits(self, transport: Transport) -> bool:
        """
        May there be one more connection from its source? If so, it counts for that from now on.
        """
        limit = self.limits.perSource
        source = sourceOf(transport.getPeer()) if limit else None
        if source is None:
            return True
        count = self._sources.get(source, 0)
        if count >= limit:
            self.warnOfSource(
                transport.getPeer(),
                "{source} has {limit} connections: more are refused",
                limit=limit,
            )
            return False
        self._sources[source] = count + 1
        transport.source = source
        return True

    def warnOfSource(self, address: IAddress, text: str, **fields: object) -> None:
        """
        Log a warning, at most once a minute for each source and text.

        @param address: An address of the source.

        @param text: The format of the warning, in which C{source} is the source.

        @param fields: What else is in it.
        """
        source = sourceOf(address) or "a UNIX socket"
        self._oncePerMinute(
            f"{source} {text}",
            lambda count: self._log.warn(
                text + REPEATED[count > 1], source=source, count=count, **fields
            ),
        )

    def startService(self) -> None:
        """
        Take as many file descriptors as the process may have, and begin to look for time-outs.
        """
        super().startService()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        shortest = min(self.limits.write, self.limits.idle or self.limits.write)
        self._looking.start(shortest / LOOKS)

    def stopService(self) -> Deferred[None]:
        """
        Drain: close each connection as soon as it is at rest, and abort those that are not when the
        time is over. At rest is a connection with no line begun, nothing unread, nothing unsent.

        @return: Fires when there is no connection left.
        """
        super().stopService()
        self._stopping = True
        self._looking.stop()
        if not len(self):
            return succeed(None)
        seconds = self.limits.drain
        self._log.info(
            "Draining {count} connections, for at most {seconds} s",
            count=len(self),
            seconds=seconds,
        )
        self._drained = Deferred()
        looking = self._lookingCall()
        looking.start(DRAIN_INTERVAL)
        deadline = self._reactor.callLater(0 if self._hurried else seconds, self._abortAll)

        def drained(_: None) -> None:
            looking.stop()
            if deadline.active():
                deadline.cancel()

        return self._drained.addCallback(drained)

    def hurry(self) -> None:
        """
        Wait no longer for connections to come to rest, or not at all if the drain is still to come.
        """
        self._hurried = True
        if self._drained:
            self._abortAll()

    def _abort(self, transport: Transport, ending: Ending) -> None:
        transport.record.ends(ending)
        transport.abortConnection()

    def _close(self, transport: Transport, ending: Ending) -> None:
        transport.record.ends(ending)
        transport.close()

    def _abortAll(self) -> None:
        self._log.warn("{count} connections did not come to rest: aborted", count=len(self))
        for transport in self:
            self._abort(transport, Ending.ABORTED)

    def _lookingCall(self) -> LoopingCall:
        call = LoopingCall(lambda: self._cooperator.coiterate(self._look()))
        call.clock = self._reactor
        return call

    def _look(self) -> Iterator[Deferred[None] | None]:
        closed = 0
        for transport in self:
            try:
                closing = self._judge(transport)
            except Exception:
                self._log.failure(
                    "A connection could not be looked at, and is aborted", level=LogLevel.error
                )
                self._abort(transport, Ending.ERROR)
                closing = True
            closed += closing
            # A close is only begun here: the work comes in the reactor's next turn, and must not
            # be too much for those who are served in the same one.
            enough = closing and closed % CLOSED_AT_ONCE == 0
            yield deferLater(self._reactor, 0) if enough else None

    def _judge(self, transport: Transport) -> bool:
        """
        Close the connection if its time has come.

        @return: Has it been closed?
        """
        watch = self._live.get(transport)
        if watch is None:
            # It has ended while others were looked at.
            return False
        silent = watch.look(transport, self._reactor.seconds())
        if watch.unsent:
            if silent < self.limits.write:
                return False
            self._abort(transport, Ending.WRITE_TIMEOUT)
        elif self._drained:
            if silent < REST or not transport.isIdle() or transport.queued(termios.FIONREAD):
                return False
            self._close(transport, Ending.DRAINED)
        else:
            if not 0 < self.limits.idle <= silent:
                return False
            self._close(transport, Ending.IDLE_TIMEOUT)
        return True
