"""
The transport and its farewell: over socket pairs, turn by turn.
"""

import contextlib
import socket
import termios
import weakref

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    ILoggingContext,
    IPushProducer,
    IReadWriteDescriptor,
    ISystemHandle,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer
from zope.interface.verify import verifyObject

from kvserver.connections.record import CloseReason
from kvserver.connections.stage import CLOSE_TIMEOUT, READ_SIZE, Farewell
from kvserver.connections.transport import Transport
from kvserver.interfaces import IDrainable
from tests.support.house import PLENTY, Guest, House, Recorder

LOST = Failure(ConnectionLost())


def fill(guest: Guest) -> None:
    """
    Write more than is taken.
    """
    guest.transport.write(PLENTY)


def exhaust(peer: socket.socket) -> None:
    """
    Receive all there is.
    """
    while peer.recv(1 << 20):
        pass


def halfCloseable(guest: Guest) -> None:
    """
    Let its protocol be one that can go on when one half has been closed.
    """
    directlyProvides(guest.protocol, IHalfCloseableProtocol)


@pytest.mark.parametrize(
    "interface",
    [
        ITCPTransport,
        IConsumer,
        IPushProducer,
        IReadWriteDescriptor,
        IHalfCloseableDescriptor,
        ISystemHandle,
        ILoggingContext,
    ],
)
def test_interfaces(house: House, interface: type) -> None:
    """
    It is what Twisted's protocols, and the poller, take it for.
    """
    assert verifyObject(interface, house.enter().transport)


class TestWriting:
    """
    What is written.
    """

    def test_atOnce(self, house: House) -> None:
        """
        What the socket takes is sent at once.
        """
        guest = house.enter()
        guest.transport.write(b"one\n")
        assert guest.peer.recv(100) == b"one\n"
        assert house.poller.getWriters() == []

    def test_order(self, house: House) -> None:
        """
        What is written while something waits comes after that.
        """
        guest = house.enter()
        fill(guest)
        assert house.poller.getWriters() == [guest.transport]
        guest.transport.write(b"one\n")
        guest.transport.writeSequence([b"two", b"\n"])
        whole = PLENTY + b"one\ntwo\n"
        assert house.collect(guest.peer, len(whole)) == whole
        house.turn()
        assert house.poller.getWriters() == []
        guest.transport.writeSequence([b"thr", b"ee\n"])
        guest.transport.write(b"four\n")
        assert guest.peer.recv(100) == b"three\nfour\n"

    def test_backPressure(self, house: House) -> None:
        """
        As long as anything waits the peer is not read from, whatever its protocol says; then it is.
        """
        guest = house.enter()
        fill(guest)
        guest.peer.sendall(b"unread")
        guest.transport.pauseProducing()
        guest.transport.resumeProducing()
        house.turn()
        assert guest.protocol.events == []
        assert house.poller.getReaders() == []
        assert house.collect(guest.peer, len(PLENTY)) == PLENTY
        house.turn()
        house.turn()
        assert guest.protocol.events == [b"unread"]

    def test_echo(self) -> None:
        """
        Of an echo that is not read no more is held than what was read at once.
        """
        house = House()
        guest = house.enter()
        guest.peer.setblocking(False)
        sent = 0
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                sent += guest.peer.send(b"line\n" * 10_000)
            house.turn()
        assert not house.poller.getReaders()
        assert guest.record.received < sent
        assert 0 < guest.record.received - guest.record.sent <= READ_SIZE + len(b"line\n")
        house.close()

    def test_error(self, house: House) -> None:
        """
        A write that fails ends the connection in its own turn, not in that of the writer.
        """
        guest = house.enter()
        guest.transport.pauseProducing()
        guest.reset()
        guest.transport.write(b"x")
        assert guest.protocol.events == []
        house.turn()
        assert guest.protocol.events == [ConnectionLost]
        guest.transport.write(b"x")
        assert house.poller.removeAll() == []

    @pytest.mark.parametrize("waits", [False, True])
    def test_reset(self, house: House, waits: bool) -> None:
        """
        A reset ends the connection, whether we wait to read or to write.
        """
        guest = house.enter()
        if waits:
            fill(guest)
        guest.transport.write(b"unread")
        guest.reset()
        house.turn()
        assert guest.protocol.events == [ConnectionLost]
        assert house.poller.removeAll() == []
        assert house.ended == [guest.record]
        assert guest.record.reason is CloseReason.RESET

    def test_afterTheEnd(self, house: House) -> None:
        """
        Nothing is written to a connection that has ended, and it is watched for nothing, whatever
        its protocol still does.
        """
        guest = house.enter()
        guest.transport.connectionLost(connectionDone)
        self._goOn(guest)
        house.turn()
        assert guest.record.sent == 0
        assert house.poller.removeAll() == []
        assert guest.protocol.events == [ConnectionDone, "stopped"]
        assert house.ended == [guest.record]

    def test_afterAnAbort(self, house: House) -> None:
        """
        The same for one that has been aborted and is about to end.
        """
        guest = house.enter()
        guest.transport.abortConnection()
        self._goOn(guest)
        house.turn()
        assert guest.record.sent == 0
        assert guest.protocol.events == ["stopped", ConnectionAborted]
        assert house.ended == [guest.record]

    def _goOn(self, guest: Guest) -> None:
        transport = guest.transport
        transport.write(b"x")
        transport.writeSequence([b"x"])
        transport.pauseProducing()
        transport.resumeProducing()
        transport.unregisterProducer()
        transport.registerProducer(guest.protocol, False)
        transport.write(b"x")
        transport.loseWriteConnection()
        transport.loseConnection()
        transport.stopProducing()
        transport.abortConnection()


