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

from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.stage import CLOSE_TIMEOUT, READ_SIZE, Farewell
from kvserver.connections.transport import Transport
from kvserver.interfaces import IDrainable
from tests.support.memory import PLENTY, MemoryServer, Pair, Recorder

LOST = Failure(ConnectionLost())


def fill(pair: Pair) -> None:
    """
    Write more than is taken.
    """
    pair.transport.write(PLENTY)


def exhaust(peer: socket.socket) -> None:
    """
    Receive all there is.
    """
    while peer.recv(1 << 20):
        pass


def halfCloseable(pair: Pair) -> None:
    """
    Let its protocol be one that can go on when one half has been closed.
    """
    directlyProvides(pair.protocol, IHalfCloseableProtocol)


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
def test_interfaces(server: MemoryServer, interface: type) -> None:
    """
    It is what Twisted's protocols, and the poller, take it for.
    """
    assert verifyObject(interface, server.enter().transport)


class TestWriting:
    """
    What is written.
    """

    def test_atOnce(self, server: MemoryServer) -> None:
        """
        What the socket takes is sent at once.
        """
        pair = server.enter()
        pair.transport.write(b"one\n")
        assert pair.peer.recv(100) == b"one\n"
        assert server.poller.getWriters() == []

    def test_order(self, server: MemoryServer) -> None:
        """
        What is written while something waits comes after that.
        """
        pair = server.enter()
        fill(pair)
        assert server.poller.getWriters() == [pair.transport]
        pair.transport.write(b"one\n")
        pair.transport.writeSequence([b"two", b"\n"])
        whole = PLENTY + b"one\ntwo\n"
        assert server.collect(pair.peer, len(whole)) == whole
        server.turn()
        assert server.poller.getWriters() == []
        pair.transport.writeSequence([b"thr", b"ee\n"])
        pair.transport.write(b"four\n")
        assert pair.peer.recv(100) == b"three\nfour\n"

    def test_backPressure(self, server: MemoryServer) -> None:
        """
        As long as anything waits the peer is not read from, whatever its protocol says; then it is.
        """
        pair = server.enter()
        fill(pair)
        pair.peer.sendall(b"unread")
        pair.transport.pauseProducing()
        pair.transport.resumeProducing()
        server.turn()
        assert pair.protocol.events == []
        assert server.poller.getReaders() == []
        assert server.collect(pair.peer, len(PLENTY)) == PLENTY
        server.turn()
        server.turn()
        assert pair.protocol.events == [b"unread"]

    def test_echo(self) -> None:
        """
        Of an echo that is not read no more is held than what was read at once.
        """
        server = MemoryServer()
        pair = server.enter()
        pair.peer.setblocking(False)
        sent = 0
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                sent += pair.peer.send(b"line\n" * 10_000)
            server.turn()
        assert not server.poller.getReaders()
        assert pair.record.received < sent
        assert 0 < pair.record.received - pair.record.sent <= READ_SIZE + len(b"line\n")
        server.close()

    def test_error(self, server: MemoryServer) -> None:
        """
        A write that fails ends the connection in its own turn, not in that of the writer.
        """
        pair = server.enter()
        pair.transport.pauseProducing()
        pair.reset()
        pair.transport.write(b"x")
        assert pair.protocol.events == []
        server.turn()
        assert pair.protocol.events == [ConnectionLost]
        pair.transport.write(b"x")
        assert server.poller.removeAll() == []

    @pytest.mark.parametrize("waits", [False, True])
    def test_reset(self, server: MemoryServer, waits: bool) -> None:
        """
        A reset ends the connection, whether we wait to read or to write.
        """
        pair = server.enter()
        if waits:
            fill(pair)
        pair.transport.write(b"unread")
        pair.reset()
        server.turn()
        assert pair.protocol.events == [ConnectionLost]
        assert server.poller.removeAll() == []
        assert server.ended == [pair.record]
        assert pair.record.reason is CloseReason.RESET

    def test_afterTheEnd(self, server: MemoryServer) -> None:
        """
        Nothing is written to a connection that has ended, and it is watched for nothing, whatever
        its protocol still does.
        """
        pair = server.enter()
        pair.transport.connectionLost(connectionDone)
        self._goOn(pair)
        server.turn()
        assert pair.record.sent == 0
        assert server.poller.removeAll() == []
        assert pair.protocol.events == [ConnectionDone, "stopped"]
        assert server.ended == [pair.record]

    def test_afterAnAbort(self, server: MemoryServer) -> None:
        """
        The same for one that has been aborted and is about to end.
        """
        pair = server.enter()
        pair.transport.abortConnection()
        self._goOn(pair)
        server.turn()
        assert pair.record.sent == 0
        assert pair.protocol.events == ["stopped", ConnectionAborted]
        assert server.ended == [pair.record]

    def _goOn(self, pair: Pair) -> None:
        transport = pair.transport
        transport.write(b"x")
        transport.writeSequence([b"x"])
        transport.pauseProducing()
        transport.resumeProducing()
        transport.unregisterProducer()
        transport.registerProducer(pair.protocol, False)
        transport.write(b"x")
        transport.loseWriteConnection()
        transport.loseConnection()
        transport.stopProducing()
        transport.abortConnection()


