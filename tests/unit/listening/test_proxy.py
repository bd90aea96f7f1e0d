"""
The PROXY protocol: the header cut anywhere, and anything that is none.
"""

import select
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import LogEvent, LogLevel, capturedLogs

from kvserver.configuration import LOOPBACK
from kvserver.connections.drain import DRAIN_INTERVAL, QUIET_PERIOD
from kvserver.connections.limits import Limits
from kvserver.connections.record import CloseReason
from kvserver.connections.throttle import REPEAT_INTERVAL
from kvserver.connections.transport import Transport
from kvserver.listening.proxy import (
    HEADER_TIMEOUT,
    MAX_LENGTH_V1,
    MAX_LENGTH_V2,
    BadHeader,
    ProxyHeader,
    ProxyStage,
    parseHeader,
)
from tests.support.daemon import PATIENCE
from tests.support.memory import MemoryServer
from tests.support.wires import PROXY_V1, PROXY_V2

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT = IPv4Address("TCP", "192.0.2.1", 1024)
SERVER = IPv4Address("TCP", "192.0.2.2", 4040)
BALANCER = IPv4Address("TCP", "127.0.0.1", 7)


def v2(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    """
    A header of version 2.
    """
    size = len(body) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + body


TCP6 = v2(
    0x21,
    0x21,
    struct.pack("!16s16sHH", b"\x20\x01\x0d\xb8" + bytes(11) + b"\1", bytes(15) + b"\1", 7, 8),
)
GOOD = [
    (PROXY_V1, CLIENT, SERVER),
    (PROXY_V2, CLIENT, SERVER),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None, None),
    (
        b"PROXY TCP6 2001:db8::1 ::1 7 8\r\n",
        IPv6Address("TCP", "2001:db8::1", 7),
        IPv6Address("TCP", "::1", 8),
    ),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1024 4040\r\n", CLIENT, SERVER),
    (TCP6, IPv6Address("TCP", "2001:db8::1", 7), IPv6Address("TCP", "::1", 8)),
    (v2(0x20, 0x00, b""), None, None),
    (v2(0x20, 0x11, bytes(12)), None, None),
    (v2(0x21, 0x00, b"what it likes"), None, None),
    (v2(0x21, 0x12, PROXY_V2[16:]), None, None),
    (v2(0x21, 0x22, bytes(36)), None, None),
    (v2(0x21, 0x32, bytes(216) + b"\x04\0\x03TLV"), None, None),
    (v2(0x21, 0x12, b""), None, None),
    (v2(0x21, 0x11, PROXY_V2[16:] + b"\x04\0\x03TLV"), CLIENT, SERVER),
    (v2(0x20, 0x00, bytes(MAX_LENGTH_V2)), None, None),
    (
        v2(0x21, 0x31, struct.pack("!108s108s", b"/run/\xff", b"")),
        UNIXAddress(b"/run/\xff"),
        UNIXAddress(None),
    ),
]
BAD = [
    b"hello\n",
    b"PROXX",
    b"\r\n\r\n\0\r\nQUIX\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1024\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1024 4040 5\r\n",
    b"PROXY TCP4 2001:db8::1 192.0.2.2 1024 4040\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1024 65536\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 +1024 4040\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 10_24 4040\r\n",
    b"PROXY TCP4 192.0.2.\xff 192.0.2.2 1024 4040\r\n",
    b"PROXY TCP6 192.0.2.1 192.0.2.2 1024 4040\r\n",
    b"PROXY TCP6 fe80::1%\x1b[2J ::1 1 2\r\n",
    b"PROXY UDP4 192.0.2.1 192.0.2.2 1024 4040\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4 " + b"x" * MAX_LENGTH_V1,
    v2(0x11, 0x11, bytes(12)),
    v2(0x22, 0x11, bytes(12)),
    v2(0x21, 0x01, bytes(12)),
    v2(0x21, 0x10, bytes(12)),
    v2(0x21, 0x13, bytes(12)),
    v2(0x21, 0x41, bytes(12)),
    v2(0x21, 0x11, bytes(11)),
    v2(0x21, 0x21, bytes(35)),
    v2(0x21, 0x31, bytes(215)),
    v2(0x21, 0x11, b"", MAX_LENGTH_V2 + 1),
]