class TestReading:
    """
    What is received.
    """

    def test_pause(self, house: House) -> None:
        """
        A protocol may read no more for a while.
        """
        guest = house.enter()
        guest.transport.pauseProducing()
        guest.peer.sendall(b"x")
        house.turn()
        assert guest.protocol.events == []
        guest.transport.resumeProducing()
        house.turn()
        assert guest.protocol.events == [b"x"]

    def test_pauseWhileSomethingWaits(self, house: House) -> None:
        """
        It is not read on its behalf when all has been sent, either.
        """
        guest = house.enter()
        fill(guest)
        guest.transport.pauseProducing()
        guest.peer.sendall(b"x")
        house.collect(guest.peer, len(PLENTY))
        house.turn()
        house.turn()
        assert guest.protocol.events == []
        guest.transport.resumeProducing()
        house.turn()
        assert guest.protocol.events == [b"x"]

    def test_much(self, house: House) -> None:
        """
        There is an end to what is read at once.
        """
        guest = house.enter()
        guest.peer.setblocking(False)
        sent = guest.peer.send(PLENTY)
        assert sent > READ_SIZE
        house.turn()
        assert list(map(len, guest.protocol.events)) == [READ_SIZE]
        while house.poller.getReaders() and guest.record.received < sent:
            house.turn()
        assert b"".join(guest.protocol.events) == PLENTY[:sent]

    def test_atTheBegin(self, house: House) -> None:
        """
        A protocol may write, pause, or close, as soon as its connection is made.
        """

        def greets(transport: Transport) -> None:
            transport.write(b"hello\n")
            transport.pauseProducing()

        for act in greets, Transport.loseConnection, Transport.abortConnection:
            guest = self._enter(house, act)
            guest.peer.sendall(b"x")
            assert house.poller.getReaders() == []
            house.turn()
            if act is greets:
                assert guest.peer.recv(100) == b"hello\n"
                assert guest.protocol.events == []
                end(guest)
            else:
                guest.peer.close()
                house.turn()
                house.turn()
                assert guest.protocol.events[0] in (ConnectionDone, ConnectionAborted)

    def _enter(self, house: House, act: object) -> Guest:
        class Factory(ServerFactory):
            def buildProtocol(self, addr: object) -> Protocol:
                protocol = Recorder()
                protocol.connectionMade = lambda: act(protocol.transport)  # type: ignore
                return protocol

        house.route.factory = Factory()
        return house.enter()