class TestReading:
    """
    What is received.
    """

    def test_pause(self, server: MemoryServer) -> None:
        """
        A protocol may read no more for a while.
        """
        pair = server.enter()
        pair.transport.pauseProducing()
        pair.peer.sendall(b"x")
        server.turn()
        assert pair.protocol.events == []
        pair.transport.resumeProducing()
        server.turn()
        assert pair.protocol.events == [b"x"]

    def test_pauseWhileSomethingWaits(self, server: MemoryServer) -> None:
        """
        It is not read on its behalf when all has been sent, either.
        """
        pair = server.enter()
        fill(pair)
        pair.transport.pauseProducing()
        pair.peer.sendall(b"x")
        server.collect(pair.peer, len(PLENTY))
        server.turn()
        server.turn()
        assert pair.protocol.events == []
        pair.transport.resumeProducing()
        server.turn()
        assert pair.protocol.events == [b"x"]

    def test_much(self, server: MemoryServer) -> None:
        """
        There is an end to what is read at once.
        """
        pair = server.enter()
        pair.peer.setblocking(False)
        sent = pair.peer.send(PLENTY)
        assert sent > READ_SIZE
        server.turn()
        assert list(map(len, pair.protocol.events)) == [READ_SIZE]
        while server.poller.getReaders() and pair.record.received < sent:
            server.turn()
        assert b"".join(pair.protocol.events) == PLENTY[:sent]

    def test_atTheBegin(self, server: MemoryServer) -> None:
        """
        A protocol may write, pause, or close, as soon as its connection is made.
        """

        def greets(transport: Transport) -> None:
            transport.write(b"hello\n")
            transport.pauseProducing()

        for act in greets, Transport.loseConnection, Transport.abortConnection:
            pair = self._enter(server, act)
            pair.peer.sendall(b"x")
            assert server.poller.getReaders() == []
            server.turn()
            if act is greets:
                assert pair.peer.recv(100) == b"hello\n"
                assert pair.protocol.events == []
                end(pair)
            else:
                pair.peer.close()
                server.turn()
                server.turn()
                assert pair.protocol.events[0] in (ConnectionDone, ConnectionAborted)

    def _enter(self, server: MemoryServer, act: object) -> Pair:
        class Factory(ServerFactory):
            def buildProtocol(self, addr: object) -> Protocol:
                protocol = Recorder()
                protocol.connectionMade = lambda: act(protocol.transport)  # type: ignore
                return protocol

        server.handover._factory = Factory()
        return server.enter()


