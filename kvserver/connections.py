"""
Who is connected, who may connect, and how they leave.
"""

import resource
import struct
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from ipaddress import ip_network
from typing import Any
from typing import Protocol as Structure

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Cooperator, LoopingCall, deferLater
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper

from kvserver.protocol import EchoProtocol

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


class Opening(Structure):
    """
    A protocol that has no client yet.
    """

    @property
    def transport(self) -> Server:
        """
        Its transport.
        """


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


class OncePerMinute:
    """
    Keeps a source that repeats itself from filling the log.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """
        @param seconds: The clock, as C{IReactorTime.seconds}.
        """
        self._seconds = seconds
        self._said: dict[str, float] = {}

    def __call__(self, source: str) -> bool:
        """
        May this source be logged now?
        """
        now = self._seconds()
        # The oldest come first.
        for known in list(self._said):
            if self._said[known] > now - 60:
                break
            del self._said[known]
        if source in self._said:
            return False
        self._said[source] = now
        return True


class _Watch:
    """
    What the last look at a connection has found.

    @ivar received: How many bytes had come in.

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

    def look(self, protocol: EchoProtocol, now: float) -> float:
        """
        Look again.

        @return: For how many seconds nothing has come or gone.
        """
        received = protocol.received
        if isinstance(protocol.transport, ProtocolWrapper):
            # TLS: what is on its way may be no line, and not even a byte, for a while.
            received += protocol.transport.received
        if received != self.received:
            self.received = received
            self.unsent = None
            self.settled = False
            self.since = now
        elif not self.settled:
            # Only connections that have just fallen silent, or hang, cost a system call. One look
            # is not enough to settle it: what the transport still holds reaches the kernel by the
            # next.
            before, self.unsent = self.unsent, _queued(protocol, termios.TIOCOUTQ)
            self.settled = before == self.unsent == 0
            if before is not None and before != self.unsent:
                self.since = now
        return now - self.since