def end(guest: Guest) -> None:
    """
    The connection is gone.
    """
    guest.transport.connectionLost(connectionDone)


class Pull:
    """
    A pull producer: writes one piece each time that it is asked, and then says that it has no more.

    @ivar stopped: Has it been told to stop?
    """

    def __init__(self, transport: Transport, pieces: list[bytes]) -> None:
        self._transport = transport
        self._pieces = pieces
        self.stopped = False

    def resumeProducing(self) -> None:
        """
        See L{IPullProducer}.
        """
        if self._pieces:
            self._transport.write(self._pieces.pop(0))
        else:
            self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        """
        See L{IPullProducer}.
        """
        self.stopped = True


class TestProducers:
    """
    Producers that a protocol registers.
    """

    def test_push(self, house: House) -> None:
        """
        A push producer is paused once, as soon as anything waits, and resumed when all has been
        sent.
        """
        guest = house.enter()
        transport, protocol = guest.transport, guest.protocol
        transport.registerProducer(protocol, True)
        transport.write(b"taken\n")
        assert protocol.paused == 0
        guest.peer.sendall(b"unread")
        sent = 6
        while not house.poller.getWriters():
            assert protocol.paused == 0
            transport.write(PLENTY[:1000])
            sent += 1000
        assert protocol.paused == 1
        transport.write(b"more")
        assert protocol.paused == 1
        house.turn()
        assert protocol.events == []
        house.collect(guest.peer, sent + 4)
        house.turn()
        house.turn()
        assert protocol.events == ["resumed", b"unread"]
        # Much at once.
        fill(guest)
        assert protocol.paused == 2
        transport.unregisterProducer()
        house.collect(guest.peer, len(PLENTY))
        house.turn()
        assert protocol.events == ["resumed", b"unread"]

    def test_pushThatComesLate(self, house: House) -> None:
        """
        A push producer that is registered while something waits is paused at once.
        """
        guest = house.enter()
        fill(guest)
        guest.transport.registerProducer(guest.protocol, True)
        assert guest.protocol.paused == 1
        house.collect(guest.peer, len(PLENTY))
        house.turn()
        assert guest.protocol.events == ["resumed"]

    def test_pull(self, house: House) -> None:
        """
        A pull producer is asked for more whenever all has been sent, until it has no more; then all
        is as it was.
        """
        guest = house.enter()
        guest.transport.write(b"0")
        pieces = [b"1", PLENTY, b"2", PLENTY, b"3"]
        whole = b"".join([b"0", *pieces])
        guest.transport.registerProducer(Pull(guest.transport, pieces), False)
        assert house.collect(guest.peer, len(whole)) == whole
        house.turn()
        house.turn()
        assert guest.transport.producer is None
        assert house.poller.getWriters() == []
        guest.transport.write(b"4")
        assert guest.peer.recv(100) == b"4"
        guest.peer.sendall(b"x")
        house.turn()
        assert guest.protocol.events == [b"x"]

    def test_pullThatWaits(self, house: House) -> None:
        """
        A pull producer that has nothing at the moment is not asked all the time; what it writes
        later is sent, and then it is asked again. Meanwhile the peer is read from.
        """
        guest = house.enter()
        guest.transport.registerProducer(guest.protocol, False)
        for number in range(1, 3):
            house.turn()
            house.turn()
            assert guest.protocol.events == ["resumed"] * number
            assert house.poller.getWriters() == []
            guest.transport.write(b"1")
            house.turn()
            assert guest.peer.recv(100) == b"1"
        guest.protocol.events.clear()
        guest.peer.sendall(b"x")
        house.turn()
        assert guest.protocol.events == [b"x"]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_close(self, house: House, streaming: bool) -> None:
        """
        A connection does not close as long as a producer has more to write.
        """
        guest = house.enter()
        pieces = [PLENTY, PLENTY]
        if streaming:
            guest.transport.registerProducer(guest.protocol, True)
        else:
            guest.transport.registerProducer(Pull(guest.transport, pieces), False)
        guest.transport.loseConnection()
        if streaming:
            house.turn()
            for piece in pieces:
                guest.transport.write(piece)
            guest.transport.unregisterProducer()
        assert house.collect(guest.peer, 2 * len(PLENTY)) == PLENTY + PLENTY
        house.turn()
        house.turn()
        assert guest.peer.recv(1) == b""
        guest.peer.close()
        house.turn()
        assert guest.protocol.events == [ConnectionDone]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_lost(self, house: House, streaming: bool) -> None:
        """
        A producer is stopped when the connection is lost, before the protocol hears of that, or at
        once when there is none any more.
        """
        guest = house.enter()
        guest.transport.registerProducer(guest.protocol, streaming)
        guest.transport.connectionLost(LOST)
        assert guest.protocol.events == ["stopped", ConnectionLost]
        guest.transport.registerProducer(guest.protocol, streaming)
        assert guest.protocol.events == ["stopped", ConnectionLost, "stopped"]
        assert guest.transport.producer is None

    def test_lostAndRaises(self, house: House) -> None:
        """
        Whatever the producer does then, the protocol hears of it, and the connection has ended.
        """
        guest = house.enter()
        guest.protocol.stopProducing = lambda: 1 / 0
        guest.transport.registerProducer(guest.protocol, True)
        with pytest.raises(ZeroDivisionError):
            guest.transport.connectionLost(LOST)
        assert guest.protocol.events == [ConnectionLost]
        assert house.ended == [guest.record]

    def test_onlyOne(self, house: House) -> None:
        """
        There is one at a time.
        """
        guest = house.enter()
        guest.transport.registerProducer(guest.protocol, True)
        with pytest.raises(RuntimeError):
            guest.transport.registerProducer(Pull(guest.transport, []), False)
        assert guest.transport.producer is guest.protocol
        guest.transport.unregisterProducer()
        guest.transport.registerProducer(Pull(guest.transport, [b"x"]), False)
        house.turn()
        house.turn()
        assert guest.peer.recv(100) == b"x"