def end(pair: Pair) -> None:
    """
    The connection is gone.
    """
    pair.transport.connectionLost(connectionDone)


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

    def test_push(self, server: MemoryServer) -> None:
        """
        A push producer is paused once, as soon as anything waits, and resumed when all has been
        sent.
        """
        pair = server.enter()
        transport, protocol = pair.transport, pair.protocol
        transport.registerProducer(protocol, True)
        transport.write(b"taken\n")
        assert protocol.paused == 0
        pair.peer.sendall(b"unread")
        sent = 6
        while not server.poller.getWriters():
            assert protocol.paused == 0
            transport.write(PLENTY[:1000])
            sent += 1000
        assert protocol.paused == 1
        transport.write(b"more")
        assert protocol.paused == 1
        server.turn()
        assert protocol.events == []
        server.collect(pair.peer, sent + 4)
        server.turn()
        server.turn()
        assert protocol.events == ["resumed", b"unread"]
        # Much at once.
        fill(pair)
        assert protocol.paused == 2
        transport.unregisterProducer()
        server.collect(pair.peer, len(PLENTY))
        server.turn()
        assert protocol.events == ["resumed", b"unread"]

    def test_pushThatComesLate(self, server: MemoryServer) -> None:
        """
        A push producer that is registered while something waits is paused at once.
        """
        pair = server.enter()
        fill(pair)
        pair.transport.registerProducer(pair.protocol, True)
        assert pair.protocol.paused == 1
        server.collect(pair.peer, len(PLENTY))
        server.turn()
        assert pair.protocol.events == ["resumed"]

    def test_pull(self, server: MemoryServer) -> None:
        """
        A pull producer is asked for more whenever all has been sent, until it has no more; then all
        is as it was.
        """
        pair = server.enter()
        pair.transport.write(b"0")
        pieces = [b"1", PLENTY, b"2", PLENTY, b"3"]
        whole = b"".join([b"0", *pieces])
        pair.transport.registerProducer(Pull(pair.transport, pieces), False)
        assert server.collect(pair.peer, len(whole)) == whole
        server.turn()
        server.turn()
        assert pair.transport.producer is None
        assert server.poller.getWriters() == []
        pair.transport.write(b"4")
        assert pair.peer.recv(100) == b"4"
        pair.peer.sendall(b"x")
        server.turn()
        assert pair.protocol.events == [b"x"]

    def test_pullThatWaits(self, server: MemoryServer) -> None:
        """
        A pull producer that has nothing at the moment is not asked all the time; what it writes
        later is sent, and then it is asked again. Meanwhile the peer is read from.
        """
        pair = server.enter()
        pair.transport.registerProducer(pair.protocol, False)
        for number in range(1, 3):
            server.turn()
            server.turn()
            assert pair.protocol.events == ["resumed"] * number
            assert server.poller.getWriters() == []
            pair.transport.write(b"1")
            server.turn()
            assert pair.peer.recv(100) == b"1"
        pair.protocol.events.clear()
        pair.peer.sendall(b"x")
        server.turn()
        assert pair.protocol.events == [b"x"]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_close(self, server: MemoryServer, streaming: bool) -> None:
        """
        A connection does not close as long as a producer has more to write.
        """
        pair = server.enter()
        pieces = [PLENTY, PLENTY]
        if streaming:
            pair.transport.registerProducer(pair.protocol, True)
        else:
            pair.transport.registerProducer(Pull(pair.transport, pieces), False)
        pair.transport.loseConnection()
        if streaming:
            server.turn()
            for piece in pieces:
                pair.transport.write(piece)
            pair.transport.unregisterProducer()
        assert server.collect(pair.peer, 2 * len(PLENTY)) == PLENTY + PLENTY
        server.turn()
        server.turn()
        assert pair.peer.recv(1) == b""
        pair.peer.close()
        server.turn()
        assert pair.protocol.events == [ConnectionDone]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_lost(self, server: MemoryServer, streaming: bool) -> None:
        """
        A producer is stopped when the connection is lost, before the protocol hears of that, or at
        once when there is none any more.
        """
        pair = server.enter()
        pair.transport.registerProducer(pair.protocol, streaming)
        pair.transport.connectionLost(LOST)
        assert pair.protocol.events == ["stopped", ConnectionLost]
        pair.transport.registerProducer(pair.protocol, streaming)
        assert pair.protocol.events == ["stopped", ConnectionLost, "stopped"]
        assert pair.transport.producer is None

    def test_lostAndRaises(self, server: MemoryServer) -> None:
        """
        Whatever the producer does then, the protocol hears of it, and the connection has ended.
        """
        pair = server.enter()
        pair.protocol.stopProducing = lambda: 1 / 0
        pair.transport.registerProducer(pair.protocol, True)
        with pytest.raises(ZeroDivisionError):
            pair.transport.connectionLost(LOST)
        assert pair.protocol.events == [ConnectionLost]
        assert server.ended == [pair.record]

    def test_onlyOne(self, server: MemoryServer) -> None:
        """
        There is one at a time.
        """
        pair = server.enter()
        pair.transport.registerProducer(pair.protocol, True)
        with pytest.raises(RuntimeError):
            pair.transport.registerProducer(Pull(pair.transport, []), False)
        assert pair.transport.producer is pair.protocol
        pair.transport.unregisterProducer()
        pair.transport.registerProducer(Pull(pair.transport, [b"x"]), False)
        server.turn()
        server.turn()
        assert pair.peer.recv(100) == b"x"