def _queued(protocol: EchoProtocol, request: int) -> int:
    """
    How many bytes of a connection are in the kernel: C{FIONREAD}, received and not read;
    C{TIOCOUTQ}, sent and not acknowledged (tcp(7), unix(7)).
    """
    transport: Any = protocol.transport
    while isinstance(transport, ProtocolWrapper):
        # TLS: the socket is the one below.
        transport = transport.transport
    (count,) = struct.unpack("i", ioctl(transport.getHandle(), request, bytes(4)))
    assert isinstance(count, int)
    return count


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

    def __init__(self, reactor: Any, limits: Limits) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param limits: What the connections are held to.
        """
        self._reactor = reactor
        self.limits = limits
        self._most = limits.connections or mostConnections()
        self._live: dict[EchoProtocol, _Watch] = {}
        self._opening: set[Opening] = set()
        self._sources: dict[str | None, int] = {}
        self._linesOfEnded = 0
        self._mayLog = OncePerMinute(reactor.seconds)
        self._waiting: list[Callable[[], None]] = []
        self._drained: Deferred[None] | None = None
        self._hurried = False
        # Takes turns with the traffic: 5,000 connections that time out together delay nobody.
        self._cooperator = Cooperator(scheduler=lambda turn: reactor.callLater(0, turn))
        self._looking = self._lookingCall()

    def __len__(self) -> int:
        """
        How many there are.
        """
        return len(self._live)

    def __iter__(self) -> Iterator[EchoProtocol]:
        """
        Each of them, as of now: it may end, and others may begin, while the caller goes through
        them.
        """
        return iter(list(self._live))

    @property
    def lines(self) -> int:
        """
        How many lines have been served, on these and on those that have ended.
        """
        return self._linesOfEnded + sum(protocol.lines for protocol in self._live)

    def add(self, protocol: EchoProtocol) -> None:
        """
        C{protocol} is connected.
        """
        self._live[protocol] = _Watch(self._reactor.seconds())
        if self.limits.perSource:
            source = sourceOf(protocol.transport.getPeer())
            self._sources[source] = self._sources.get(source, 0) + 1
        if len(self._live) == self._most and self._mayLog("all"):
            self._log.warn(
                "{count} connections: no more are accepted until one ends", count=self._most
            )

    def discard(self, protocol: EchoProtocol) -> None:
        """
        C{protocol} is connected no more.
        """
        if self._live.pop(protocol, None) is None:
            return
        self._linesOfEnded += protocol.lines
        if self.limits.perSource:
            source = sourceOf(protocol.transport.getPeer())
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
        self._left()

    def opening(self, protocol: Opening) -> None:
        """
        C{protocol} is connected, but to a balancer that has not said yet for whom. It counts.
        """
        self._opening.add(protocol)

    def opened(self, protocol: Opening) -> None:
        """
        C{protocol} has left its place to that of the client, or is connected no more.
        """
        if protocol in self._opening:
            self._opening.remove(protocol)
            self._left()

    def _left(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
        if self._drained and not (self._live or self._opening):
            drained, self._drained = self._drained, None
            drained.callback(None)

    def whenRoom(self, accept: Callable[[], None]) -> bool:
        """
        May one more connection be accepted?

        @param accept: If not: is called when one has ended.
        """
        if len(self._live) + len(self._opening) < self._most:
            return True
        self.whenLeft(accept)
        return False

    def whenLeft(self, call: Callable[[], None]) -> None:
        """
        Call, once, when one connection has ended.
        """
        self._waiting.append(call)

    def admits(self, address: IAddress | None) -> bool:
        """
        May one more connection come from there?
        """
        source = address and sourceOf(address)
        limit = self.limits.perSource
        if not (limit and address and source and self._sources.get(source, 0) >= limit):
            return True
        self.warnOfSource(
            address, "{source} has {limit} connections: more are refused", limit=limit
        )
        return False

    def warnOfSource(self, address: IAddress, text: str, **fields: object) -> None:
        """
        Log a warning, at most once a minute for each source and text.

        @param address: An address of the source.

        @param text: The format of the warning, in which C{source} is the source.

        @param fields: What else is in it.
        """
        source = sourceOf(address) or "a UNIX socket"
        if self._mayLog(f"{source} {text}"):
            self._log.warn(text, source=source, **fields)

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
        self._looking.stop()
        if not (self._live or self._opening):
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
        deadline = self._reactor.callLater(0 if self._hurried else seconds, self._abort)

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
            self._abort()

    def _abort(self) -> None:
        left = [*self._live, *self._opening]
        self._log.warn("{count} connections did not come to rest: aborted", count=len(left))
        for protocol in left:
            protocol.transport.abortConnection()

    def _lookingCall(self) -> LoopingCall:
        call = LoopingCall(lambda: self._cooperator.coiterate(self._look()))
        call.clock = self._reactor
        return call

    def _look(self) -> Iterator[Deferred[None] | None]:
        closed = 0
        for protocol in self:
            try:
                closing = self._judge(protocol)
            except Exception:
                self._log.failure("A connection could not be looked at, and is aborted")
                protocol.transport.abortConnection()
                closing = True
            closed += closing
            # A close is only begun here: the work comes in the reactor's next turn, and must not
            # be too much for those who are served in the same one.
            enough = closing and closed % CLOSED_AT_ONCE == 0
            yield deferLater(self._reactor, 0) if enough else None

    def _judge(self, protocol: EchoProtocol) -> bool:
        """
        Close the connection if its time has come.

        @return: Has it been closed?
        """
        watch = self._live.get(protocol)
        if watch is None:
            # It has ended while others were looked at.
            return False
        silent = watch.look(protocol, self._reactor.seconds())
        if watch.unsent:
            if silent < self.limits.write:
                return False
            protocol.transport.abortConnection()
        elif self._drained:
            if silent < REST or protocol.unfinished or _queued(protocol, termios.FIONREAD):
                return False
            protocol.close()
        else:
            if not 0 < self.limits.idle <= silent:
                return False
            protocol.close()
        return True