class TestEnd:
    """
    How a connection ends.
    """

    def test_inOrder(self, house: House) -> None:
        """
        A close comes when all has been sent, and is one in order.
        """
        guest = house.enter(overTCP=True)
        guest.transport.write(PLENTY * 16)
        guest.transport.loseConnection()
        guest.transport.loseConnection()
        assert house.collect(guest.peer, len(PLENTY) * 16) == PLENTY * 16
        house.turn()
        house.turn()
        assert guest.peer.recv(1) == b""
        assert guest.protocol.events == [ConnectionDone]
        assert guest.record.reason is CloseReason.CLIENT_CLOSED

    def test_abort(self, house: House) -> None:
        """
        An abort is a reset, and drops what waits. The protocol hears of it in the next turn.
        """
        guest = house.enter(overTCP=True)
        guest.transport.write(PLENTY * 16)
        guest.transport.abortConnection()
        guest.transport.abortConnection()
        house.poller.doRead()
        assert guest.protocol.events == []
        house.clock.advance(0)
        assert guest.protocol.events == [ConnectionAborted]
        with pytest.raises(ConnectionResetError):
            exhaust(guest.peer)
        assert guest.record.sent < len(PLENTY) * 16
        assert house.clock.getDelayedCalls() == []

    def test_endOfInput(self, house: House) -> None:
        """
        The peer's end of input ends the connection; one that can go on without input is told.
        """
        one, two = house.enter(), house.enter()
        halfCloseable(two)
        for guest in one, two:
            guest.peer.shutdown(socket.SHUT_WR)
        house.turn()
        assert one.protocol.events == [ConnectionDone]
        assert one.peer.recv(1) == b""
        assert two.protocol.events == ["end"]
        two.transport.write(b"goodbye\n")
        assert two.peer.recv(100) == b"goodbye\n"
        fill(two)
        assert house.collect(two.peer, len(PLENTY)) == PLENTY
        house.turn()
        house.turn()
        assert two.protocol.events == ["end"]
        assert [record.reason for record in house.ended] == [CloseReason.CLIENT_CLOSED]

    def test_endOfInputWhileSomethingWaits(self, house: House) -> None:
        """
        A protocol that can't go on without input is told of the end when all has been sent.
        """
        guest = house.enter()

        def answer(data: bytes) -> None:
            guest.transport.write(PLENTY)

        guest.protocol.whenReceived = answer
        guest.peer.sendall(b"x")
        guest.peer.shutdown(socket.SHUT_WR)
        house.turn()
        house.turn()
        assert guest.protocol.events == []
        assert house.collect(guest.peer, len(PLENTY)) == PLENTY
        house.turn()
        house.turn()
        assert guest.protocol.events == [ConnectionDone]
        assert guest.peer.recv(1) == b""
        assert guest.record.sent == len(PLENTY)
        assert guest.record.reason is CloseReason.CLIENT_CLOSED

    def test_endOfInputWithAPushProducer(self, house: House) -> None:
        """
        A push producer may have no end, and the protocol, which could end it, hears of this one
        last: it is stopped.
        """
        guest = house.enter()
        guest.transport.registerProducer(guest.protocol, True)
        fill(guest)
        guest.peer.shutdown(socket.SHUT_WR)
        assert house.collect(guest.peer, len(PLENTY)) == PLENTY
        for _ in range(3):
            house.turn()
        assert guest.protocol.events[-2:] == ["stopped", ConnectionDone]
        assert guest.peer.recv(1) == b""

    def test_endOfInputWithAPullProducer(self, house: House) -> None:
        """
        A pull producer has an end: it goes on to that, and then the protocol is told.
        """
        guest = house.enter()
        producer = Pull(guest.transport, [PLENTY, PLENTY])
        guest.transport.registerProducer(producer, False)
        guest.peer.shutdown(socket.SHUT_WR)
        assert house.collect(guest.peer, 2 * len(PLENTY)) == PLENTY + PLENTY
        for _ in range(3):
            house.turn()
        assert guest.protocol.events == [ConnectionDone]
        assert not producer.stopped

    def test_closeAfterTheEnd(self, house: House) -> None:
        """
        A protocol that closes later than it hears of the end of input is closed then.
        """
        guest = house.enter()
        halfCloseable(guest)
        guest.peer.shutdown(socket.SHUT_WR)
        house.turn()
        guest.transport.loseConnection()
        house.turn()
        assert guest.protocol.events == ["end", ConnectionDone]

    @pytest.mark.parametrize("plenty", [False, True])
    def test_closeAtTheEnd(self, house: House, plenty: bool) -> None:
        """
        A protocol that closes when it hears of the end of input is closed in the same turn if all
        has been sent, and else when it has been.
        """
        guest = house.enter()
        halfCloseable(guest)
        guest.protocol.readConnectionLost = guest.transport.loseConnection
        if plenty:
            guest.protocol.whenReceived = lambda data: fill(guest)
            guest.peer.sendall(b"x")
        guest.peer.shutdown(socket.SHUT_WR)
        house.turn()
        if plenty:
            assert guest.protocol.events == []
            assert house.collect(guest.peer, len(PLENTY)) == PLENTY
            house.turn()
            house.turn()
        assert guest.protocol.events == [ConnectionDone]
        assert guest.peer.recv(1) == b""

    def test_endAndRaises(self, house: House) -> None:
        """
        A protocol that raises when it hears of the end is closed.
        """
        guest = house.enter()
        halfCloseable(guest)
        guest.protocol.readConnectionLost = lambda: 1 / 0
        guest.peer.shutdown(socket.SHUT_WR)
        house.turn()
        assert guest.protocol.events == [ZeroDivisionError]
        assert guest.record.reason is CloseReason.ERROR

    def test_leavesNothing(self, house: House) -> None:
        """
        What a connection was is gone with it, without the garbage collector.
        """
        guest = house.enter()
        guest.transport.registerProducer(guest.protocol, True)
        fill(guest)
        gone = weakref.ref(guest.transport)
        guest.transport.connectionLost(connectionDone)
        house.ended.clear()
        del guest
        assert gone() is None


