"""
Where connections live in the tests that run in memory: only the clock and the reactor are not real.
"""

import contextlib
import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from kvserver.connections.handover import LocalHandover
from kvserver.connections.limits import Limits
from kvserver.connections.poller import Poller
from kvserver.connections.record import ConnectionRecord
from kvserver.connections.registry import Connections
from kvserver.connections.transport import Transport
from kvserver.echo.factory import EchoFactory
from kvserver.listening.route import Route
from kvserver.served import unitOf
from tests.support.daemon import PATIENCE, waitFor

CLIENT_ADDRESS = IPv4Address("TCP", "192.0.2.1", 1024)
"""
Where most pairs come from.
"""

PLENTY = bytes(range(256)) * 4096
"""
More than a socket takes.
"""

STEP = 0.05
"""
How long a turn of the reactor is, in seconds.
"""


class Recorder(Protocol):
    """
    Keeps what happens to it.

    @ivar events: That.

    @ivar paused: How often it has been paused.

    @ivar whenReceived: Is called with what is received.
    """

    transport: Transport

    def __init__(self) -> None:
        self.events: list[object] = []
        self.whenReceived: Callable[[bytes], object] = self.events.append
        self.paused = 0

    def dataReceived(self, data: bytes) -> None:
        """
        See L{Protocol}.
        """
        self.whenReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        See L{Protocol}.
        """
        self.events.append(reason.type)

    def readConnectionLost(self) -> None:
        """
        See L{IHalfCloseableProtocol}.
        """
        self.events.append("end")

    def writeConnectionLost(self) -> None:
        """
        See L{IHalfCloseableProtocol}.
        """
        self.events.append("our end")

    def pauseProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        self.paused += 1

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        self.events.append("resumed")

    def stopProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        self.events.append("stopped")


class RecorderFactory(ServerFactory):
    """
    Builds a L{Recorder} for each connection.
    """

    protocol = Recorder
    noisy = False


@dataclass(eq=False)
class Pair:
    """
    A connection, seen from both its ends.

    @ivar transport: Ours.

    @ivar peer: The other one.

    @ivar protocol: What speaks with the peer; None if it was refused, or has not come so far.
    """

    transport: Transport
    peer: socket.socket
    protocol: Any = field(init=False)

    def __post_init__(self) -> None:
        self.protocol = self.transport.protocol

    @property
    def record(self) -> ConnectionRecord:
        """
        What is known of the connection.
        """
        return self.transport.record

    def isSilent(self) -> bool:
        """
        Has nothing come to the peer, not even the end?
        """
        return not isReadable(self.peer)

    def unread(self) -> int:
        """
        How many bytes the peer's kernel has for the peer.
        """
        (count,) = struct.unpack("i", fcntl.ioctl(self.peer, termios.FIONREAD, bytes(4)))
        return int(count)

    def unacknowledged(self) -> int:
        """
        How many bytes our kernel has for the peer's, without our FIN.
        """
        return self.transport.queued(termios.TIOCOUTQ) - self.transport._outputEnded

    def isSettled(self) -> bool:
        """
        Has the peer's kernel taken nothing for longer than TCP waits before it fills a window that
        is too small for a whole segment (RFC 9293, section 3.8.6.1: here 0.2 s)?
        """
        before = self.unread(), self.unacknowledged()
        time.sleep(0.3)
        return before == (self.unread(), self.unacknowledged())

    def reset(self) -> None:
        """
        The peer closes with something unread: our side is reset.
        """
        with contextlib.suppress(OSError):
            self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


class Watched:
    """
    The socket of a pair: what is sent is known, and it may take nothing for a while.

    @ivar sends: How many bytes each send has taken.

    @ivar refusals: How many sends are still to be refused.
    """

    def __init__(self, pair: Pair) -> None:
        transport: Any = pair.transport
        self._opened = transport.socket
        self.sends: list[int] = []
        self.refusals = 0
        transport.socket = self

    def send(self, data: Any) -> int:
        """
        Send, or refuse to.
        """
        if self.refusals:
            self.refusals -= 1
            raise BlockingIOError
        sent: int = self._opened.send(data)
        self.sends.append(sent)
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)


class KnownConnections(Connections):
    """
    Connections of which the last one that was accepted is known, be it refused at once.
    """

    latest: Transport | None = None

    def accepted(self, transport: Any) -> None:
        """
        See L{Connections}.
        """
        super().accepted(transport)
        self.latest = transport


class MemoryServer:
    """
    Connections over socket pairs, the poller that watches them, and a clock.

    @ivar ended: The records of those connections that have ended.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        factory: ServerFactory | None = None,
        trusted: tuple[IPv4Network | IPv6Network, ...] | None = None,
        verbose: bool = False,
    ) -> None:
        """
        @param factory: Builds the protocols; by default those of the echo.

        @param trusted: Who may send a PROXY header, if there is to be one.

        @param verbose: Are begin and end of each connection to be logged?
        """
        self.clock = MemoryReactorClock()
        self.poller = Poller(self.clock)
        self.ended: list[ConnectionRecord] = []
        self.factory = factory or EchoFactory()
        self.connections = KnownConnections(
            self.clock, limits or Limits(), self.ended.append, verbose, unitOf(self.factory)
        )
        self.handover = LocalHandover(self.factory)
        self.route = Route(self.connections, self.poller, self.handover, trusted)
        self.peers: list[socket.socket] = []

    def enter(self, address: IAddress = CLIENT_ADDRESS, overTCP: bool = False) -> Pair:
        """
        Somebody connects.

        @param overTCP: Is the socket pair to be one of TCP? The kernel is a little slower with it.
        """
        accepted, peer = tcpPair() if overTCP else socket.socketpair()
        accepted.setblocking(False)
        peer.settimeout(PATIENCE)
        self.peers.append(peer)
        self.route.enter(accepted, ConnectionRecord("tcp:0", address))
        transport, self.connections.latest = self.connections.latest, None
        assert transport is not None
        return Pair(transport, peer)

    def turn(self) -> None:
        """
        The reactor finds the poller readable, and then nothing else to do.
        """
        self.poller.doRead()
        self.clock.advance(0)

    def passes(self, seconds: float) -> None:
        """
        Time passes, in small steps; in each the reactor has a turn.
        """
        for _ in range(round(seconds / STEP)):
            self.clock.advance(STEP)
            self.turn()

    def waitUntilFull(self, pair: Pair) -> None:
        """
        Wait, while the server has its turns and no time passes, until the peer's kernel has taken
        all that it takes.
        """

        def isSettled() -> bool:
            self.turn()
            return pair.isSettled()

        waitFor(isSettled, "all that the peer's kernel takes")

    def collect(self, peer: socket.socket, size: int) -> bytes:
        """
        Receive so many bytes, while the server has its turns.
        """
        received = bytearray()
        deadline = time.monotonic() + PATIENCE
        while len(received) < size:
            assert time.monotonic() < deadline
            self.turn()
            if isReadable(peer):
                received += peer.recv(1 << 20)
        return bytes(received)

    def close(self) -> None:
        """
        All leave; nothing of them remains.
        """
        for peer in self.peers:
            peer.close()
        for _ in self.peers:
            self.turn()
        for transport in self.connections:
            transport.connectionLost(connectionDone)
        assert len(self.connections) == 0
        assert self.poller.removeAll() == []


def timesOpen(path: Path) -> int:
    """
    Return how often this process has the file open. What else it has open may change meanwhile: the
    garbage collector closes what earlier tests have left.
    """
    return [link.resolve() for link in Path("/proc/self/fd").iterdir()].count(path.resolve())


def isReadable(descriptor: Any) -> bool:
    """
    Can it be read from at once?
    """
    return bool(select.select([descriptor], [], [], 0)[0])


def tcpPair() -> tuple[socket.socket, socket.socket]:
    """
    Two sockets that are connected by TCP.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname(), PATIENCE)
        accepted, _ = listening.accept()
    return accepted, peer
