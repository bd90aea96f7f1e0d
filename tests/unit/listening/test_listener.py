"""
The listening socket: its troubles on a fake clock, its ways with the kernel on loopback.
"""

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from kvserver.connections.connection import Connection
from kvserver.connections.handover import LocalHandover
from kvserver.connections.limits import Limits
from kvserver.connections.poller import Poller
from kvserver.connections.record import CloseReason
from kvserver.connections.registry import Connections
from kvserver.connections.throttle import REPEAT_INTERVAL
from kvserver.connections.transport import Transport
from kvserver.listening.bindings import TCPBinding
from kvserver.listening.listener import (
    ACCEPT_BACKOFF,
    ACCEPTS_PER_TURN,
    CHECK_INTERVAL,
    RECOVERY_PERIOD,
    Listener,
)
from kvserver.listening.route import Route
from kvserver.listening.sockets import BACKLOG
from kvserver.listening.specification import ListenerSpec
from tests.support.clients import needsIPv6
from tests.support.daemon import PATIENCE
from tests.support.memory import MemoryServer

# Accepting.


class Socket(socket.socket):
    """
    A listening socket whose accept(2) does what a test says.

    @ivar outcomes: What it does, in order; then it does what the kernel says.

    @ivar asked: How often it was asked.
    """

    asked = 0

    def __init__(self, outcomes: list[int]) -> None:
        super().__init__()
        self.outcomes = outcomes

    def accept(self) -> tuple[socket.socket, Any]:
        """
        Fail with the next error number; 0: do not fail.
        """
        self.asked += 1
        number = self.outcomes.pop(0) if self.outcomes else 0
        if number:
            raise OSError(number, os.strerror(number))
        return super().accept()


class ScriptedBinding(TCPBinding):
    """
    An address with a socket that does what a test says.
    """

    def __init__(self) -> None:
        super().__init__(0, "127.0.0.1")
        self.outcomes: list[int] = []

    def listen(self) -> socket.socket:
        """
        Listen.
        """
        listening = Socket(self.outcomes)
        listening.setblocking(False)
        listening.bind((self.interface, self.port))
        listening.listen()
        self.port = listening.getsockname()[1]
        return listening