class TestOurHalf:
    """
    A protocol that ends its own half alone.
    """

    @pytest.mark.parametrize("knows", [False, True])
    def test_goesOn(self, house: House, knows: bool) -> None:
        """
        The peer sees the end when all has been sent, and may go on to send. A protocol that knows
        of half-closes is told, once. Nothing more can be written.
        """
        guest = house.enter()
        if knows:
            halfCloseable(guest)
        fill(guest)
        guest.transport.loseWriteConnection()
        guest.transport.loseWriteConnection()
        assert house.collect(guest.peer, len(PLENTY)) == PLENTY
        house.turn()
        house.turn()
        assert guest.peer.recv(1) == b""
        told = ["our end"] if knows else []
        assert guest.protocol.events == told
        guest.transport.write(b"late")
        guest.transport.loseWriteConnection()
        guest.transport.unregisterProducer()
        guest.peer.sendall(b"x")
        house.turn()
        house.turn()
        assert guest.protocol.events == [*told, b"x"]
        assert house.poller.getWriters() == []
        assert guest.record.sent == len(PLENTY)
        guest.transport.loseConnection()
        house.turn()
        assert guest.protocol.events == [*told, b"x", ConnectionDone]

    def test_thenThePeers(self, house: House) -> None:
        """
        When the peer ends its own half, too, the connection has ended.
        """
        guest = house.enter()
        guest.transport.loseWriteConnection()
        house.turn()
        guest.peer.shutdown(socket.SHUT_WR)
        house.turn()
        assert guest.protocol.events == [ConnectionDone]

    def test_withAProducer(self, house: House) -> None:
        """
        It does not end as long as a producer has more to write.
        """
        guest = house.enter()
        pieces = [PLENTY, b"1"]
        guest.transport.registerProducer(Pull(guest.transport, pieces), False)
        guest.transport.loseWriteConnection()
        assert house.collect(guest.peer, len(PLENTY) + 1) == PLENTY + b"1"
        house.turn()
        house.turn()
        assert guest.peer.recv(1) == b""
        assert guest.protocol.events == []

    def test_whenThePeerIsGone(self, house: House) -> None:
        """
        It is no fault that the peer is gone already.
        """
        guest = house.enter(overTCP=True)
        guest.transport.pauseProducing()
        guest.transport.loseWriteConnection()
        guest.reset()
        house.turn()
        guest.transport.resumeProducing()
        house.turn()
        assert guest.protocol.events == [ConnectionLost]


