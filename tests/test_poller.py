"""
The poller and the transports that it watches: over socket pairs, turn by turn.
"""

import socket
import struct
import weakref
from collections.abc import Callable, Iterator

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorFDSet, IReadDescriptor
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from kvserver.poller import BATCH, Poller
from kvserver.protocol import EchoProtocol
from kvserver.record import Ending, Record
from kvserver.transport import Transport

PLENTY = bytes(range(256)) * 4096
"""
More than a socket takes.
"""


class Recorder(Protocol):
    """
    Keeps what happens to it.

    @ivar paused: How often it has been paused.

    @ivar events: That.

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

    def pauseProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        self.paused += 1
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """
        See L{IPushProducer}.
        """
        self.events.append("resumed")
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """
        See L{IPushProducer}.
        """


class House:
    """
    A poller, and connections that it watches.
    """

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.poller = Poller(self.reactor)
        self.peers: list[socket.socket] = []
        self.protocols: list[Recorder] = []
        self.ended: list[Record] = []

    def enter(self) -> tuple[Recorder, Transport, socket.socket]:
        """
        One more connection.

        @return: The protocol, its transport, and the other end.
        """
        accepted, peer = socket.socketpair()
        peer.settimeout(10)
        protocol = Recorder()
        record = Record(len(self.peers), "socket pair", UNIXAddress(None), 0.0)
        transport = Transport(accepted, protocol, record, self.poller, self.ended.append)
        protocol.makeConnection(transport)
        self.peers.append(peer)
        self.protocols.append(protocol)
        return protocol, transport, peer

    def turn(self) -> None:
        """
        The reactor finds the poller readable.
        """
        self.poller.doRead()


@pytest.fixture
def house() -> Iterator[House]:
    """
    A house, that is empty in the end.
    """
    house = House()
    yield house
    for peer in house.peers:
        peer.close()
    for _ in house.peers:
        house.turn()
    for protocol in house.protocols:
        if protocol.transport.connected:
            protocol.transport.connectionLost(connectionDone)
    assert house.poller.removeAll() == []


def drain(peer: socket.socket, size: int, house: House) -> bytes:
    """
    Receive so many bytes, while the house has its turns.
    """
    received = bytearray()
    while len(received) < size:
        house.turn()
        received += peer.recv(1 << 20)
    return bytes(received)


def fill(transport: Transport) -> None:
    """
    Write more than is taken.
    """
    transport.write(PLENTY)


def reset(peer: socket.socket) -> None:
    """
    Close with something unread: the other side is reset.
    """
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


class TestPoller:
    """
    The poller.
    """

    def test_interfaces(self, house: House) -> None:
        """
        It is a reactor to the connections, and a file descriptor to the reactor.
        """
        assert verifyObject(IReactorFDSet, house.poller)
        assert verifyObject(IReadDescriptor, house.poller)
        assert house.poller.logPrefix()
        assert house.reactor.getReaders() == []
        house.enter()
        house.enter()
        assert house.reactor.getReaders() == [house.poller]

    def test_watched(self, house: House) -> None:
        """
        It knows what is watched, and for what; to say it twice is to say it once.
        """
        _, one, _ = house.enter()
        _, two, _ = house.enter()
        assert house.poller.getReaders() == [one, two]
        house.poller.addReader(one)
        house.poller.removeWriter(one)
        house.poller.addWriter(two)
        assert house.poller.getWriters() == [two]
        house.poller.removeReader(two)
        assert house.poller.getReaders() == [one]
        assert house.poller.removeAll() == [one, two]
        assert house.poller.getReaders() == house.poller.getWriters() == []

    def test_serves(self, house: House) -> None:
        """
        All that are ready are served in one turn.
        """
        connections = [house.enter() for _ in range(3)]
        for _, _, peer in connections[1:]:
            peer.sendall(b"hello\n")
        house.turn()
        assert [protocol.events for protocol, _, _ in connections] == [[], *[[b"hello\n"]] * 2]

    def test_batch(self, house: House) -> None:
        """
        There is an end to a turn, however many are ready.
        """
        connections = [house.enter() for _ in range(BATCH + 10)]
        for _, _, peer in connections:
            peer.sendall(b"hello\n")
        house.turn()
        assert sum(len(protocol.events) for protocol in house.protocols) == BATCH
        house.turn()
        assert {len(protocol.events) for protocol in house.protocols} == {1}

    def test_closedByAnother(self, house: House) -> None:
        """
        One that has been closed in the same turn by another is not served.
        """
        one, oneTransport, onePeer = house.enter()
        two, twoTransport, twoPeer = house.enter()
        one.whenReceived = lambda data: twoTransport.connectionLost(connectionDone)
        two.whenReceived = lambda data: oneTransport.connectionLost(connectionDone)
        onePeer.sendall(b"x")
        twoPeer.sendall(b"x")
        house.turn()
        assert sorted([one.events, two.events], key=len) == [[], [ConnectionDone]]

    def test_failsAlone(self, house: House) -> None:
        """
        A protocol that raises is closed; the others are served, in the same turn.
        """
        one, _, onePeer = house.enter()
        two, _, twoPeer = house.enter()
        one.whenReceived = lambda data: 1 / 0
        onePeer.sendall(b"x")
        twoPeer.sendall(b"x")
        with capturedLogs() as logs:
            house.turn()
        assert one.events == [ZeroDivisionError]
        assert onePeer.recv(1) == b""
        assert [record.ending for record in house.ended] == [Ending.ERROR]
        assert two.events == [b"x"]
        assert [event["log_level"] for event in logs] == [LogLevel.error]

    def test_failsTwice(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        One that raises again when it is told of its end is forgotten all the same.
        """
        one, transport, onePeer = house.enter()
        two, _, twoPeer = house.enter()
        one.whenReceived = lambda data: 1 / 0
        monkeypatch.setattr(one, "connectionLost", lambda reason: 1 / 0)
        onePeer.sendall(b"x")
        twoPeer.sendall(b"x")
        with capturedLogs() as logs:
            house.turn()
        assert two.events == [b"x"]
        assert transport not in house.poller.getReaders()
        assert len(logs) == 2
        assert house.ended == [transport.record]

    @pytest.mark.parametrize("waits", [False, True])
    def test_reset(self, house: House, waits: bool) -> None:
        """
        A reset ends the connection, whether we wait to read or to write.
        """
        protocol, transport, peer = house.enter()
        if waits:
            fill(transport)
            transport.stopReading()
        transport.write(b"unread")
        reset(peer)
        house.turn()
        assert protocol.events == [ConnectionLost]
        assert house.poller.removeAll() == []
        assert house.ended == [transport.record]
        assert transport.record.ending is Ending.RESET

    def test_end(self, house: House) -> None:
        """
        The peer's end of input ends the connection; one that can go on without input is told.
        """
        one, _, onePeer = house.enter()
        two, transport, twoPeer = house.enter()
        directlyProvides(two, IHalfCloseableProtocol)
        for peer in onePeer, twoPeer:
            peer.shutdown(socket.SHUT_WR)
        house.turn()
        assert one.events == [ConnectionDone]
        assert two.events == ["end"]
        transport.write(b"goodbye\n")
        assert twoPeer.recv(100) == b"goodbye\n"
        house.turn()
        assert two.events == ["end"]
        assert [record.ending for record in house.ended] == [Ending.CLIENT_CLOSED]

    def test_reactorEnds(self, house: House) -> None:
        """
        When the reactor ends so do the connections.
        """
        one, _, _ = house.enter()
        two, _, _ = house.enter()
        one.connectionLost = lambda reason: 1 / 0  # type: ignore[assignment, misc]
        with capturedLogs() as logs:
            house.poller.connectionLost(connectionDone)
        assert two.events == [ConnectionDone]
        assert len(house.ended) == 2
        assert logs[0]["connection"] == "Recorder,0,unix"