class TestEnd:
    """
    How a connection ends.
    """

    def test_inOrder(self, server: MemoryServer) -> None:
        """
        A close comes when all has been sent, and is one in order.
        """
        pair = server.enter(overTCP=True)
        pair.transport.write(PLENTY * 16)
        pair.transport.loseConnection()
        pair.transport.loseConnection()
        assert server.collect(pair.peer, len(PLENTY) * 16) == PLENTY * 16
        server.turn()
        server.turn()
        assert pair.peer.recv(1) == b""
        # If the kernel has not seen the last acknowledgement yet, the peer's end is waited for.
        pair.peer.close()
        server.turn()
        assert pair.protocol.events == [ConnectionDone]
        assert pair.record.reason is CloseReason.CLIENT_CLOSED

    def test_abort(self, server: MemoryServer) -> None:
        """
        An abort is a reset, and drops what waits. The protocol hears of it in the next turn.
        """
        pair = server.enter(overTCP=True)
        pair.transport.write(PLENTY * 16)
        pair.transport.abortConnection()
        pair.transport.abortConnection()
        server.poller.doRead()
        assert pair.protocol.events == []
        server.clock.advance(0)
        assert pair.protocol.events == [ConnectionAborted]
        with pytest.raises(ConnectionResetError):
            exhaust(pair.peer)
        assert pair.record.sent < len(PLENTY) * 16
        assert server.clock.getDelayedCalls() == []

    def test_endOfInput(self, server: MemoryServer) -> None:
        """
        The peer's end of input ends the connection; one that can go on without input is told.
        """
        one, two = server.enter(), server.enter()
        halfCloseable(two)
        for pair in one, two:
            pair.peer.shutdown(socket.SHUT_WR)
        server.turn()
        assert one.protocol.events == [ConnectionDone]
        assert one.peer.recv(1) == b""
        assert two.protocol.events == ["end"]
        two.transport.write(b"goodbye\n")
        assert two.peer.recv(100) == b"goodbye\n"
        fill(two)
        assert server.collect(two.peer, len(PLENTY)) == PLENTY
        server.turn()
        server.turn()
        assert two.protocol.events == ["end"]
        assert [record.reason for record in server.ended] == [CloseReason.CLIENT_CLOSED]

    def test_endOfInputWhileSomethingWaits(self, server: MemoryServer) -> None:
        """
        A protocol that can't go on without input is told of the end when all has been sent.
        """
        pair = server.enter()

        def answer(data: bytes) -> None:
            pair.transport.write(PLENTY)

        pair.protocol.whenReceived = answer
        pair.peer.sendall(b"x")
        pair.peer.shutdown(socket.SHUT_WR)
        server.turn()
        server.turn()
        assert pair.protocol.events == []
        assert server.collect(pair.peer, len(PLENTY)) == PLENTY
        server.turn()
        server.turn()
        assert pair.protocol.events == [ConnectionDone]
        assert pair.peer.recv(1) == b""
        assert pair.record.sent == len(PLENTY)
        assert pair.record.reason is CloseReason.CLIENT_CLOSED

    def test_endOfInputWithAPushProducer(self, server: MemoryServer) -> None:
        """
        A push producer may have no end, and the protocol, which could end it, hears of this one
        last: it is stopped.
        """
        pair = server.enter()
        pair.transport.registerProducer(pair.protocol, True)
        fill(pair)
        pair.peer.shutdown(socket.SHUT_WR)
        assert server.collect(pair.peer, len(PLENTY)) == PLENTY
        for _ in range(3):
            server.turn()
        assert pair.protocol.events[-2:] == ["stopped", ConnectionDone]
        assert pair.peer.recv(1) == b""

    def test_endOfInputWithAPullProducer(self, server: MemoryServer) -> None:
        """
        A pull producer has an end: it goes on to that, and then the protocol is told.
        """
        pair = server.enter()
        producer = Pull(pair.transport, [PLENTY, PLENTY])
        pair.transport.registerProducer(producer, False)
        pair.peer.shutdown(socket.SHUT_WR)
        assert server.collect(pair.peer, 2 * len(PLENTY)) == PLENTY + PLENTY
        for _ in range(3):
            server.turn()
        assert pair.protocol.events == [ConnectionDone]
        assert not producer.stopped

    def test_closeAfterTheEnd(self, server: MemoryServer) -> None:
        """
        A protocol that closes later than it hears of the end of input is closed then.
        """
        pair = server.enter()
        halfCloseable(pair)
        pair.peer.shutdown(socket.SHUT_WR)
        server.turn()
        pair.transport.loseConnection()
        server.turn()
        assert pair.protocol.events == ["end", ConnectionDone]

    @pytest.mark.parametrize("plenty", [False, True])
    def test_closeAtTheEnd(self, server: MemoryServer, plenty: bool) -> None:
        """
        A protocol that closes when it hears of the end of input is closed in the same turn if all
        has been sent, and else when it has been.
        """
        pair = server.enter()
        halfCloseable(pair)
        pair.protocol.readConnectionLost = pair.transport.loseConnection
        if plenty:
            pair.protocol.whenReceived = lambda data: fill(pair)
            pair.peer.sendall(b"x")
        pair.peer.shutdown(socket.SHUT_WR)
        server.turn()
        if plenty:
            assert pair.protocol.events == []
            assert server.collect(pair.peer, len(PLENTY)) == PLENTY
            server.turn()
            server.turn()
        assert pair.protocol.events == [ConnectionDone]
        assert pair.peer.recv(1) == b""

    def test_endAndRaises(self, server: MemoryServer) -> None:
        """
        A protocol that raises when it hears of the end is closed.
        """
        pair = server.enter()
        halfCloseable(pair)
        pair.protocol.readConnectionLost = lambda: 1 / 0
        pair.peer.shutdown(socket.SHUT_WR)
        server.turn()
        assert pair.protocol.events == [ZeroDivisionError]
        assert pair.record.reason is CloseReason.ERROR

    def test_leavesNothing(self, server: MemoryServer) -> None:
        """
        What a connection was is gone with it, without the garbage collector.
        """
        pair = server.enter()
        pair.transport.registerProducer(pair.protocol, True)
        fill(pair)
        gone = weakref.ref(pair.transport)
        pair.transport.connectionLost(connectionDone)
        server.ended.clear()
        del pair
        assert gone() is None


