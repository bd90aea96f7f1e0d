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

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Cooperator, LoopingCall, deferLater
from twisted.logger import Logger

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

    @ivar since: When one of them last changed.
    """

    __slots__ = ("received", "since", "unsent")

    def __init__(self, now: float) -> None:
        self.received = 0
        self.unsent: int | None = 0
        self.since = now

    def look(self, protocol: EchoProtocol, now: float) -> float:
        """
        Look again.

        @return: For how many seconds nothing has come or gone.
        """
        if protocol.received != self.received:
            self.received = protocol.received
            self.unsent = None
            self.since = now
        elif self.unsent != 0:
            # While bytes come in this is not reached, and when all has been sent not any more: the
            # connections that cost a system call are those that have just fallen silent, or hang.
            unsent = _queued(protocol, termios.TIOCOUTQ)
            if self.unsent is not None and unsent != self.unsent:
                self.since = now
            self.unsent = unsent
        return now - self.since


def _queued(protocol: EchoProtocol, request: int) -> int:
    """
    How many bytes of a connection are in the kernel: C{FIONREAD}, received and not read;
    C{TIOCOUTQ}, sent and not acknowledged (tcp(7), unix(7)).
    """
    (count,) = struct.unpack("i", ioctl(protocol.transport.getHandle(), request, bytes(4)))
    assert isinstance(count, int)
    return count


class Connections(Service):
    """
    Every live connection; the place of the guide's C{Task.Supervisor}.

    A connection is temporary, in the sense of OTP: one that ends, for whatever reason, is forgotten
    and never restarted.

    Time-outs are found by looking at all connections every now and then, which costs a connection
    nothing for each line. A quarter of the shortest time-out is often enough.
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
        self._sources: dict[str | None, int] = {}
        self._mayLog = OncePerMinute(reactor.seconds)
        self._waiting: list[Callable[[], None]] = []
        self._drained: Deferred[None] | None = None
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
        if self.limits.perSource:
            source = sourceOf(protocol.transport.getPeer())
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
        waiting, self._waiting = self._waiting, []
        for accept in waiting:
            accept()
        if self._drained and not self._live:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def whenRoom(self, accept: Callable[[], None]) -> bool:
        """
        May one more connection be accepted?

        @param accept: If not: is called when one has ended.
        """
        if len(self._live) < self._most:
            return True
        self._waiting.append(accept)
        return False

    def admits(self, address: IAddress | None) -> bool:
        """
        May one more connection come from there?
        """
        source = address and sourceOf(address)
        limit = self.limits.perSource
        if not (limit and source and self._sources.get(source, 0) >= limit):
            return True
        if self._mayLog(source):
            self._log.warn(
                "{source} has {limit} connections: more are refused", source=source, limit=limit
            )
        return False

    def startService(self) -> None:
        """
        Take as many file descriptors as the process may have, and begin to look for time-outs.
        """
        super().startService()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        shortest = min(self.limits.write, self.limits.idle or self.limits.write)
        self._looking.start(shortest / 4)

    def stopService(self) -> Deferred[None]:
        """
        Drain: close each connection as soon as it is at rest, and abort those that are not when the
        time is over. At rest is a connection with no line begun, nothing unread, nothing unsent.

        @return: Fires when there is no connection left.
        """
        super().stopService()
        self._looking.stop()
        if not self._live:
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
        deadline = self._reactor.callLater(seconds, self.abort)

        def drained(_: None) -> None:
            looking.stop()
            if deadline.active():
                deadline.cancel()

        return self._drained.addCallback(drained)

    def abort(self) -> None:
        """
        Wait no longer: reset what is still connected.
        """
        if self._live:
            self._log.warn("{count} connections did not come to rest: aborted", count=len(self))
        for protocol in self:
            protocol.transport.abortConnection()

    def _lookingCall(self) -> LoopingCall:
        call = LoopingCall(lambda: self._cooperator.coiterate(self._look()))
        call.clock = self._reactor
        return call

    def _look(self) -> Iterator[Deferred[None] | None]:
        closed = 0
        for protocol in self:
            try:
                closed += self._judge(protocol)
            except Exception:
                self._log.failure("A connection could not be looked at, and is aborted")
                protocol.transport.abortConnection()
            # A close is only begun here: the work comes in the reactor's next turn, and must not
            # be too much for those who are served in the same one.
            yield deferLater(self._reactor, 0) if closed and closed % CLOSED_AT_ONCE == 0 else None

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