@pytest.mark.parametrize(("data", "peer", "host"), GOOD)
def test_parse(data: bytes, peer: IAddress | None, host: IAddress | None) -> None:
    """
    Nothing is known until the last byte has come, and then all; what follows is not touched.
    """
    for end in range(len(data)):
        assert parseHeader(data[:end]) is None
    assert parseHeader(data) == ProxyHeader(len(data), peer, host)
    assert parseHeader(data + b"PROXY ") == ProxyHeader(len(data), peer, host)


@pytest.mark.parametrize("data", BAD)
def test_parseBad(data: bytes) -> None:
    """
    What is none is said to be none, by its end at the latest.
    """
    with pytest.raises(BadHeader):
        parseHeader(data)


BEGINNINGS = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"])


@given(BEGINNINGS, st.binary(max_size=300))
def test_parseAnything(beginning: bytes, rest: bytes) -> None:
    """
    Any bytes at all are a header, or none, or the beginning of one that is not too long.
    """
    data = beginning + rest
    try:
        header = parseHeader(data)
    except BadHeader:
        return
    if header is None:
        assert len(data) < (16 + MAX_LENGTH_V2 if data.startswith(SIGNATURE[:2]) else MAX_LENGTH_V1)
    else:
        assert 0 < header.length <= len(data)


class Balancer(MemoryServer):
    """
    A server that a balancer connects to.

    @ivar pair: Its connection.
    """

    def __init__(
        self,
        address: IAddress = BALANCER,
        limits: Limits | None = None,
        overTCP: bool = True,
    ) -> None:
        super().__init__(limits, trusted=LOOPBACK)
        self.pair = self.enter(address, overTCP)

    def send(self, data: bytes) -> None:
        """
        Send, and wait until it has come.
        """
        if data:
            self.pair.peer.sendall(data)
            select.select([self.poller], [], [], PATIENCE)
        self.turn()

    def waits(self) -> bool:
        """
        Is the header still waited for?
        """
        assert len(self.connections) == 1
        return isinstance(self.pair.transport.stage, ProxyStage)

    def isReset(self) -> bool:
        """
        Has the connection ended, and with a reset?
        """
        assert len(self.connections) == 0
        assert self.pair.transport.protocol is None
        try:
            return self.pair.peer.recv(1) != b""
        except ConnectionResetError:
            return True

    def isClosed(self) -> bool:
        """
        Has the connection ended in order?
        """
        return not self.isReset()


def logged(action: Callable[[], object]) -> list[str]:
    """
    What is logged of it.
    """
    with capturedLogs() as logs:
        action()
    return [text(event) for event in logs]


def text(event: LogEvent) -> str:
    """
    An event as a person reads it.
    """
    formatted = event["log_format"].format(**event)
    assert isinstance(formatted, str)
    return formatted


@pytest.mark.parametrize("header", [PROXY_V1, PROXY_V2])
def test_client(header: bytes) -> None:
    """
    After the header, cut anywhere, the client has the connection, under its address, and what it
    has sent is answered in the same turn. What comes before that is none of its protocol's.
    """
    for place in range(len(header) + 1):
        balancer = Balancer()
        balancer.send(header[:place])
        transport = balancer.pair.transport
        if place < len(header):
            assert balancer.waits()
            assert transport.protocol is None
            assert transport.getPeer() == BALANCER
        balancer.send(header[place:] + b"hello\nis it")
        assert list(balancer.connections) == [transport]
        assert transport.getPeer() == transport.record.client == CLIENT
        assert transport.getHost() == SERVER
        assert transport.record.peer == BALANCER
        assert balancer.pair.peer.recv(100) == b"hello\n"
        balancer.send(b" me\n")
        assert balancer.pair.peer.recv(100) == b"is it me\n"
        assert transport.record.received == 15
        assert balancer.clock.getDelayedCalls() == []
        balancer.close()