class ListeningServer(MemoryServer):
    """
    A memoryServer with a listener.

    @ivar died: The reasons with which it died.

    @ivar outcomes: What accept(2) does.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits)
        self.died: list[Exception] = []
        self.address = ScriptedBinding()
        self.outcomes = self.address.outcomes
        self.listener = Listener(
            self.clock,
            ListenerSpec("tcp:0", (), self.address),
            self.route,
            self.connections,
            self.poller,
            self.died.append,
        )
        self.listener.setName("tcp:0")

    @property
    def reading(self) -> bool:
        """
        Would the poller tell the listener of a client?
        """
        return self.listener in self.poller.getReaders()

    @property
    def socket(self) -> Socket:
        """
        The listening socket.
        """
        return cast(Socket, self.listener._socket)

    def connect(self) -> None:
        """
        A client connects.
        """
        client = socket.create_connection(("127.0.0.1", self.address.port), PATIENCE)
        self.peers.append(client)

    def close(self) -> None:
        """
        The end.
        """
        self.listener.stopService()
        super().close()


def leaves(transport: Connection) -> None:
    """
    A connection has ended.
    """
    transport.connectionLost(connectionDone)


@pytest.fixture
def harness() -> Iterator[ListeningServer]:
    """
    A listener that listens.
    """
    harness = ListeningServer()
    harness.listener.startService()
    yield harness
    harness.close()


def test_descriptor(harness: ListeningServer) -> None:
    """
    The listener is what the reactor takes it for.
    """
    assert verifyObject(IReadDescriptor, harness.listener)
    assert harness.listener.logPrefix() == "tcp:0"


def test_listensOnce() -> None:
    """
    twistd calls both methods, twist only the second one. The real port is logged.
    """
    for both in True, False:
        harness = ListeningServer()
        with capturedLogs() as logs:
            if both:
                harness.listener.privilegedStartService()
            harness.listener.startService()
        (event,) = logs
        assert event["log_format"].format(**event) == (
            f"Accepting connections on port {harness.address.port}"
        )
        assert harness.address.port > 0
        assert (event["port"], event["listener"]) == (harness.address.port, "tcp:0")
        harness.close()


def test_stopsWithoutStart() -> None:
    """
    A listener that never listened can be stopped.
    """
    ListeningServer().listener.stopService()


def test_acceptsOne(harness: ListeningServer) -> None:
    """
    Who comes alone is accepted, and the kernel is not asked for a second one.
    """
    for count in range(1, 4):
        harness.connect()
        harness.turn()
        assert len(harness.connections) == count
        assert harness.socket.asked == count
        harness.turn()
        assert harness.socket.asked == count


def test_acceptsWhoIsWaiting(harness: ListeningServer) -> None:
    """
    All who wait are accepted in one turn, up to a bound.
    """
    for _ in range(5):
        harness.connect()
    harness.turn()
    assert len(harness.connections) == 5
    for _ in range(ACCEPTS_PER_TURN + 3):
        harness.connect()
    harness.turn()
    assert len(harness.connections) == 5 + 1 + ACCEPTS_PER_TURN
    harness.turn()
    assert len(harness.connections) == 5 + 3 + ACCEPTS_PER_TURN


def test_acceptsWhenAskedAgain(harness: ListeningServer) -> None:
    """
    One is accepted in a turn, and as many as there are when the poller asks again in the same one.
    """
    for _ in range(5):
        harness.connect()
    for count in range(1, 3):
        harness.poller.turn += 1
        harness.listener.doRead()
        assert len(harness.connections) == count
    harness.listener.doRead()
    assert len(harness.connections) == 5


def test_firstLine(harness: ListeningServer) -> None:
    """
    A client whose first line is there already has its echo in the same turn.
    """
    harness.connect()
    (client,) = harness.peers
    client.sendall(b"hello\n")
    harness.turn()
    assert client.recv(100) == b"hello\n"
    (transport,) = harness.connections
    assert transport.record.listener == "tcp:0"
    assert transport.getPeer() == IPv4Address("TCP", *client.getsockname())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_exhausted(harness: ListeningServer, number: int) -> None:
    """
    When accept(2) can't, the listener tries again after 100 ms; it says so once, and once when it
    has been well for a second, with how often it was not.
    """
    harness.connect()
    harness.outcomes[:] = [number] * 30
    with capturedLogs() as logs:
        for _ in range(30):
            assert harness.reading
            harness.turn()
            assert not harness.reading
            harness.clock.advance(ACCEPT_BACKOFF)
        harness.turn()
        assert len(harness.connections) == 1
        harness.clock.advance(RECOVERY_PERIOD - ACCEPT_BACKOFF)
    assert [event["log_level"] for event in logs] == [LogLevel.warn, LogLevel.info]
    assert logs[0]["reason"] == os.strerror(number)
    assert logs[1]["count"] == 30
    assert harness.died == []


def test_oneConnectionFails(harness: ListeningServer) -> None:
    """
    The error of one connection does not keep the next one waiting.
    """
    harness.connect()
    harness.outcomes[:] = [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETUNREACH]
    with capturedLogs() as logs:
        harness.turn()
    assert len(harness.connections) == 1
    assert not logs
    assert harness.reading


def test_eachConnectionFails(harness: ListeningServer) -> None:
    """
    When there is no end of them the listener does not spin.
    """
    harness.outcomes[:] = [errno.EPROTO] * ACCEPTS_PER_TURN
    harness.connect()
    harness.turn()
    assert not harness.reading
    harness.clock.advance(ACCEPT_BACKOFF)
    assert harness.reading
    harness.turn()
    assert len(harness.connections) == 1


def test_unknownError(harness: ListeningServer) -> None:
    """
    An error that nothing is known of is the death of the listener, once.
    """
    harness.connect()
    harness.outcomes[:] = [errno.EINVAL]
    harness.turn()
    assert [str(reason) for reason in harness.died] == [f"[Errno 22] {os.strerror(22)}"]
    assert not harness.reading
    harness.turn()
    harness.clock.advance(10 * CHECK_INTERVAL)
    assert len(harness.died) == 1


def test_full() -> None:
    """
    When there is no room nobody is accepted; who waits is when there is.
    """
    harness = ListeningServer(Limits(maxConnections=2))
    harness.listener.startService()
    for _ in range(4):
        harness.connect()
    harness.turn()
    assert len(harness.connections) == 2
    assert not harness.reading
    first, _ = harness.connections
    leaves(first)
    assert harness.reading
    harness.turn()
    assert len(harness.connections) == 2
    assert not harness.reading
    harness.close()


def test_roomDuringAPause() -> None:
    """
    Room for a connection does not end the pause of an accept(2) that can't.
    """
    harness = ListeningServer(Limits(maxConnections=1))
    harness.listener.startService()
    harness.connect()
    harness.connect()
    harness.turn()
    assert not harness.reading
    (first,) = harness.connections
    leaves(first)
    # Another listener than ours may fill the room again, and empty it.
    other = harness.enter().transport
    harness.turn()
    assert not harness.reading
    leaves(other)
    assert harness.reading
    harness.outcomes[:] = [errno.ENFILE]
    harness.turn()
    other = harness.enter().transport
    assert not harness.connections.hasRoom()
    harness.connections.onNextEnd(harness.listener._resume)
    leaves(other)
    assert not harness.reading
    harness.clock.advance(ACCEPT_BACKOFF)
    assert harness.reading
    harness.close()


def test_connectionThatCannotBegin(harness: ListeningServer) -> None:
    """
    A factory or protocol that raises loses that one connection; one that gives no protocol refuses
    it.
    """

    class Unable(Protocol):
        def connectionMade(self) -> None:
            raise ZeroDivisionError

    def raising() -> Protocol:
        raise ZeroDivisionError

    builders: list[Callable[[], Protocol | None]] = [raising, lambda: None, Unable]

    class Factory(ServerFactory):
        def buildProtocol(self, addr: object) -> Protocol | None:
            return builders.pop(0)()

    harness.handover._factory = Factory()
    with capturedLogs() as logs:
        for _ in range(3):
            harness.connect()
            harness.turn()
    assert builders == []
    assert [event["log_level"] for event in logs] == [LogLevel.error] * 2
    endings = [record.reason for record in harness.ended]
    assert endings == [CloseReason.ERROR, CloseReason.REFUSED, CloseReason.ERROR]
    for client in harness.peers:
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert harness.reading


def test_connectionFromNowhere(harness: ListeningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A connection whose address can't be told is lost alone.
    """

    def nowhere(name: object) -> object:
        raise socket.gaierror("nowhere")

    harness.connect()
    with monkeypatch.context() as patched, capturedLogs() as logs:
        patched.setattr("kvserver.listening.listener.fromSockaddr", nowhere)
        harness.turn()
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    assert harness.peers[0].recv(1) == b""
    harness.connect()
    harness.turn()
    assert len(harness.connections) == 1


