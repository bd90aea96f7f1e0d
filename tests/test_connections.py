"""
The registry of live connections, and the factory that builds into it.
"""

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from kvserver.connections import Connections
from kvserver.factory import EchoFactory
from kvserver.protocol import EchoProtocol


def connected(factory: EchoFactory) -> EchoProtocol:
    """
    A connection that the factory has built a protocol for.
    """
    protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1024))
    protocol.makeConnection(StringTransport())
    return protocol


def test_everyLiveConnection() -> None:
    """
    A connection counts from when it is made until it is lost, for whatever reason.
    """
    connections = Connections()
    factory = EchoFactory(connections)
    first, second = connected(factory), connected(factory)
    assert set(connections) == {first, second}
    first.connectionLost(Failure(ConnectionLost()))
    assert list(connections) == [second]
    second.connectionLost()
    assert len(connections) == 0


def test_endsWhileIterating() -> None:
    """
    Connections may end while somebody goes through them.
    """
    connections = Connections()
    factory = EchoFactory(connections)
    connected(factory), connected(factory)
    for protocol in connections:
        protocol.connectionLost()
    assert len(connections) == 0


def test_factory() -> None:
    """
    Each connection gets a protocol of its own, that knows its factory.
    """
    factory = EchoFactory(Connections())
    first, second = connected(factory), connected(factory)
    assert first is not second
    assert first.factory is factory
