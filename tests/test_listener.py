"""
The listening socket: in memory where that is enough, else with the kernel's own on loopback.
"""

import errno
import socket
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest
import pytest_twisted
from twisted.internet import reactor as globalReactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.interfaces import IReactorSocket
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactor
from twisted.logger import LogEvent, capturedLogs

from kvserver.listener import BACKLOG, CannotListen, Listener, bind
from tests.clients import needsIPv6

reactor = cast(IReactorSocket, globalReactor)


class Accepted(ServerFactory):
    """
    Gives the next connection that is accepted.
    """

    noisy = False

    def __init__(self) -> None:
        self.next: Deferred[Server] = Deferred()

    def buildProtocol(self, addr: object) -> Protocol:
        protocol = Protocol()
        protocol.connectionMade = lambda: self.next.callback(protocol.transport)  # type: ignore
        return protocol


def announced(logs: Sequence[LogEvent]) -> int:
    """
    The port that a listener has logged.
    """
    (event,) = (event for event in logs if "port" in event)
    assert event["log_format"].format(**event) == f"Accepting connections on port {event['port']}"
    port = event["port"]
    assert isinstance(port, int)
    return port


@needsIPv6
def test_bindDualStack() -> None:
    """
    Without an interface one socket takes IPv4 and IPv6.
    """
    with bind(0) as listening:
        assert listening.family == socket.AF_INET6
        port = listening.getsockname()[1]
        for host in "127.0.0.1", "::1":
            socket.create_connection((host, port)).close()


@pytest.mark.parametrize(
    ("interface", "other"),
    [
        pytest.param("127.0.0.1", "::1", marks=needsIPv6),
        pytest.param("::1", "127.0.0.1", marks=needsIPv6),
    ],
)
def test_bindInterface(interface: str, other: str) -> None:
    """
    With an interface nothing else is taken.
    """
    with bind(0, interface) as listening:
        port = listening.getsockname()[1]
        socket.create_connection((interface, port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, port))


@needsIPv6
def test_bindAnyIPv6() -> None:
    """
    C{::} is all of IPv6, and no IPv4.
    """
    with bind(0, "::") as listening:
        port = listening.getsockname()[1]
        socket.create_connection(("::1", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("interface", ["", "127.0.0.1", pytest.param("::1", marks=needsIPv6)])
def test_bindInUse(interface: str) -> None:
    """
    An address in use is told in one line, with where and why, and leaves no socket open.
    """
    with bind(0, interface) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            bind(port, interface)
    where = f"{interface} port {port}" if interface else f"port {port}"
    assert str(caught.value) == f"Cannot listen on {where}: Address already in use"
    assert caught.value.socketError.errno == errno.EADDRINUSE


def test_bindUnknownScope() -> None:
    """
    An IPv6 address on a network interface that isn't there is told as well.
    """
    with pytest.raises(CannotListen, match=r"^Cannot listen on fe80::1%nowhere port 4040: \w+"):
        bind(4040, "fe80::1%nowhere")


def test_backlog() -> None:
    """
    Clients that come faster than they are accepted wait in the kernel, they are not dropped.
    """
    assert BACKLOG == 1024
    with bind(0, "127.0.0.1") as listening:
        clients = [socket.create_connection(listening.getsockname(), 5) for _ in range(500)]
        for client in clients:
            client.close()


def test_adopted() -> None:
    """
    The reactor gets a socket that does not block, and the socket's real port is logged.
    """
    reactor = MemoryReactor()
    factory = Accepted()
    with capturedLogs() as logs:
        Listener(reactor, factory, 0, "127.0.0.1").privilegedStartService()
    assert announced(logs) > 0
    ((_, family, adoptedFactory),) = reactor.adoptedPorts
    assert family == socket.AF_INET
    assert adoptedFactory is factory


def test_listensOnce() -> None:
    """
    twistd calls both methods, twist only the second one.
    """
    both, second = MemoryReactor(), MemoryReactor()
    listener = Listener(both, Accepted(), 0)
    listener.privilegedStartService()
    listener.startService()
    assert len(both.adoptedPorts) == 1
    listener = Listener(second, Accepted(), 0)
    listener.startService()
    assert len(second.adoptedPorts) == 1


def test_stopsWithoutStart() -> None:
    """
    A listener that never listened can be stopped.
    """
    done: list[object] = []
    Listener(MemoryReactor(), Accepted(), 0).stopService().addCallback(done.append)
    assert done == [None]


@pytest_twisted.async_yield_fixture
async def listening() -> AsyncIterator[tuple[Accepted, int]]:
    """
    A listener on the real reactor, and its port.
    """
    factory = Accepted()
    listener = Listener(reactor, factory, 0)
    with capturedLogs() as logs:
        listener.startService()
    yield factory, announced(logs)
    await listener.stopService()


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
    assert server.logPrefix() == f"Protocol,0,{host}"
    client.transport.abortConnection()
    server.abortConnection()


@pytest_twisted.ensureDeferred
async def test_stops() -> None:
    """
    A stopped listener refuses, and can listen again.
    """
    listener = Listener(reactor, Accepted(), 0)
    for _ in range(2):
        with capturedLogs() as logs:
            listener.startService()
        port = announced(logs)
        socket.create_connection(("127.0.0.1", port)).close()
        await listener.stopService()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