class TestOurHalf:
    """
    A protocol that ends its own half alone.
    """

    @pytest.mark.parametrize("knows", [False, True])
    def test_goesOn(self, server: MemoryServer, knows: bool) -> None:
        """
        The peer sees the end when all has been sent, and may go on to send. A protocol that knows
        of half-closes is told, once. Nothing more can be written.
        """
        pair = server.enter()
        if knows:
            halfCloseable(pair)
        fill(pair)
        pair.transport.loseWriteConnection()
        pair.transport.loseWriteConnection()
        assert server.collect(pair.peer, len(PLENTY)) == PLENTY
        server.turn()
        server.turn()
        assert pair.peer.recv(1) == b""
        told = ["our end"] if knows else []
        assert pair.protocol.events == told
        pair.transport.write(b"late")
        pair.transport.loseWriteConnection()
        pair.transport.unregisterProducer()
        pair.peer.sendall(b"x")
        server.turn()
        server.turn()
        assert pair.protocol.events == [*told, b"x"]
        assert server.poller.getWriters() == []
        assert pair.record.sent == len(PLENTY)
        pair.transport.loseConnection()
        server.turn()
        assert pair.protocol.events == [*told, b"x", ConnectionDone]

    def test_thenThePeers(self, server: MemoryServer) -> None:
        """
        When the peer ends its own half, too, the connection has ended.
        """
        pair = server.enter()
        pair.transport.loseWriteConnection()
        server.turn()
        pair.peer.shutdown(socket.SHUT_WR)
        server.turn()
        assert pair.protocol.events == [ConnectionDone]

    def test_withAProducer(self, server: MemoryServer) -> None:
        """
        It does not end as long as a producer has more to write.
        """
        pair = server.enter()
        pieces = [PLENTY, b"1"]
        pair.transport.registerProducer(Pull(pair.transport, pieces), False)
        pair.transport.loseWriteConnection()
        assert server.collect(pair.peer, len(PLENTY) + 1) == PLENTY + b"1"
        server.turn()
        server.turn()
        assert pair.peer.recv(1) == b""
        assert pair.protocol.events == []

    def test_whenThePeerIsGone(self, server: MemoryServer) -> None:
        """
        It is no fault that the peer is gone already.
        """
        pair = server.enter(overTCP=True)
        pair.transport.pauseProducing()
        pair.transport.loseWriteConnection()
        pair.reset()
        server.turn()
        pair.transport.resumeProducing()
        server.turn()
        assert pair.protocol.events == [ConnectionLost]