class TestRecord:
    """
    What is known of the connection.
    """

    def test_counts(self, house: House) -> None:
        """
        Bytes are counted as they come, and as the kernel takes them: what waits was not sent.
        """
        guest = house.enter()
        guest.peer.sendall(b"12345")
        house.turn()
        assert (guest.record.received, guest.record.sent) == (5, 0)
        assert guest.transport.progress() == 5
        guest.transport.write(b"123")
        assert guest.record.sent == 3
        fill(guest)
        guest.transport.write(b"4")
        first = guest.record.sent
        assert 3 < first < len(PLENTY)
        guest.peer.recv(1 << 16)
        house.turn()
        assert first <= guest.record.sent < len(PLENTY)
        guest.reset()
        house.turn()
        assert first <= guest.record.sent < len(PLENTY)
        assert guest.record.reason is CloseReason.RESET

    def test_countsAll(self, house: House) -> None:
        """
        In the end all has been counted that was sent, by whichever way.
        """
        guest = house.enter()
        guest.transport.writeSequence([b"1", b"2"])
        fill(guest)
        guest.transport.write(b"3")
        house.collect(guest.peer, len(PLENTY) + 3)
        assert guest.record.sent == len(PLENTY) + 3

    @pytest.mark.parametrize(
        ("reason", "ending"),
        [
            (ConnectionDone(), CloseReason.CLIENT_CLOSED),
            (ConnectionLost(), CloseReason.RESET),
            (ConnectionAborted(), CloseReason.ERROR),
            (ZeroDivisionError(), CloseReason.ERROR),
        ],
    )
    def test_ending(self, house: House, reason: Exception, ending: CloseReason) -> None:
        """
        If nobody here has wanted the end, it is known by the reason; else by who has.
        """
        for before in None, CloseReason.DRAINED:
            guest = house.enter()
            guest.record.reason = before
            guest.transport.connectionLost(Failure(reason))
            assert guest.record.reason is (before or ending)

    def test_idle(self, house: House) -> None:
        """
        It is idle if nothing waits, and its protocol has begun nothing, if that can be said of it.
        """
        guest = house.enter()
        assert guest.transport.isIdle()
        directlyProvides(guest.protocol, IDrainable)
        for idle in False, True:
            guest.protocol.isIdle = lambda idle=idle: idle
            assert guest.transport.isIdle() is idle
        fill(guest)
        assert not guest.transport.isIdle()
        house.collect(guest.peer, len(PLENTY))
        assert guest.transport.isIdle()

    def test_addresses(self, house: House) -> None:
        """
        Both ends are shown as they are, or as a balancer has named them.
        """
        guest = house.enter(IPv4Address("TCP", "192.0.2.9", 1), overTCP=True)
        transport = guest.transport
        assert transport.getPeer() == IPv4Address("TCP", "192.0.2.9", 1)
        assert transport.getHost() == IPv4Address("TCP", *guest.peer.getpeername())
        assert repr(transport) == "<Recorder,1,192.0.2.9>"
        client, host = IPv6Address("TCP", "::1", 2), IPv6Address("TCP", "::2", 3)
        transport.setClient(client, host)
        assert (transport.getPeer(), transport.getHost()) == (client, host)
        assert transport.logPrefix() == "Recorder,1,192.0.2.9,::1"
        transport.setClient(client, None)
        assert transport.getHost() == IPv4Address("TCP", *guest.peer.getpeername())

    def test_addressesOfUNIX(self, house: House) -> None:
        """
        Of a UNIX socket there are none to be seen.
        """
        guest = house.enter(UNIXAddress(None))
        assert guest.transport.getHost() == UNIXAddress(None)
        assert guest.transport.logPrefix() == "Recorder,1,unix"

    def test_logPrefix(self, house: House) -> None:
        """
        The log calls it what its protocol wants to be called, and itself when there is none.
        """
        guest = house.enter()

        @implementer(ILoggingContext)
        class Named(Recorder):
            def logPrefix(self) -> str:
                return "name"

        guest.transport.protocol = Named()
        assert guest.transport.logPrefix() == "name,1,192.0.2.1"
        guest.transport.connectionLost(connectionDone)
        assert guest.transport.logPrefix() == "Transport,1,192.0.2.1"