@pytest.mark.parametrize(("data", "peer", "host"), GOOD)
def test_leavesTheRest(
    data: bytes, peer: IAddress | None, host: IAddress | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Not a byte that comes after the header is taken.
    """
    for rest in b"", b"PROXY ", b"x" * 5000:
        balancer = MemoryServer(trusted=LOOPBACK)
        found: list[bytes] = []

        def admit(transport: Transport, found: list[bytes] = found, rest: bytes = rest) -> None:
            found.append(transport.getHandle().recv(1 << 20) if rest else b"")

        monkeypatch.setattr(balancer.route, "_admit", admit)
        pair = balancer.enter(BALANCER)
        pair.peer.sendall(data + rest)
        balancer.turn()
        assert found == [rest]
        assert pair.record.client == peer
        assert pair.transport.getHost() == (host or UNIXAddress(None))
        assert balancer.poller.getReaders() == []
        balancer.close()


WITHOUT_ADDRESS = [
    b"PROXY UNKNOWN\r\n",
    v2(0x20, 0x00, b""),
    v2(0x20, 0x11, PROXY_V2[16:]),
    v2(0x21, 0x00, b""),
    v2(0x21, 0x12, bytes(12)),
    v2(0x21, 0x22, bytes(36)),
    v2(0x21, 0x32, bytes(216)),
]


@pytest.mark.parametrize("header", WITHOUT_ADDRESS)
def test_balancerItself(header: bytes) -> None:
    """
    A balancer that speaks for itself has its own address, and its health check is no warning.
    """
    balancer = Balancer()

    def check() -> None:
        balancer.send(header)
        (transport,) = balancer.connections
        assert transport.getPeer() == BALANCER
        assert transport.protocol is not None
        balancer.pair.peer.close()
        balancer.send(b"")

    assert logged(check) == []
    assert balancer.pair.record.reason is CloseReason.CLIENT_CLOSED


def test_healthCheckWithoutHeader() -> None:
    """
    Who connects, says nothing and goes is no warning.
    """
    balancer = Balancer(overTCP=False)
    balancer.pair.peer.close()
    assert logged(balancer.turn) == []
    assert balancer.pair.record.reason is CloseReason.CLIENT_CLOSED
    assert balancer.clock.getDelayedCalls() == []


@pytest.mark.parametrize("data", BAD)
def test_bad(data: bytes) -> None:
    """
    A header that is none ends the connection, and is logged once a minute for each source.
    """
    balancer = Balancer()

    def again() -> None:
        for _ in range(3):
            balancer.send(data)
            assert balancer.isReset()
            assert balancer.pair.record.reason is CloseReason.PROXY_HEADER
            balancer.pair = balancer.enter(BALANCER, overTCP=True)

    (line,) = logged(again)
    assert line.startswith("PROXY header from 127.0.0.1 refused: ")


@pytest.mark.parametrize("host", ["192.0.2.9", "fe80::1%lo"])
def test_untrusted(host: str) -> None:
    """
    Who may not send one is not listened to.
    """
    kind = IPv6Address if ":" in host else IPv4Address

    def connect() -> None:
        balancer = Balancer(kind("TCP", host, 7))
        balancer.pair.peer.sendall(PROXY_V1)
        balancer.turn()
        assert balancer.isReset()
        assert balancer.pair.record.reason is CloseReason.PROXY_HEADER
        assert balancer.pair.record.client is None
        # What the log is kept from repeating.
        balancer.clock.advance(REPEAT_INTERVAL)
        assert balancer.clock.getDelayedCalls() == []

    (line,) = logged(connect)
    source = "fe80::/64" if ":" in host else host
    assert line == f"PROXY header from {source} refused: its address is not in --proxy-trusted"


@pytest.mark.parametrize("address", [IPv6Address("TCP", "::1", 7), UNIXAddress(None)])
def test_trusted(address: IAddress) -> None:
    """
    Who is trusted may be an IPv6 address; the peers of a UNIX socket are.
    """
    balancer = Balancer(address)
    balancer.send(PROXY_V1)
    (transport,) = balancer.connections
    assert transport.getPeer() == CLIENT


@pytest.mark.parametrize("begun", [b"", b"PROX"])
def test_late(begun: bytes) -> None:
    """
    A header that does not come in time ends the connection.
    """
    balancer = Balancer()
    balancer.send(begun)
    balancer.passes(HEADER_TIMEOUT - 0.1)
    assert balancer.waits()
    assert logged(lambda: balancer.passes(0.2)) == [
        "PROXY header from 127.0.0.1 refused: no header within 5 s"
    ]
    assert balancer.isReset()
    assert balancer.pair.record.reason is CloseReason.PROXY_HEADER


@pytest.mark.parametrize("resets", [False, True])
def test_ended(resets: bool) -> None:
    """
    A header that ends in the middle is told.
    """
    balancer = Balancer()
    balancer.send(b"PROX")
    if resets:
        balancer.pair.reset()
    else:
        balancer.pair.peer.close()
    select.select([balancer.poller], [], [], PATIENCE)
    assert logged(balancer.turn) == [
        "PROXY header from 127.0.0.1 refused: it ended in the middle of the header"
    ]
    assert balancer.pair.record.reason is CloseReason.PROXY_HEADER
    assert len(balancer.connections) == 0


def test_limits() -> None:
    """
    A connection without a client counts for all, and with one for the client's source.
    """
    balancer = Balancer(limits=Limits(maxConnections=1, maxPerSource=1))
    assert not balancer.connections.hasRoom()
    balancer.send(PROXY_V1)
    assert not balancer.connections.hasRoom()
    assert balancer.pair.transport.source == CLIENT.host
    (first,) = balancer.connections
    balancer.pair = balancer.enter(BALANCER, overTCP=True)
    assert len(balancer.connections) == 2
    (line,) = logged(lambda: balancer.send(PROXY_V1))
    assert line == "192.0.2.1 has 1 connection: more are refused"
    assert balancer.pair.record.reason is CloseReason.REFUSED
    assert balancer.pair.record.client == CLIENT
    assert balancer.pair.peer.recv(1) == b""
    assert list(balancer.connections) == [first]


@pytest.mark.parametrize("header", WITHOUT_ADDRESS)
def test_noLimitForTheBalancer(header: bytes) -> None:
    """
    Without an address in the header the balancer is not limited as if it were one client, and takes
    nobody's place: a client of the same address has all of its own.
    """
    limits = Limits(maxConnections=5, maxPerSource=1)
    balancer = Balancer(limits=limits)
    sameHost = PROXY_V1.replace(b"192.0.2.1 ", b"127.0.0.1 ")
    for number, data in enumerate((header, header, sameHost, header), 1):
        assert logged(lambda data=data: balancer.send(data)) == []  # type: ignore[misc]
        assert len(balancer.connections) == number
        assert balancer.pair.transport.protocol is not None
        balancer.pair = balancer.enter(BALANCER, overTCP=True)
    # They count for the limit of all.
    assert not balancer.connections.hasRoom()
    (line,) = logged(lambda: balancer.send(sameHost))
    assert line == "127.0.0.1 has 1 connection: more are refused"
    assert balancer.pair.record.reason is CloseReason.REFUSED
    balancer.close()


def test_fails() -> None:
    """
    If the connection can't begin after its header it fails alone.
    """

    class Factory(ServerFactory):
        def buildProtocol(self, addr: object) -> Protocol:
            raise ZeroDivisionError

    server = MemoryServer(factory=Factory(), trusted=LOOPBACK)
    one, two = server.enter(BALANCER), server.enter(BALANCER)
    one.peer.sendall(PROXY_V1 + b"hello\n")
    with capturedLogs() as logs:
        server.turn()
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    assert server.ended == [one.record]
    assert one.record.reason is CloseReason.ERROR
    assert list(server.connections) == [two.transport]
    assert server.poller.getReaders() == [two.transport.stage]


def test_eachReason() -> None:
    """
    Two reasons of one balancer are two warnings, each with its own count.
    """
    server = MemoryServer(trusted=LOOPBACK)
    tooLong = v2(0x21, 0x11, bytes(12))[:14] + b"\xff\xff"

    def babble() -> None:
        for header in [b"hello\n", *[tooLong] * 7]:
            server.enter(BALANCER).peer.sendall(header)
            server.turn()

    one, two = (
        f"PROXY header from 127.0.0.1 refused: {reason}"
        for reason in (
            "no PROXY header. Does the balancer send one (send-proxy)?",
            f"version 2 announces more than {MAX_LENGTH_V2} bytes",
        )
    )
    assert logged(babble) == [one, two]
    assert logged(lambda: server.clock.advance(REPEAT_INTERVAL)) == [f"{two} (6 times in a minute)"]


@pytest.mark.parametrize("where", ["in the kernel", "in the daemon"])
def test_drain(where: str) -> None:
    """
    A drain waits for those that have begun with a header.
    """
    balancer = Balancer(overTCP=False)
    balancer.connections.startService()
    balancer.pair.peer.sendall(b"PROX")
    if where == "in the daemon":
        balancer.turn()
    done: list[object] = []
    balancer.connections.stopService().addCallback(done.append)
    assert done == []
    balancer.clock.pump([DRAIN_INTERVAL] * 10)
    assert balancer.waits()
    if where == "in the kernel":
        # What had come in time is read first, and the balancer has the same time once more.
        balancer.clock.advance(HEADER_TIMEOUT)
        assert balancer.waits()
    balancer.clock.advance(HEADER_TIMEOUT)
    assert balancer.pair.record.reason is CloseReason.PROXY_HEADER
    assert done == [None]


def test_pausedProcess() -> None:
    """
    A header that is in the kernel when the time is over was sent in time: it is the process that
    was paused.
    """
    balancer = Balancer(overTCP=False)
    balancer.pair.peer.sendall(PROXY_V1 + b"hello\n")
    balancer.clock.advance(HEADER_TIMEOUT + 0.5)
    balancer.turn()
    assert balancer.pair.record.client == CLIENT
    assert balancer.pair.peer.recv(100) == b"hello\n"


def test_pausedProcessOnce() -> None:
    """
    A balancer that sends its header a byte at a time gains no more than the same time once more.
    """
    balancer = Balancer(overTCP=False)
    for byte in b"PR":
        balancer.pair.peer.sendall(bytes([byte]))
        balancer.clock.advance(HEADER_TIMEOUT)
    assert balancer.pair.record.reason is CloseReason.PROXY_HEADER


def test_drainAtRest() -> None:
    """
    A drain closes those of which nothing has come, in order, when they have been silent for as long
    as all others must have been.
    """
    balancer = Balancer()
    balancer.connections.startService()
    done: list[object] = []
    balancer.connections.stopService().addCallback(done.append)
    balancer.passes(QUIET_PERIOD - DRAIN_INTERVAL)
    assert balancer.waits()
    assert balancer.pair.isSilent()
    balancer.passes(2 * DRAIN_INTERVAL)
    assert balancer.isClosed()
    assert balancer.pair.record.reason is CloseReason.DRAINED
    assert done == [None]
    assert balancer.clock.getDelayedCalls() == []


def test_idle() -> None:
    """
    The idle time-out may be shorter than the one for the header.
    """
    balancer = Balancer(limits=Limits(idleTimeout=2))
    balancer.connections.startService()
    balancer.passes(1.9)
    assert balancer.waits()
    balancer.passes(1)
    assert balancer.isClosed()
    assert balancer.pair.record.reason is CloseReason.IDLE_TIMEOUT


def test_idleHeader() -> None:
    """
    A piece of a header is something that comes.
    """
    balancer = Balancer(limits=Limits(idleTimeout=2))
    balancer.connections.startService()
    for piece in b"P", b"R":
        balancer.send(piece)
        balancer.passes(1.5)
        assert balancer.waits()
    balancer.passes(1.5)
    assert balancer.pair.record.reason is CloseReason.IDLE_TIMEOUT


@given(BEGINNINGS, st.lists(st.binary(max_size=50), max_size=20))
def test_anything(beginning: bytes, chunks: list[bytes]) -> None:
    """
    Whatever comes, cut anywhere: no exception, and no buffer that grows without bound; it is known
    what it is as soon as it can be.
    """
    balancer = Balancer(overTCP=False)
    transport = balancer.pair.transport
    sent = b""
    with capturedLogs() as logs:
        for chunk in [beginning, *chunks, b"x" * 5000]:
            sent += chunk
            balancer.send(chunk)
            try:
                header = parseHeader(sent)
            except BadHeader:
                assert transport.record.reason is CloseReason.PROXY_HEADER
                assert transport.disconnected
                break
            if header is not None:
                assert transport.protocol is not None
                assert transport.record.received == len(sent) - header.length
                break
            assert balancer.waits()
            assert isinstance(transport.stage, ProxyStage)
            assert len(transport.stage._buffer) == len(sent) < 16 + MAX_LENGTH_V2
        else:
            pytest.fail("it is neither a header nor none")
    assert all(event["log_level"] == LogLevel.warn for event in logs)
    balancer.close()