class TestRecord:
    """
    What is known of the connection.
    """

    def test_counts(self, server: MemoryServer) -> None:
        """
        Bytes are counted as they come, and as the kernel takes them: what waits was not sent.
        """
        pair = server.enter()
        pair.peer.sendall(b"12345")
        server.turn()
        assert (pair.record.received, pair.record.sent) == (5, 0)
        assert pair.transport.progress() == 5
        pair.transport.write(b"123")
        assert pair.record.sent == 3
        fill(pair)
        pair.transport.write(b"4")
        first = pair.record.sent
        assert 3 < first < len(PLENTY)
        pair.peer.recv(1 << 16)
        server.turn()
        assert first <= pair.record.sent < len(PLENTY)
        pair.reset()
        server.turn()
        assert first <= pair.record.sent < len(PLENTY)
        assert pair.record.reason is CloseReason.RESET

    def test_countsAll(self, server: MemoryServer) -> None:
        """
        In the end all has been counted that was sent, by whichever way.
        """
        pair = server.enter()
        pair.transport.writeSequence([b"1", b"2"])
        fill(pair)
        pair.transport.write(b"3")
        server.collect(pair.peer, len(PLENTY) + 3)
        assert pair.record.sent == len(PLENTY) + 3

    @pytest.mark.parametrize(
        ("reason", "ending"),
        [
            (ConnectionDone(), CloseReason.CLIENT_CLOSED),
            (ConnectionLost(), CloseReason.RESET),
            (ConnectionAborted(), CloseReason.PROTOCOL_ABORTED),
            (ZeroDivisionError(), CloseReason.ERROR),
        ],
    )
    def test_ending(self, server: MemoryServer, reason: Exception, ending: CloseReason) -> None:
        """
        If nobody here has wanted the end, it is known by the reason; else by who has.
        """
        for before in None, CloseReason.DRAINED:
            pair = server.enter()
            pair.record.reason = before
            pair.transport.connectionLost(Failure(reason))
            assert pair.record.reason is (before or ending)

    @pytest.mark.parametrize("end", ["reset", "abort", "reset after our FIN"])
    def test_unacknowledged(self, server: MemoryServer, end: str) -> None:
        """
        Of a connection that is cut, those bytes were not delivered that the peer's kernel had not
        acknowledged; that they were handed to the kernel stays true.
        """
        pair = server.enter(overTCP=True)
        halfCloseable(pair)
        fill(pair)
        if end == "reset after our FIN":
            pair.transport.loseWriteConnection()
            while not pair.transport._outputEnded:
                server.turn()
                pair.peer.recv(1 << 10)
        server.waitUntilFull(pair)
        sent = pair.record.sent
        there = sent - pair.unacknowledged()
        assert pair.unread() <= there
        if end == "abort":
            pair.transport.abortConnection()
        else:
            pair.reset()
        server.turn()
        server.passes(0.1)
        assert pair.transport.disconnected
        assert pair.record.delivered == there < sent
        assert pair.record.sent == sent == server.connections.counts()[2]

    def test_delivered(self, server: MemoryServer) -> None:
        """
        What an orderly end leaves to the kernel is delivered, and what a UNIX socket had taken.
        """
        orderly, unix = server.enter(overTCP=True), server.enter()
        orderly.transport.write(b"x" * 1000)
        orderly.peer.shutdown(socket.SHUT_WR)
        unix.transport.write(b"x" * 1000)
        unix.reset()
        while len(server.ended) < 2:
            server.turn()
        assert {record.delivered for record in server.ended} == {1000}

    def test_neverBelowZero(self) -> None:
        """
        With TLS more may be unacknowledged than was sent for the protocol.
        """
        record = ConnectionRecord("tls:tcp:0", UNIXAddress(None))
        record.sent, record.unacknowledged = 2, 24
        assert record.delivered == 0

    def test_idle(self, server: MemoryServer) -> None:
        """
        It is idle if nothing waits, and its protocol has begun nothing, if that can be said of it.
        """
        pair = server.enter()
        assert pair.transport.isIdle()
        directlyProvides(pair.protocol, IDrainable)
        for idle in False, True:
            pair.protocol.isIdle = lambda idle=idle: idle
            assert pair.transport.isIdle() is idle
        fill(pair)
        assert not pair.transport.isIdle()
        server.collect(pair.peer, len(PLENTY))
        assert pair.transport.isIdle()

    def test_addresses(self, server: MemoryServer) -> None:
        """
        Both ends are shown as they are, or as a balancer has named them.
        """
        pair = server.enter(IPv4Address("TCP", "192.0.2.9", 1), overTCP=True)
        transport = pair.transport
        assert transport.getPeer() == IPv4Address("TCP", "192.0.2.9", 1)
        assert transport.getHost() == IPv4Address("TCP", *pair.peer.getpeername())
        assert repr(transport) == "<Recorder,1,192.0.2.9>"
        client, host = IPv6Address("TCP", "::1", 2), IPv6Address("TCP", "::2", 3)
        transport.setClient(client, host)
        assert (transport.getPeer(), transport.getHost()) == (client, host)
        assert transport.logPrefix() == "Recorder,1,192.0.2.9,::1"
        transport.setClient(client, None)
        assert transport.getHost() == IPv4Address("TCP", *pair.peer.getpeername())

    def test_addressesOfUNIX(self, server: MemoryServer) -> None:
        """
        Of a UNIX socket there are none to be seen.
        """
        pair = server.enter(UNIXAddress(None))
        assert pair.transport.getHost() == UNIXAddress(None)
        assert pair.transport.logPrefix() == "Recorder,1,unix"

    def test_logPrefix(self, server: MemoryServer) -> None:
        """
        The log calls it what its protocol wants to be called, and itself when there is none.
        """
        pair = server.enter()

        @implementer(ILoggingContext)
        class Named(Recorder):
            def logPrefix(self) -> str:
                return "name"

        pair.transport.protocol = Named()
        assert pair.transport.logPrefix() == "name,1,192.0.2.1"
        pair.transport.connectionLost(connectionDone)
        assert pair.transport.logPrefix() == "Transport,1,192.0.2.1"