def test_connectionThatCannotBeWatched(
    harness: ListeningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A connection that the poller has no room for is lost alone, and leaves nothing open.
    """

    def full(reader: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    harness.connect()
    with monkeypatch.context() as patched, capturedLogs() as logs:
        patched.setattr(harness.poller, "addReader", full)
        harness.turn()
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    with contextlib.suppress(ConnectionResetError):
        assert harness.peers[0].recv(1) == b""
    assert harness.died == []
    assert harness.poller.getReaders() == [harness.listener]
    assert [record.reason for record in harness.ended] == [CloseReason.ERROR]
    harness.connect()
    harness.turn()
    assert len(harness.connections) == 1


def test_cannotBeWatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A listener that the poller has no room for does not start, and can be stopped, and tried again.
    """

    def full(reader: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    harness = ListeningServer()
    with monkeypatch.context() as patched:
        patched.setattr(harness.poller, "addReader", full)
        with pytest.raises(OSError, match="No space left"):
            harness.listener.startService()
    assert not harness.listener.isListening()
    harness.listener.stopService()
    harness.listener.startService()
    assert harness.listener.isListening()
    harness.close()


# Its own death.


def shutDown(listening: socket.socket) -> None:
    listening.shutdown(socket.SHUT_RDWR)


def closed(listening: socket.socket) -> None:
    os.close(listening.fileno())


def replaced(listening: socket.socket) -> None:
    with open(os.devnull) as file:
        os.dup2(file.fileno(), listening.fileno())


def usurped(listening: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        os.dup2(other.fileno(), listening.fileno())


@pytest.mark.parametrize("breaks", [shutDown, closed, replaced, usurped])
def test_noticesItsDeath(harness: ListeningServer, breaks: Callable[[socket.socket], None]) -> None:
    """
    However its socket breaks, the listener notices, once; stopped then, it leaves alone what has
    its file descriptor now.
    """
    assert harness.listener.isListening()
    harness.clock.advance(CHECK_INTERVAL)
    assert harness.died == []
    listening = harness.socket
    descriptor = listening.fileno()
    breaks(listening)
    assert not harness.listener.isListening()
    harness.clock.advance(CHECK_INTERVAL)
    assert len(harness.died) == 1
    assert not harness.reading
    harness.clock.advance(CHECK_INTERVAL)
    assert len(harness.died) == 1
    harness.listener.stopService()
    if breaks in (replaced, usurped):
        os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    # The address is free.
    harness.address.listen().close()


def test_diesWhileItIsLookedAt(harness: ListeningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A socket that breaks between two looks at it is as dead as any.
    """
    monkeypatch.setattr(harness.listener, "_isSameSocket", lambda listening: True)
    closed(harness.socket)
    harness.clock.advance(CHECK_INTERVAL)
    assert len(harness.died) == 1
    monkeypatch.undo()


def test_selectorDies(harness: ListeningServer) -> None:
    """
    A reactor that can't watch the listener any more is its death, too.
    """
    harness.listener.connectionLost(Failure(ZeroDivisionError("lost")))
    assert [str(reason) for reason in harness.died] == ["lost"]


# The end.


def test_stopAcceptsWhoIsWaiting() -> None:
    """
    Who was connected before the stop is served, even beyond the limit.
    """
    harness = ListeningServer(Limits(maxConnections=1))
    harness.listener.startService()
    for _ in range(3):
        harness.connect()
    harness.outcomes[:] = [0, errno.ECONNABORTED]
    harness.listener.stopService()
    assert len(harness.connections) == 3
    with pytest.raises(ConnectionRefusedError):
        harness.connect()
    # What the log is kept from repeating.
    harness.clock.advance(REPEAT_INTERVAL)
    assert harness.clock.getDelayedCalls() == []
    harness.close()


def test_stopAcceptsTheBacklog() -> None:
    """
    As many are accepted at the stop as the backlog has, also if it is longer than ours by default.
    """
    harness = ListeningServer()
    harness.address.backlog = 2 * BACKLOG
    harness.listener.startService()
    harness.connect()
    harness.outcomes[:] = [errno.ECONNABORTED] * (2 * BACKLOG)
    harness.listener.stopService()
    assert len(harness.connections) == 1
    harness.close()


def test_stopWithoutDescriptors() -> None:
    """
    Who was connected before the stop, and finds no file descriptor, is served when others have
    left.
    """
    harness = ListeningServer()
    harness.listener.startService()
    for _ in range(3):
        harness.connect()
    harness.outcomes[:] = [0, errno.EMFILE, errno.EMFILE]
    harness.listener.stopService()
    (first,) = harness.connections
    # Another one has had the file descriptor.
    other = harness.enter().transport
    leaves(first)
    assert list(harness.connections) == [other]
    leaves(other)
    assert len(harness.connections) == 2
    harness.close()


def test_stopDuringAPause(harness: ListeningServer) -> None:
    """
    A listener that is stopped while it pauses leaves nothing behind.
    """
    harness.connect()
    harness.outcomes[:] = [errno.ENFILE]
    harness.turn()
    harness.listener.stopService()
    assert harness.clock.getDelayedCalls() == []
    assert not harness.reading


# On the real reactor.


class Accepted(ServerFactory):
    """
    Gives the next connection that is accepted.
    """

    noisy = False

    def __init__(self) -> None:
        self.next: Deferred[Transport] = Deferred()

    def buildProtocol(self, addr: object) -> Protocol:
        """
        Build it.
        """
        protocol = Protocol()
        protocol.connectionMade = lambda: self.next.callback(protocol.transport)  # type: ignore
        return protocol


@pytest_twisted.async_yield_fixture
async def listening() -> AsyncIterator[tuple[Accepted, int]]:
    """
    A listener on the real reactor, and its port.
    """
    factory = Accepted()
    where = TCPBinding(0)
    connections = Connections(reactor, Limits())
    poller = Poller(reactor)
    route = Route(connections, poller, LocalHandover(factory))
    spec = ListenerSpec("tcp:0", (), where)
    listener = Listener(reactor, spec, route, connections, poller, print)
    listener.startService()
    yield factory, where.port
    listener.stopService()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needsIPv6)])
@pytest_twisted.ensureDeferred
async def test_accepted(listening: tuple[Accepted, int], host: str) -> None:
    """
    An accepted connection sends small echoes at once, notices a peer that has vanished, and shows
    both its ends as the peer knows them.
    """
    factory, port = listening
    client = await connectProtocol(HostnameEndpoint(reactor, host, port), Protocol())
    server = await factory.next
    assert server.getTcpNoDelay()
    assert server.getTcpKeepAlive()
    assert client.transport is not None
    assert server.getPeer() == client.transport.getHost()
    assert server.getHost() == client.transport.getPeer()
    assert isinstance(server.getPeer(), IPv6Address if ":" in host else IPv4Address)
    assert server.logPrefix() == f"Protocol,1,{host}"
    assert repr(server) == f"<Protocol,1,{host}>"
    client.transport.abortConnection()
    server.abortConnection()