class TestSocket:
    """
    The socket.
    """

    def test_options(self, house: House) -> None:
        """
        Its options are what the protocol sets.
        """
        transport = house.enter(overTCP=True).transport
        for enabled in True, False, True:
            transport.setTcpNoDelay(enabled)
            assert transport.getTcpNoDelay() == enabled
            transport.setTcpKeepAlive(enabled)
            assert transport.getTcpKeepAlive() == enabled

    def test_handle(self, house: House) -> None:
        """
        It can be had; it is closed with the connection.
        """
        guest = house.enter()
        assert guest.transport.getHandle().fileno() == guest.transport.fileno() >= 0
        end(guest)
        assert guest.transport.fileno() == -1


class TestFarewell:
    """
    We have ended our half, and wait for the peer's.
    """

    def _enter(self, house: House) -> Guest:
        guest = house.enter(overTCP=True)
        guest.transport.sayFarewell()
        assert guest.peer.recv(1) == b""
        assert isinstance(guest.transport.stage, Farewell)
        # The peer's kernel takes a moment to acknowledge it.
        while guest.transport.queued(termios.TIOCOUTQ):
            pass
        return guest

    def test_interfaces(self, house: House) -> None:
        """
        It is what the poller takes it for.
        """
        stage = self._enter(house).transport.stage
        assert verifyObject(IReadWriteDescriptor, stage)
        assert stage is not None
        assert stage.logPrefix() == "Recorder,1,192.0.2.1"

    def test_inOrder(self, house: House) -> None:
        """
        What still comes is dropped; the peer's own end is the end.
        """
        guest = self._enter(house)
        for _ in range(3):
            guest.peer.sendall(PLENTY[:1000])
            house.passes(CLOSE_TIMEOUT / 5)
        assert guest.protocol.events == []
        assert guest.record.received == 0
        guest.peer.shutdown(socket.SHUT_WR)
        house.turn()
        assert guest.protocol.events == [ConnectionDone]
        assert house.ended == [guest.record]
        assert house.clock.getDelayedCalls() == []
        # No reset.
        assert guest.peer.recv(1) == b""

    def test_reset(self, house: House) -> None:
        """
        A reset is the end, too.
        """
        guest = self._enter(house)
        guest.reset()
        house.turn()
        assert guest.protocol.events == [ConnectionLost]
        assert house.clock.getDelayedCalls() == []

    def test_peerIsGone(self, house: House) -> None:
        """
        It is no fault if the peer was gone before.
        """
        guest = house.enter(overTCP=True)
        guest.reset()
        guest.transport.sayFarewell()
        house.turn()
        assert guest.protocol.events == [ConnectionLost]

    def test_late(self, house: House) -> None:
        """
        A peer that does not end its own half in time is reset.
        """
        guest = self._enter(house)
        house.passes(CLOSE_TIMEOUT - 0.1)
        assert guest.protocol.events == []
        house.passes(0.2)
        assert guest.protocol.events == [ConnectionAborted]
        with pytest.raises(BrokenPipeError):
            guest.peer.send(b"x")

    def test_lateWithSomethingUnread(self, house: House) -> None:
        """
        As long as the peer has something to read it is waited for.
        """
        guest = house.enter()
        guest.transport.write(b"read me")
        guest.transport.sayFarewell()
        house.passes(3.5 * CLOSE_TIMEOUT)
        assert guest.protocol.events == []
        assert guest.peer.recv(100) == b"read me"
        house.passes(CLOSE_TIMEOUT - 0.1)
        assert guest.protocol.events == [ConnectionAborted]

    def test_dropsWhatWaits(self, house: House) -> None:
        """
        What had not been sent is not sent any more, nor is what is written then.
        """
        guest = house.enter()
        fill(guest)
        sent = guest.record.sent
        guest.transport.sayFarewell()
        guest.transport.write(b"late")
        assert not guest.transport._buffer
        received = 0
        while data := guest.peer.recv(1 << 20):
            received += len(data)
            house.turn()
        assert received == sent == guest.record.sent

    def test_closes(self, house: House) -> None:
        """
        To close it changes nothing, and to abort it aborts it.
        """
        guest = self._enter(house)
        guest.transport.loseConnection()
        guest.transport.close()
        house.turn()
        assert guest.protocol.events == []
        assert guest.transport.isIdle()
        guest.transport.abortConnection()
        house.turn()
        assert guest.protocol.events == [ConnectionAborted]

    def test_protocolGoesOn(self, house: House) -> None:
        """
        Whatever its protocol still does, the socket is watched for the peer's end, and for nothing
        else.
        """
        guest = house.enter(overTCP=True)
        guest.transport.registerProducer(guest.protocol, True)
        guest.transport.sayFarewell()
        guest.transport.unregisterProducer()
        guest.transport.registerProducer(guest.protocol, False)
        guest.transport.write(b"late")
        guest.transport.pauseProducing()
        guest.transport.resumeProducing()
        guest.transport.loseWriteConnection()
        assert house.poller.getReaders() == [guest.transport.stage]
        assert house.poller.getWriters() == []
        guest.peer.close()
        house.turn()
        assert guest.protocol.events == ["stopped", ConnectionDone]