class TestTransport:
    """
    The transport.
    """

    def test_atOnce(self, house: House) -> None:
        """
        What the socket takes is sent at once.
        """
        _, transport, peer = house.enter()
        transport.write(b"one\n")
        assert peer.recv(100) == b"one\n"
        assert house.poller.getWriters() == []

    def test_order(self, house: House) -> None:
        """
        What is written while something waits comes after that.
        """
        _, transport, peer = house.enter()
        fill(transport)
        assert house.poller.getWriters() == [transport]
        transport.write(b"one\n")
        transport.writeSequence([b"two", b"\n"])
        whole = PLENTY + b"one\ntwo\n"
        assert drain(peer, len(whole), house) == whole
        house.turn()
        assert house.poller.getWriters() == []
        assert transport.record.unsent == 0
        transport.writeSequence([b"thr", b"ee\n"])
        transport.write(b"four\n")
        assert peer.recv(100) == b"three\nfour\n"

    def test_pause(self, house: House) -> None:
        """
        The producer is paused once, as soon as anything waits, and resumed when all has been sent.
        """
        protocol, transport, peer = house.enter()
        transport.registerProducer(protocol, True)
        transport.write(b"taken\n")
        assert protocol.paused == 0
        peer.sendall(b"unread")
        sent = 6
        while not house.poller.getWriters():
            assert protocol.paused == 0
            transport.write(PLENTY[:1000])
            sent += 1000
        assert protocol.paused == 1
        house.turn()
        assert protocol.events == []
        drain(peer, sent, house)
        house.turn()
        house.turn()
        assert protocol.events == ["resumed", b"unread"]
        # Much at once.
        fill(transport)
        assert protocol.paused == 2
        transport.unregisterProducer()

    def test_error(self, house: House) -> None:
        """
        A write that fails ends the connection in its own turn, not in that of the writer.
        """
        protocol, transport, peer = house.enter()
        transport.stopReading()
        reset(peer)
        transport.write(b"x")
        assert protocol.events == []
        house.turn()
        assert protocol.events == [ConnectionLost]
        transport.write(b"x")
        assert house.poller.removeAll() == []

    def test_writeAfterTheEnd(self, house: House) -> None:
        """
        Nothing is written to a connection that has ended.
        """
        _, transport, _ = house.enter()
        transport.connectionLost(connectionDone)
        transport.write(b"x")
        transport.cork()
        transport.write(b"x")
        transport.uncork()

    def test_cork(self, house: House) -> None:
        """
        What is written while it is corked is sent when it is not any more, after what waited.
        """
        _, transport, peer = house.enter()
        transport.cork()
        transport.uncork()
        transport.cork()
        transport.write(b"one\n")
        transport.writeSequence([b"two\n"])
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(100)
        transport.uncork()
        assert peer.recv(100) == b"one\ntwo\n"
        peer.settimeout(10)
        fill(transport)
        transport.cork()
        transport.write(b"three\n")
        transport.uncork()
        transport.write(b"four\n")
        assert drain(peer, len(PLENTY) + 11, house) == PLENTY + b"three\nfour\n"
        house.turn()
        assert transport.record.unsent == 0

    def test_closeCorked(self, house: House) -> None:
        """
        A close that comes while it is corked waits for what is held.
        """
        protocol, transport, peer = house.enter()
        transport.cork()
        transport.write(b"goodbye\n")
        transport.loseConnection()
        transport.uncork()
        house.turn()
        assert peer.recv(100) == b"goodbye\n"
        assert peer.recv(100) == b""
        assert protocol.events == [ConnectionDone]

    def test_closeAfterTheEnd(self, house: House) -> None:
        """
        A protocol that closes later than it hears of the end of input is closed then.
        """
        protocol, transport, peer = house.enter()
        directlyProvides(protocol, IHalfCloseableProtocol)
        peer.shutdown(socket.SHUT_WR)
        house.turn()
        transport.loseConnection()
        house.turn()
        assert protocol.events == ["end", ConnectionDone]

    def test_closeAtTheEnd(self, house: House) -> None:
        """
        A protocol that closes when it hears of the end of input is closed in the same turn if all
        has been sent, and else when it has been.
        """
        for plenty in False, True:
            protocol, transport, peer = house.enter()
            directlyProvides(protocol, IHalfCloseableProtocol)
            if plenty:
                fill(transport)
            protocol.readConnectionLost = transport.loseConnection  # type: ignore[method-assign]
            peer.shutdown(socket.SHUT_WR)
            house.turn()
            if plenty:
                assert protocol.events == []
                assert drain(peer, len(PLENTY), house) == PLENTY
                house.turn()
            assert protocol.events == [ConnectionDone]
            assert peer.recv(1) == b""

    def test_leavesNothing(self, house: House) -> None:
        """
        What a connection was is gone with it, without the garbage collector.
        """
        protocol, transport, _ = house.enter()
        transport.record.protocol = EchoProtocol(set())
        transport.record.protocol.transport = transport
        gone = weakref.ref(transport)
        transport.connectionLost(connectionDone)
        house.protocols.clear()
        house.ended.clear()
        del protocol, transport
        assert gone() is None
