"""
TLS as a transport: over socket pairs, turn by turn, with a client whose records are made in memory
and cut anywhere.
"""

import contextlib
import resource
import select
import socket
import ssl
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.logger import LogLevel, capturedLogs

from kvserver.connections.certificates import Certificates
from kvserver.connections.handover import LocalHandover
from kvserver.connections.handshake import HANDSHAKE_TIMEOUT
from kvserver.connections.limits import Limits
from kvserver.connections.record import CloseReason
from kvserver.connections.stage import CLOSE_TIMEOUT
from kvserver.connections.throttle import REPEAT_INTERVAL
from kvserver.connections.tls import RECEIVE_SIZE, TLSTransport
from kvserver.listening.route import Route
from tests.support.clients import LINES, slow
from tests.support.memory import CLIENT_ADDRESS, MemoryServer, Pair, RecorderFactory, Watched
from tests.support.wires import Authority, pem

RECORD = b"x" * (16 * 1024 - 1) + b"\n"
"""
What is one record, the longest there is.
"""

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """
    Starting takes all file descriptors there are: give them back.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture(scope="session")
def certificates(authority: Authority) -> Certificates:
    """
    What all memoryServers here show.
    """
    certificate, key = authority.issue("memoryServer")
    return Certificates(str(certificate), str(key))


class TLSServer(MemoryServer):
    """
    A memoryServer that one comes to by TLS.
    """

    def __init__(
        self,
        certificates: Certificates,
        context: ssl.SSLContext,
        limits: Limits | None = None,
        factory: ServerFactory | None = None,
    ) -> None:
        """
        @param context: What its visitors have.
        """
        super().__init__(limits, factory)
        self.context = context
        self.handover = LocalHandover(self.factory, certificates)
        self.route = Route(self.connections, self.poller, self.handover)

    def visit(self) -> "Visitor":
        """
        Somebody comes, and shakes hands.
        """
        visitor = Visitor(self)
        visitor.shakeHands()
        return visitor

    def isReady(self) -> bool:
        """
        Would the reactor find the poller readable?
        """
        return bool(select.select([self.poller], [], [], 0)[0])

    def settle(self) -> None:
        """
        The reactor has as many turns as there is something to do, which must come to an end.
        """
        for _ in range(1_000):
            if not self.isReady():
                return
            self.turn()
        raise AssertionError("there is no end of it")


class Visitor:
    """
    A client with TLS.

    @ivar pair: Its connection.

    @ivar peer: Its socket.

    @ivar tls: Its TLS.

    @ivar received: What has come for it.

    @ivar ended: Has the other side said close_notify?

    @ivar closed: Has the other side sent FIN?
    """

    def __init__(self, memoryServer: TLSServer) -> None:
        self.memoryServer = memoryServer
        self.pair: Pair = memoryServer.enter()
        self.peer = self.pair.peer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = memoryServer.context.wrap_bio(
            self._incoming, self._outgoing, server_hostname="localhost"
        )
        self.received = bytearray()
        self.ended = self.closed = False

    def flight(self) -> bytes:
        """
        What the client has to send next, to shake hands.
        """
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def shakeHands(self, cut: Callable[[bytes], list[bytes]] = lambda flight: [flight]) -> None:
        """
        Do so.

        @param cut: How each flight is cut.
        """
        while flight := self.flight():
            for piece in cut(flight):
                self.peer.sendall(piece)
                self.memoryServer.settle()
            self.listen()
        assert self.tls.version()
        self.pair.protocol = self.pair.transport.protocol

    def encrypt(self, *lines: bytes) -> bytes:
        """
        The records of these, one for each if it is not too long.
        """
        for line in lines:
            self.tls.write(line)
        return self._outgoing.read()

    def closeNotify(self) -> bytes:
        """
        The record that says that there is no more to come.
        """
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()

    def listen(self, size: int = 1 << 20) -> None:
        """
        Take what has come to the socket, so much of it at most.
        """
        self.peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while size and not self.closed:
                data = self.peer.recv(size)
                self.closed = not data
                size -= len(data)
                self._incoming.write(data)

    def read(self, size: int = 1 << 20) -> bytes:
        """
        Take what has come to the socket, so much of it at most.

        @return: All that has come for this client so far.
        """
        self.listen(size)
        try:
            while data := self.tls.read(1 << 16):
                self.received += data
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return bytes(self.received)

    def readAll(self, size: int) -> bytes:
        """
        Take so many bytes, while the memoryServer has its turns.
        """
        while len(self.received) < size and not self.closed:
            self.memoryServer.turn()
            self.read()
        return bytes(self.received)

    def ask(self, *lines: bytes) -> bytes:
        """
        Send these, in a segment.

        @return: What comes back.
        """
        self.received.clear()
        self.peer.sendall(self.encrypt(*lines))
        self.memoryServer.settle()
        return self.read()

    def stick(self, chunk: bytes) -> int:
        """
        Send this over and over until nothing more is taken, and read nothing.

        @return: How often it has been sent.
        """
        count = 0
        encrypted = b""
        self.peer.setblocking(False)
        transport = self.pair.transport
        while transport in self.memoryServer.poller.getReaders() or self.memoryServer.isReady():
            assert transport.record.reason is None
            if not encrypted:
                encrypted = self.encrypt(chunk)
                count += 1
            with contextlib.suppress(BlockingIOError):
                encrypted = encrypted[self.peer.send(encrypted) :]
            self.memoryServer.turn()
        self._rest = encrypted
        return count

    def finish(self) -> None:
        """
        Send what L{stick} has left.
        """
        while self._rest:
            self.memoryServer.turn()
            self.read()
            with contextlib.suppress(BlockingIOError):
                self._rest = self._rest[self.peer.send(self._rest) :]


@pytest.fixture(params=VERSIONS)
def context(request: pytest.FixtureRequest, authority: Authority) -> ssl.SSLContext:
    """
    What a client needs, for each version of TLS.
    """
    context = authority.client()
    context.minimum_version = context.maximum_version = request.param
    return context


@pytest.fixture
def memoryServer(certificates: Certificates, context: ssl.SSLContext) -> Iterator[TLSServer]:
    """
    A memoryServer of the echo, that is empty in the end.
    """
    memoryServer = TLSServer(certificates, context)
    yield memoryServer
    memoryServer.close()


@pytest.fixture
def recording(certificates: Certificates, context: ssl.SSLContext) -> Iterator[TLSServer]:
    """
    A memoryServer whose pairs are recorded, and that is empty in the end.
    """
    memoryServer = TLSServer(certificates, context, factory=RecorderFactory())
    yield memoryServer
    memoryServer.close()


# A record, cut anywhere.


def test_handshake(memoryServer: TLSServer) -> None:
    """
    The protocol comes when the handshake is done, and the record has the version.
    """
    visitor = Visitor(memoryServer)
    assert visitor.pair.transport.protocol is None
    visitor.shakeHands()
    assert visitor.pair.transport.protocol is not None
    assert visitor.pair.record.tls == visitor.tls.version()
    assert visitor.ask(b"hello\n") == b"hello\n"
    assert (visitor.pair.record.received, visitor.pair.record.sent) == (6, 6)


def test_handshakeCutAnywhere(memoryServer: TLSServer) -> None:
    """
    The handshake may be cut at every byte of each flight.
    """
    longest = 1
    place = 0
    while place < longest:
        visitor = Visitor(memoryServer)

        def cut(flight: bytes, place: int = place) -> list[bytes]:
            nonlocal longest
            longest = max(longest, len(flight))
            return [flight[:place], flight[place:]]

        visitor.shakeHands(cut)
        assert visitor.ask(b"hello\n") == b"hello\n"
        visitor.peer.close()
        memoryServer.settle()
        place += 1
    assert longest > 100


def test_handshakeByteByByte(memoryServer: TLSServer) -> None:
    """
    It may come byte by byte.
    """
    visitor = Visitor(memoryServer)
    visitor.shakeHands(lambda flight: [bytes([byte]) for byte in flight])
    assert visitor.ask(b"hello\n") == b"hello\n"


@pytest.mark.parametrize("line", [b"\n", b"hello\n", slow(RECORD)])
def test_recordCutAnywhere(memoryServer: TLSServer, line: bytes) -> None:
    """
    A record may be cut at every byte: it is answered when it is whole, and from its first byte to
    its last but one the connection is not idle.
    """
    visitor = memoryServer.visit()
    transport = visitor.pair.transport
    place = 0
    while True:
        record = visitor.encrypt(line)
        if place == len(record):
            break
        if place:
            visitor.peer.sendall(record[:place])
            memoryServer.turn()
            assert not transport.isIdle()
            assert visitor.pair.isSilent()
        else:
            assert transport.isIdle()
        visitor.peer.sendall(record[place:])
        memoryServer.turn()
        assert transport.isIdle()
        visitor.received.clear()
        assert visitor.read() == line
        place += 1
    assert place > len(line)


def test_recordsCutAnywhere(memoryServer: TLSServer) -> None:
    """
    So may several records that come in two segments.
    """
    visitor = memoryServer.visit()
    lines = [b"hello\n", b"is it", b" me\n", b"you are looking for?\n"]
    for place in range(1, len(visitor.encrypt(*lines))):
        if place == 1:
            visitor = memoryServer.visit()
        records = visitor.encrypt(*lines)
        visitor.received.clear()
        for piece in records[:place], records[place:]:
            visitor.peer.sendall(piece)
            memoryServer.settle()
        assert visitor.read() == b"".join(lines)


# What comes at once.


def test_severalRecords(memoryServer: TLSServer) -> None:
    """
    What comes in one segment is answered with one send, however many records it is.
    """
    visitor = memoryServer.visit()
    sends = Watched(visitor.pair).sends
    for count in 1, 2, 10, 100:
        lines = [b"%d\n" % number for number in range(count)]
        visitor.peer.sendall(visitor.encrypt(*lines))
        memoryServer.turn()
        assert visitor.read() == b"".join(lines)
        visitor.received.clear()
        assert len(sends) == 1
        sends.clear()


def test_severalRecordsAtOnce(recording: TLSServer) -> None:
    """
    It is given to the protocol at once.
    """
    visitor = recording.visit()
    visitor.peer.sendall(visitor.encrypt(*[b"%d\n" % number for number in range(100)]))
    recording.turn()
    assert visitor.pair.protocol.events == [b"".join(b"%d\n" % n for n in range(100))]


def test_withTheHandshake(memoryServer: TLSServer) -> None:
    """
    What comes in one segment with the end of the handshake is answered.
    """
    visitor = Visitor(memoryServer)
    visitor.peer.sendall(visitor.flight())
    memoryServer.settle()
    visitor.listen()
    flight = visitor.flight()
    if visitor.tls.version() != "TLSv1.3":
        # The client must not send before it has heard the server's end.
        visitor.peer.sendall(flight)
        memoryServer.settle()
        visitor.listen()
        flight = visitor.flight()
    visitor.peer.sendall(flight + visitor.encrypt(b"hello\n", b"is it"))
    memoryServer.settle()
    assert visitor.read() == b"hello\n"


def test_muchAtOnce(memoryServer: TLSServer) -> None:
    """
    Of much that comes nothing is left where no event would tell of it.
    """
    visitor = memoryServer.visit()
    text = LINES[: 1 << 17]
    encrypted = visitor.encrypt(text)
    visitor.peer.setblocking(False)
    while encrypted:
        encrypted = encrypted[visitor.peer.send(encrypted) :]
        memoryServer.settle()
        assert visitor.pair.transport.queued(0x541B) == 0
        visitor.read()
    last = text.rfind(b"\n") + 1
    assert visitor.readAll(last) == text[:last]


# The end.


@pytest.mark.parametrize("tail", [b"", b"the tail"])
@pytest.mark.parametrize(
    "lines", [[], [b"hello\n"], [b"hello\n", b"is it me\n", b"for"], [RECORD] * 3]
)
@pytest.mark.parametrize("notify", [True, False])
def test_end(memoryServer: TLSServer, lines: list[bytes], tail: bytes, notify: bool) -> None:
    """
    Lines, a tail without an end, and a close_notify or a FIN without one, all in one segment: all
    comes back, and then a close_notify and FIN.
    """
    visitor = memoryServer.visit()
    text = b"".join((*lines, tail))
    records = visitor.encrypt(*lines, tail)
    if notify:
        visitor.peer.sendall(records + visitor.closeNotify())
    else:
        visitor.peer.sendall(records)
        visitor.peer.shutdown(socket.SHUT_WR)
    memoryServer.settle()
    assert visitor.read() == text
    assert visitor.ended
    assert visitor.closed
    (record,) = memoryServer.ended
    assert record.reason is CloseReason.CLIENT_CLOSED
    assert (record.received, record.sent) == (len(text), len(text))
    assert record.work == text.count(b"\n")


@pytest.mark.parametrize("tail", [b"", b"the tail"])
def test_endInTheMiddle(memoryServer: TLSServer, tail: bytes) -> None:
    """
    FIN in the middle of a record: what was whole comes back.
    """
    for place in range(1, len(memoryServer.visit().encrypt(b"cut\n"))):
        visitor = memoryServer.visit()
        whole = visitor.encrypt(b"hello\n", tail)
        visitor.peer.sendall(whole + visitor.encrypt(b"cut\n")[:place])
        visitor.peer.shutdown(socket.SHUT_WR)
        memoryServer.settle()
        assert visitor.read() == b"hello\n" + tail
        assert visitor.ended
        assert visitor.closed
        assert memoryServer.ended[-1].reason is CloseReason.CLIENT_CLOSED


def test_afterCloseNotify(memoryServer: TLSServer) -> None:
    """
    What comes after a close_notify is nothing, also if it is more than is read at once: it must not
    turn our close into a reset.
    """
    visitor = memoryServer.visit()
    end = visitor.encrypt(b"hello\n") + visitor.closeNotify()
    visitor.peer.sendall(end + bytes(2 * RECEIVE_SIZE))
    memoryServer.settle()
    assert visitor.read() == b"hello\n"
    assert visitor.ended


def test_ourEnd(memoryServer: TLSServer) -> None:
    """
    If we close, the peer gets a close_notify and FIN, and may take a while to end its own half;
    what it still sends is dropped.
    """
    visitor = memoryServer.visit()
    visitor.pair.transport.loseConnection()
    memoryServer.settle()
    visitor.read()
    assert visitor.ended
    assert visitor.closed
    for _ in range(3):
        visitor.peer.sendall(visitor.encrypt(b"hello\n"))
        memoryServer.settle()
    assert len(memoryServer.connections) == 1
    visitor.peer.close()
    memoryServer.settle()
    assert len(memoryServer.connections) == 0


def test_ourEndIsLate(memoryServer: TLSServer) -> None:
    """
    A peer that does not is aborted.
    """
    visitor = memoryServer.visit()
    visitor.pair.transport.loseConnection()
    memoryServer.settle()
    visitor.read()
    memoryServer.passes(CLOSE_TIMEOUT - 1)
    assert len(memoryServer.connections) == 1
    memoryServer.passes(2)
    assert len(memoryServer.connections) == 0


def test_reset(memoryServer: TLSServer) -> None:
    """
    A reset is one, in each state.
    """
    for state in range(4):
        visitor = Visitor(memoryServer) if state < 2 else memoryServer.visit()
        if state:
            visitor.peer.sendall(visitor.flight() if state == 1 else visitor.encrypt(RECORD))
            memoryServer.turn()
        if state == 3:
            visitor.peer.sendall(visitor.encrypt(RECORD)[:100])
            memoryServer.turn()
        visitor.pair.reset()
        memoryServer.settle()
        assert len(memoryServer.connections) == 0


def test_garbage(memoryServer: TLSServer) -> None:
    """
    A record that is none is answered with an alert, and the connection is reset: that is a warning,
    and no error.
    """
    visitor = memoryServer.visit()
    with capturedLogs() as logs:
        visitor.peer.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        memoryServer.settle()
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        visitor.read()
    assert visitor.closed
    assert [event["log_level"] for event in logs] == [LogLevel.warn]
    visitor.peer.close()
    memoryServer.settle()
    (record,) = memoryServer.ended
    assert record.reason is CloseReason.RESET


def test_noTLS(memoryServer: TLSServer) -> None:
    """
    So is one that is no record at all.
    """
    visitor = memoryServer.visit()
    visitor.peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
    memoryServer.settle()
    with pytest.raises(ssl.SSLError, match="ALERT"):
        visitor.read()
    assert visitor.closed
    visitor.peer.close()
    memoryServer.settle()
    assert [record.reason for record in memoryServer.ended] == [CloseReason.RESET]


def test_garbageWhileSending(memoryServer: TLSServer) -> None:
    """
    Also when not all of the echo was sent.
    """
    visitor = memoryServer.visit()
    visitor.stick(LINES[: 1 << 16])
    visitor._rest = b""
    assert visitor.pair.transport._buffer
    visitor.peer.close()
    memoryServer.settle()
    assert len(memoryServer.connections) == 0


def test_leavesNothing(certificates: Certificates, context: ssl.SSLContext) -> None:
    """
    What a connection was is gone with it, without the garbage collector.
    """
    memoryServer = TLSServer(certificates, context)
    visitor = memoryServer.visit()
    assert visitor.ask(b"hello\n") == b"hello\n"
    transport = visitor.pair.transport
    gone = [weakref.ref(thing) for thing in (transport, transport.socket, transport.protocol)]
    del transport
    visitor.peer.sendall(visitor.closeNotify())
    memoryServer.settle()
    assert len(memoryServer.connections) == 0
    memoryServer.ended.clear()
    del visitor
    assert [thing() for thing in gone] == [None] * 3


@pytest.mark.parametrize("how", ["silent", "refused", "late"])
def test_handshakeLeavesNothing(
    certificates: Certificates, context: ssl.SSLContext, how: str
) -> None:
    """
    Also if its handshake came to nothing.
    """
    memoryServer = TLSServer(certificates, context)
    visitor = Visitor(memoryServer)
    gone = [weakref.ref(thing) for thing in (visitor.pair.transport, visitor.pair.transport.stage)]
    if how == "refused":
        visitor.peer.sendall(b"hello\n" * 10)
        memoryServer.settle()
    if how == "late":
        memoryServer.passes(HANDSHAKE_TIMEOUT + 1)
    visitor.peer.close()
    memoryServer.settle()
    assert len(memoryServer.connections) == 0
    memoryServer.ended.clear()
    del visitor
    assert [thing() for thing in gone] == [None] * 2


# Who does not read.


@pytest.mark.parametrize("size", [1, 2, 100, 1_000, 16_000, 100_000])
def test_neverReads(memoryServer: TLSServer, size: int) -> None:
    """
    Who does not read is not read from, and nothing but the rest of what was read waits for it; when
    it reads at last, it gets all.
    """
    visitor = memoryServer.visit()
    chunk = (b"x" * (size - 1) + b"\n") * max(1, 100_000 // size)
    count = visitor.stick(chunk)
    assert count > 1
    transport = visitor.pair.transport
    assert transport not in memoryServer.poller.getReaders()
    assert not transport.isIdle()
    assert len(transport._buffer) <= 2 * 64 * 1024
    visitor.finish()
    assert visitor.readAll(count * len(chunk)) == chunk * count
    memoryServer.settle()
    assert transport in memoryServer.poller.getReaders()
    assert transport.isIdle()


@pytest.mark.parametrize("notify", [True, False])
def test_neverReadsAndEnds(memoryServer: TLSServer, notify: bool) -> None:
    """
    Also if it has said that there is no more to come.
    """
    visitor = memoryServer.visit()
    chunk = LINES[:100_003]
    sent = visitor.stick(chunk)
    while visitor._rest:
        memoryServer.turn()
        visitor.listen(1 << 10)
        with contextlib.suppress(BlockingIOError):
            visitor._rest = visitor._rest[visitor.peer.send(visitor._rest) :]
    visitor.peer.setblocking(False)
    if notify:
        visitor.peer.sendall(visitor.closeNotify())
    else:
        visitor.peer.shutdown(socket.SHUT_WR)
    memoryServer.settle()
    assert visitor.readAll(sent * len(chunk)) == chunk * sent
    memoryServer.settle()
    visitor.read()
    assert visitor.ended
    assert visitor.closed


def test_smallBuffers(certificates: Certificates, context: ssl.SSLContext) -> None:
    """
    Neither does it matter that the kernel takes little at a time, at the handshake or later.
    """
    memoryServer = TLSServer(certificates, context)
    visitor = Visitor(memoryServer)
    transport = visitor.pair.transport
    transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    visitor.shakeHands()
    chunk = bytes(range(256)) * 300 + b"\n"
    last = len(chunk) * 20
    sender = iter([chunk] * 20)
    rest = b""
    visitor.peer.setblocking(False)
    while len(visitor.received) < last:
        rest = rest or b"".join(map(visitor.encrypt, [next(sender, b"")]))
        with contextlib.suppress(BlockingIOError):
            rest = rest[visitor.peer.send(rest) :]
        memoryServer.turn()
        visitor.read(777)
    assert visitor.received == chunk * 20
    memoryServer.close()


# What is counted.


def test_counters(memoryServer: TLSServer) -> None:
    """
    What is counted are the application's bytes, and the counters never go down: not with short
    lines, of which the records are much longer, not for a client that reads slowly, and not at the
    end.
    """
    visitor = memoryServer.visit()
    chunk = b"x\n"
    count = 0
    before = (0, 0, 0)

    def look() -> None:
        nonlocal before
        now = memoryServer.connections.counts()
        assert all(new >= old for new, old in zip(now, before, strict=True)), (before, now)
        lines, received, sent = before = now
        assert sent <= received <= 2 * count + 1
        assert lines <= count

    visitor.peer.setblocking(False)
    rest = b""
    while not visitor.pair.transport._buffer:
        for _ in range(100):
            rest += visitor.encrypt(chunk)
            count += 1
        with contextlib.suppress(BlockingIOError):
            rest = rest[visitor.peer.send(rest) :]
        memoryServer.turn()
        look()
    while len(visitor.received) < 2 * count:
        with contextlib.suppress(BlockingIOError):
            rest = rest[visitor.peer.send(rest) :] if rest else b""
        visitor.read(1_000)
        memoryServer.turn()
        look()
    assert visitor.received == chunk * count
    assert before == (count, 2 * count, 2 * count)
    visitor.peer.sendall(visitor.encrypt(b"x") + visitor.closeNotify())
    memoryServer.settle()
    look()
    assert before == (count, 2 * count + 1, 2 * count + 1)


@pytest.mark.parametrize("abort", [True, False])
def test_countersAtTheEnd(memoryServer: TLSServer, abort: bool) -> None:
    """
    What was not sent is not counted as sent, also if it never will be.
    """
    visitor = memoryServer.visit()
    visitor.stick(LINES[:100_000])
    unfinished = len(visitor.pair.transport.protocol._unfinished)  # type: ignore[union-attr]
    before = memoryServer.connections.counts()
    assert isinstance(visitor.pair.transport, TLSTransport)
    waiting = sum(size for _, size in visitor.pair.transport._parts)
    assert before[1] == before[2] + waiting + unfinished
    if abort:
        visitor.pair.transport.abortConnection()
    else:
        visitor.peer.close()
    memoryServer.settle()
    memoryServer.passes(0.1)
    assert len(memoryServer.connections) == 0
    assert memoryServer.connections.counts() == before


class TLSServerOverTCP(TLSServer):
    """
    A memoryServer whose kernel knows what the peer's has acknowledged.
    """

    def enter(self, address: IAddress = CLIENT_ADDRESS, overTCP: bool = True) -> Pair:
        """
        See L{MemoryServer}.
        """
        return super().enter(address, overTCP)


@pytest.mark.parametrize("chunk", [b"x\n", LINES[:100_000]])
def test_unacknowledged(certificates: Certificates, context: ssl.SSLContext, chunk: bytes) -> None:
    """
    What the peer's kernel had not acknowledged when the connection was reset is not delivered: at
    least what has come is known, and the counter stays.
    """
    memoryServer = TLSServerOverTCP(certificates, context)
    visitor = memoryServer.visit()
    visitor.stick(chunk * (100_000 // len(chunk)))
    memoryServer.waitUntilFull(visitor.pair)
    before = memoryServer.connections.counts()
    # To take it would let more come.
    there = visitor.peer.recv(visitor.pair.unread(), socket.MSG_PEEK)
    assert len(there) == visitor.pair.unread()
    visitor.pair.transport.abortConnection()
    memoryServer.passes(0.1)
    visitor._incoming.write(there)
    visitor.read(0)
    record = visitor.pair.record
    assert record.delivered <= len(visitor.received) < record.sent
    assert memoryServer.connections.counts() == before
    memoryServer.close()


# A socket that takes nothing.


def test_writeRefused(memoryServer: TLSServer) -> None:
    """
    What the socket does not take at first is sent when it does.
    """
    visitor = memoryServer.visit()
    opened = Watched(visitor.pair)
    for number in range(3):
        opened.refusals = 1
        line = b"%d\n" % number
        assert visitor.ask(line) == line
        assert memoryServer.poller.getReaders() == [visitor.pair.transport]
        assert memoryServer.poller.getWriters() == []
    assert visitor.pair.record.sent == 6


@pytest.mark.parametrize("notify", [True, False])
def test_closeRefused(memoryServer: TLSServer, notify: bool) -> None:
    """
    Also close_notify, and what comes before it.
    """
    for refusals in 1, 2:
        visitor = memoryServer.visit()
        visitor.ask(b"is it", b" me")
        Watched(visitor.pair).refusals = refusals
        if notify:
            visitor.peer.sendall(visitor.closeNotify())
        else:
            visitor.peer.shutdown(socket.SHUT_WR)
        memoryServer.settle()
        assert visitor.read() == b"is it me"
        assert visitor.ended
        assert visitor.closed
        assert memoryServer.ended[-1].reason is CloseReason.CLIENT_CLOSED


def test_handshakeRefused(memoryServer: TLSServer) -> None:
    """
    Also our part of the handshake.
    """
    visitor = Visitor(memoryServer)
    Watched(visitor.pair).refusals = 2
    visitor.shakeHands()
    assert visitor.ask(b"hello\n") == b"hello\n"


# The drain, and time-outs.


def drain(memoryServer: TLSServer) -> None:
    """
    Begin to.
    """
    memoryServer.connections.startService()
    memoryServer.connections.stopService()


def test_drainAtRest(memoryServer: TLSServer) -> None:
    """
    Who is at rest when the daemon stops gets a close_notify and FIN.
    """
    visitor = memoryServer.visit()
    assert visitor.ask(b"hello\n") == b"hello\n"
    memoryServer.passes(1)
    drain(memoryServer)
    memoryServer.passes(0.5)
    visitor.read()
    assert visitor.ended
    assert visitor.closed
    visitor.peer.close()
    memoryServer.settle()
    assert [record.reason for record in memoryServer.ended] == [CloseReason.DRAINED]


@pytest.mark.parametrize("place", [1, 4, 5, 20, -1])
def test_drainWaitsForRecord(memoryServer: TLSServer, place: int) -> None:
    """
    Half a record is a line that has begun: it may take its time, is answered, and then all is over.
    """
    visitor = memoryServer.visit()
    memoryServer.passes(1)
    record = visitor.encrypt(b"hello\n")
    visitor.peer.sendall(record[:place])
    memoryServer.settle()
    drain(memoryServer)
    memoryServer.passes(5)
    assert len(memoryServer.connections) == 1
    visitor.peer.sendall(record[place:])
    memoryServer.settle()
    assert visitor.read() == b"hello\n"
    memoryServer.passes(1)
    visitor.read()
    assert visitor.ended
    assert visitor.pair.record.reason is CloseReason.DRAINED


def test_drainEnds(memoryServer: TLSServer) -> None:
    """
    If the rest does not come, the connection is aborted at the end of the drain's time.
    """
    visitor = memoryServer.visit()
    visitor.peer.sendall(visitor.encrypt(b"hello\n")[:-1])
    memoryServer.settle()
    drain(memoryServer)
    memoryServer.passes(memoryServer.connections.limits.drainTimeout - 1)
    assert len(memoryServer.connections) == 1
    memoryServer.passes(2)
    assert [record.reason for record in memoryServer.ended] == [CloseReason.ABORTED]


@pytest.mark.parametrize("place", [1, 5, 100, -1])
def test_drainWaitsForHandshake(memoryServer: TLSServer, place: int) -> None:
    """
    A handshake that has begun may end, and the client has time to send its first line.
    """
    visitor = Visitor(memoryServer)
    flight = visitor.flight()
    visitor.peer.sendall(flight[:place])
    memoryServer.passes(2)
    drain(memoryServer)
    memoryServer.passes(2)
    visitor.peer.sendall(flight[place:])
    memoryServer.settle()
    visitor.listen()
    memoryServer.passes(0.5)
    visitor.shakeHands()
    memoryServer.passes(0.2)
    assert visitor.ask(b"hello\n") == b"hello\n"
    memoryServer.passes(1)
    assert visitor.pair.record.reason is CloseReason.DRAINED


def test_drainOfSilentClient(memoryServer: TLSServer) -> None:
    """
    A client that has sent nothing so far is at rest: it gets FIN, and that is no warning.
    """
    visitor = Visitor(memoryServer)
    memoryServer.passes(1)
    with capturedLogs() as logs:
        drain(memoryServer)
        memoryServer.passes(0.5)
    assert visitor.peer.recv(1) == b""
    assert [record.reason for record in memoryServer.ended] == [CloseReason.DRAINED]
    assert [event["log_level"] for event in logs] == [LogLevel.info]


@pytest.mark.parametrize("place", [0, 1, 5, 100])
def test_handshakeIsLate(memoryServer: TLSServer, place: int) -> None:
    """
    A handshake that does not come to its end in time is over, be it begun or not.
    """
    visitor = Visitor(memoryServer)
    with capturedLogs() as logs:
        visitor.peer.sendall(visitor.flight()[:place])
        memoryServer.passes(HANDSHAKE_TIMEOUT - 1)
        assert len(memoryServer.connections) == 1
        memoryServer.passes(2)
    assert [record.reason for record in memoryServer.ended] == [CloseReason.HANDSHAKE_FAILED]
    (event,) = logs
    assert (
        event["log_format"].format(**event)
        == "TLS handshake with 192.0.2.1 failed: not done within 10 s"
    )


def test_handshakePausedProcess(memoryServer: TLSServer) -> None:
    """
    A hello that is in the kernel when the time is over is read first: the process was paused.
    """
    visitor = Visitor(memoryServer)
    visitor.peer.sendall(visitor.flight())
    memoryServer.clock.advance(HANDSHAKE_TIMEOUT + 1)
    memoryServer.settle()
    visitor.listen()
    visitor.shakeHands()
    assert visitor.ask(b"hello\n") == b"hello\n"


@pytest.mark.parametrize("place", [0, 100])
def test_handshakeEndsEarly(memoryServer: TLSServer, place: int) -> None:
    """
    A client that goes without a word is a health check; in the middle of the handshake it is a
    warning.
    """
    visitor = Visitor(memoryServer)
    with capturedLogs() as logs:
        visitor.peer.sendall(visitor.flight()[:place])
        memoryServer.settle()
        visitor.peer.close()
        memoryServer.settle()
    (record,) = memoryServer.ended
    assert [event["log_level"] for event in logs] == [LogLevel.warn] * bool(place)
    assert record.reason is (CloseReason.HANDSHAKE_FAILED if place else CloseReason.CLIENT_CLOSED)


def test_handshakeEndsAfterOurFlight(memoryServer: TLSServer) -> None:
    """
    So it is when the client has got our part of it.
    """
    visitor = Visitor(memoryServer)
    with capturedLogs() as logs:
        visitor.peer.sendall(visitor.flight())
        memoryServer.settle()
        visitor.listen()
        visitor.peer.shutdown(socket.SHUT_WR)
        memoryServer.settle()
    (event,) = logs
    assert event["log_level"] == LogLevel.warn
    assert event["reason"] == "the client has ended the connection"
    assert [record.reason for record in memoryServer.ended] == [CloseReason.HANDSHAKE_FAILED]


def refusals(memoryServer: TLSServer) -> list[str]:
    """
    Let a client try to shake hands.

    @return: The warnings.
    """
    visitor = Visitor(memoryServer)
    with capturedLogs() as logs:
        with contextlib.suppress(ssl.SSLError):
            visitor.shakeHands()
        memoryServer.settle()
    assert {event["log_level"] for event in logs} <= {LogLevel.warn}
    return [event["log_format"].format(**event) for event in logs]


@pytest.mark.parametrize("version", VERSIONS)
def test_refusedClients(tmp_path: Path, authority: Authority, version: ssl.TLSVersion) -> None:
    """
    It is logged why a client's certificate is refused, in OpenSSL's words, and never whose it is;
    each reason is a warning of its own, and is repeated as that.
    """
    certificate, own = authority.issue("own")
    certificates = Certificates(str(certificate), str(own), str(authority.certificate))
    stranger = Authority(tmp_path / "stranger", "S3CR3T authority")
    lone = Authority(tmp_path / "lone", "S3CR3T lone")
    # The certificate of an authority is signed by itself.
    key = tmp_path / "lone.key"
    key.write_bytes(pem(lone._key))
    texts = []
    memoryServer = TLSServer(certificates, authority.client())
    failed = "TLS handshake with 192.0.2.1 failed: "
    for identity, expected in (
        (None, "peer did not return a certificate"),
        (stranger.issue("S3CR3T stranger"), "certificate verify failed: unable to get "),
        (authority.issue("S3CR3T expired", days=-1), "certificate verify failed: certificate has "),
        ((lone.certificate, key), "certificate verify failed: self"),
    ):
        context = authority.client(identity)
        context.minimum_version = context.maximum_version = version
        memoryServer.context = context
        for number in range(3):
            told = refusals(memoryServer)
            if not number:
                assert len(told) == 1
                assert told[0].startswith(failed + expected)
                texts += told
            else:
                assert told == []
    assert len(set(texts)) == 4
    with capturedLogs() as logs:
        memoryServer.clock.advance(REPEAT_INTERVAL)
    assert [event["log_format"].format(**event) for event in logs] == [
        f"{text} (2 times in a minute)" for text in texts
    ]
    assert "S3CR3T" not in repr([*texts, *logs])
    memoryServer.close()


def test_idle(certificates: Certificates, context: ssl.SSLContext) -> None:
    """
    What comes of a record, or of a handshake, is something that has come: a slow client is not
    idle. A silent one is.
    """
    memoryServer = TLSServer(certificates, context, Limits(idleTimeout=2))
    memoryServer.connections.startService()
    visitor = Visitor(memoryServer)

    def slowly(flight: bytes) -> list[bytes]:
        memoryServer.passes(1)
        return [flight[:20], flight[20:]]

    visitor.shakeHands(slowly)
    record = visitor.encrypt(b"hello\n")
    for byte in record:
        memoryServer.passes(0.5)
        visitor.peer.sendall(bytes([byte]))
        memoryServer.settle()
    assert visitor.read() == b"hello\n"
    assert visitor.pair.record.reason is None
    memoryServer.passes(4)
    visitor.read()
    assert visitor.ended
    assert visitor.pair.record.reason is CloseReason.IDLE_TIMEOUT
    memoryServer.connections.stopService()
    memoryServer.close()


def test_writeTimeout(certificates: Certificates, context: ssl.SSLContext) -> None:
    """
    Who leaves its echo unread is aborted.
    """
    memoryServer = TLSServer(certificates, context, Limits(writeTimeout=10))
    memoryServer.connections.startService()
    visitor = memoryServer.visit()
    visitor.stick(LINES[: 1 << 16])
    memoryServer.passes(8)
    assert len(memoryServer.connections) == 1
    memoryServer.passes(6)
    assert [record.reason for record in memoryServer.ended] == [CloseReason.WRITE_TIMEOUT]
    memoryServer.connections.stopService()
    memoryServer.close()


# Whatever comes.


@contextlib.contextmanager
def opened(certificates: Certificates, authority: Authority) -> Iterator[TLSServer]:
    """
    A memoryServer, for one example; what it logs is no error.
    """
    memoryServer = TLSServer(certificates, authority.client())
    with capturedLogs() as logs:
        yield memoryServer
        memoryServer.close()
    assert [event for event in logs if event["log_level"] >= LogLevel.error] == []


RECORDS = st.builds(
    lambda kind, version, length, body: (
        bytes([kind, 3, version])
        + (len(body) if length is None else length).to_bytes(2, "big")
        + body
    ),
    st.sampled_from([20, 21, 22, 23, 24]),
    st.sampled_from([1, 3, 4]),
    st.none() | st.integers(0, (1 << 16) - 1),
    st.binary(max_size=300),
)
"""
What may look like records.
"""

PIECES = st.lists(RECORDS | st.binary(max_size=300), max_size=8)


@settings(deadline=None)
@given(pieces=PIECES, end=st.booleans())
def test_anythingAtFirst(
    certificates: Certificates, authority: Authority, pieces: list[bytes], end: bool
) -> None:
    """
    Whatever comes in place of a handshake, it fails alone, and comes to an end.
    """
    with opened(certificates, authority) as memoryServer:
        visitor = Visitor(memoryServer)
        for piece in pieces:
            visitor.peer.sendall(piece)
            memoryServer.settle()
        if end:
            visitor.peer.shutdown(socket.SHUT_WR)
            memoryServer.settle()
            assert len(memoryServer.connections) == 0


@settings(deadline=None)
@given(place=st.integers(0, 600), pieces=PIECES, end=st.booleans())
def test_anythingInTheHandshake(
    certificates: Certificates, authority: Authority, place: int, pieces: list[bytes], end: bool
) -> None:
    """
    Also if it has begun well.
    """
    with opened(certificates, authority) as memoryServer:
        visitor = Visitor(memoryServer)
        visitor.peer.sendall(visitor.flight()[:place])
        memoryServer.settle()
        for piece in pieces:
            visitor.peer.sendall(piece)
            memoryServer.settle()
        if end:
            visitor.peer.shutdown(socket.SHUT_WR)
            memoryServer.settle()
            assert len(memoryServer.connections) == 0


@settings(deadline=None)
@given(lines=st.lists(st.binary(min_size=1, max_size=50)), pieces=PIECES, end=st.booleans())
def test_anythingLater(
    certificates: Certificates,
    authority: Authority,
    lines: list[bytes],
    pieces: list[bytes],
    end: bool,
) -> None:
    """
    Whatever comes after the handshake, and after some lines: what was complete before comes back.
    """
    with opened(certificates, authority) as memoryServer:
        visitor = memoryServer.visit()
        visitor.peer.sendall(visitor.encrypt(*lines))
        memoryServer.settle()
        whole = b"".join(lines)
        whole = whole[: whole.rfind(b"\n") + 1]
        assert visitor.read() == whole
        for piece in pieces:
            visitor.peer.sendall(piece)
            memoryServer.settle()
        if end:
            visitor.peer.shutdown(socket.SHUT_WR)
            memoryServer.settle()
            assert len(memoryServer.connections) == 0


@settings(deadline=None)
@given(
    lines=st.lists(st.binary(max_size=200).map(lambda text: text + b"\n"), min_size=1),
    cuts=st.lists(st.integers(1, 400)),
    tail=st.binary(max_size=20),
)
def test_anyCuts(
    certificates: Certificates,
    authority: Authority,
    lines: list[bytes],
    cuts: list[int],
    tail: bytes,
) -> None:
    """
    However records are cut, all that they hold comes back.
    """
    with opened(certificates, authority) as memoryServer:
        visitor = memoryServer.visit()
        rest = visitor.encrypt(*lines, tail) + visitor.closeNotify()
        for cut in cuts:
            if not rest:
                break
            visitor.peer.sendall(rest[:cut])
            memoryServer.settle()
            rest = rest[cut:]
        if rest:
            visitor.peer.sendall(rest)
            memoryServer.settle()
        assert visitor.read() == b"".join(lines) + tail
        assert visitor.ended


@settings(deadline=None)
@given(place=st.integers(0, 10_000), byte=st.integers(1, 255), more=st.booleans())
def test_flippedByte(
    certificates: Certificates, authority: Authority, place: int, byte: int, more: bool
) -> None:
    """
    A byte that the network has changed ends the connection, or leaves it waiting for what never
    comes: nothing wrong is ever echoed.
    """
    with opened(certificates, authority) as memoryServer:
        visitor = memoryServer.visit()
        lines = [b"%d\n" % number for number in range(50)]
        records = bytearray(visitor.encrypt(*lines))
        records[place % len(records)] ^= byte
        visitor.peer.sendall(records)
        memoryServer.settle()
        if more:
            visitor.peer.sendall(visitor.encrypt(*lines))
            memoryServer.settle()
        with contextlib.suppress(ssl.SSLError):
            visitor.read()
        assert b"".join(lines).startswith(visitor.received)