class TestSocket:
    """
    The socket.
    """

    def test_options(self, server: MemoryServer) -> None:
        """
        Its options are what the protocol sets.
        """
        transport = server.enter(overTCP=True).transport
        for enabled in True, False, True:
            transport.setTcpNoDelay(enabled)
            assert transport.getTcpNoDelay() == enabled
            transport.setTcpKeepAlive(enabled)
            assert transport.getTcpKeepAlive() == enabled

    def test_handle(self, server: MemoryServer) -> None:
        """
        It can be had; it is closed with the connection.
        """
        pair = server.enter()
        assert pair.transport.getHandle().fileno() == pair.transport.fileno() >= 0
        end(pair)
        assert pair.transport.fileno() == -1


class TestFarewell:
    """
    We have ended our half, and wait for the peer's.
    """

    def _enter(self, server: MemoryServer) -> Pair:
        pair = server.enter(overTCP=True)
        pair.transport.sayFarewell()
        assert pair.peer.recv(1) == b""
        assert isinstance(pair.transport.stage, Farewell)
        # The peer's kernel takes a moment to acknowledge it.
        while pair.transport.queued(termios.TIOCOUTQ):
            pass
        return pair

    def test_interfaces(self, server: MemoryServer) -> None:
        """
        It is what the poller takes it for.
        """
        stage = self._enter(server).transport.stage
        assert verifyObject(IReadWriteDescriptor, stage)
        assert stage is not None
        assert stage.logPrefix() == "Recorder,1,192.0.2.1"

    def test_inOrder(self, server: MemoryServer) -> None:
        """
        What still comes is dropped; the peer's own end is the end.
        """
        pair = self._enter(server)
        for _ in range(3):
            pair.peer.sendall(PLENTY[:1000])
            server.passes(CLOSE_TIMEOUT / 5)
        assert pair.protocol.events == []
        assert pair.record.received == 0
        pair.peer.shutdown(socket.SHUT_WR)
        server.turn()
        assert pair.protocol.events == [ConnectionDone]
        assert server.ended == [pair.record]
        assert server.clock.getDelayedCalls() == []
        # No reset.
        assert pair.peer.recv(1) == b""

    def test_reset(self, server: MemoryServer) -> None:
        """
        A reset is the end, too.
        """
        pair = self._enter(server)
        pair.reset()
        server.turn()
        assert pair.protocol.events == [ConnectionLost]
        assert server.clock.getDelayedCalls() == []

    def test_peerIsGone(self, server: MemoryServer) -> None:
        """
        It is no fault if the peer was gone before.
        """
        pair = server.enter(overTCP=True)
        pair.reset()
        pair.transport.sayFarewell()
        server.turn()
        assert pair.protocol.events == [ConnectionLost]

    def test_late(self, server: MemoryServer) -> None:
        """
        A peer that does not end its own half in time is reset.
        """
        pair = self._enter(server)
        server.passes(CLOSE_TIMEOUT - 0.1)
        assert pair.protocol.events == []
        server.passes(0.2)
        assert pair.protocol.events == [ConnectionAborted]
        with pytest.raises(BrokenPipeError):
            pair.peer.send(b"x")

    def test_lateWithSomethingUnread(self, server: MemoryServer) -> None:
        """
        As long as the peer has something to read it is waited for.
        """
        pair = server.enter()
        pair.transport.write(b"read me")
        pair.transport.sayFarewell()
        server.passes(3.5 * CLOSE_TIMEOUT)
        assert pair.protocol.events == []
        assert pair.peer.recv(100) == b"read me"
        server.passes(CLOSE_TIMEOUT - 0.1)
        assert pair.protocol.events == [ConnectionAborted]

    def test_dropsWhatWaits(self, server: MemoryServer) -> None:
        """
        What had not been sent is not sent any more, nor is what is written then.
        """
        pair = server.enter()
        fill(pair)
        sent = pair.record.sent
        pair.transport.sayFarewell()
        pair.transport.write(b"late")
        assert not pair.transport._buffer
        received = 0
        while data := pair.peer.recv(1 << 20):
            received += len(data)
            server.turn()
        assert received == sent == pair.record.sent

    def test_closes(self, server: MemoryServer) -> None:
        """
        To close it changes nothing, and to abort it aborts it.
        """
        pair = self._enter(server)
        pair.transport.loseConnection()
        pair.transport.close()
        server.turn()
        assert pair.protocol.events == []
        assert pair.transport.isIdle()
        pair.transport.abortConnection()
        server.turn()
        assert pair.protocol.events == [ConnectionAborted]

    def test_protocolGoesOn(self, server: MemoryServer) -> None:
        """
        Whatever its protocol still does, the socket is watched for the peer's end, and for nothing
        else.
        """
        pair = server.enter(overTCP=True)
        pair.transport.registerProducer(pair.protocol, True)
        pair.transport.sayFarewell()
        pair.transport.unregisterProducer()
        pair.transport.registerProducer(pair.protocol, False)
        pair.transport.write(b"late")
        pair.transport.pauseProducing()
        pair.transport.resumeProducing()
        pair.transport.loseWriteConnection()
        assert server.poller.getReaders() == [pair.transport.stage]
        assert server.poller.getWriters() == []
        pair.peer.close()
        server.turn()
        assert pair.protocol.events == ["stopped", ConnectionDone]
