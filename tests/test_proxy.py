"""
The PROXY protocol: the header cut anywhere, and anything that is none.
"""

import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, capturedLogs

from kvserver.connections import DRAIN_INTERVAL, MINUTE, Connections, Limits
from kvserver.factory import EchoFactory
from kvserver.proxy import (
    LONGEST_V1,
    LONGEST_V2,
    TIMEOUT,
    BadHeader,
    Header,
    ProxyFactory,
    ProxyHeader,
    parse,
)
from kvserver.record import Ending, Record
from kvserver.tap import LOOPBACK
from tests.wires import PROXY_V1, PROXY_V2

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT = IPv4Address("TCP", "192.0.2.1", 1024)
SERVER = IPv4Address("TCP", "192.0.2.2", 4040)


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
    (v2(0x21, 0x11, PROXY_V2[16:] + b"\x04\0\x03TLV"), CLIENT, SERVER),
    (v2(0x20, 0x00, bytes(LONGEST_V2)), None, None),
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
    b"PROXY TCP4 " + b"x" * LONGEST_V1,
    v2(0x11, 0x11, bytes(12)),
    v2(0x22, 0x11, bytes(12)),
    v2(0x21, 0x12, bytes(12)),
    v2(0x21, 0x41, bytes(12)),
    v2(0x21, 0x11, bytes(11)),
    v2(0x21, 0x21, bytes(35)),
    v2(0x21, 0x31, bytes(215)),
    v2(0x21, 0x11, b"", LONGEST_V2 + 1),
]


@pytest.mark.parametrize(("data", "peer", "host"), GOOD)
def test_parse(data: bytes, peer: IAddress | None, host: IAddress | None) -> None:
    """
    Nothing is known until the last byte has come, and then all; what follows is not touched.
    """
    for end in range(len(data)):
        assert parse(data[:end]) is None
    assert parse(data) == Header(len(data), peer, host)
    assert parse(data + b"PROXY ") == Header(len(data), peer, host)


@pytest.mark.parametrize("data", BAD)
def test_parseBad(data: bytes) -> None:
    """
    What is none is said to be none, by its end at the latest.
    """
    with pytest.raises(BadHeader):
        parse(data)


BEGINNINGS = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"])


@given(BEGINNINGS, st.binary(max_size=300))
def test_parseAnything(beginning: bytes, rest: bytes) -> None:
    """
    Any bytes at all are a header, or none, or the beginning of one that is not too long.
    """
    data = beginning + rest
    try:
        header = parse(data)
    except BadHeader:
        return
    if header is None:
        assert len(data) < (16 + LONGEST_V2 if data.startswith(SIGNATURE[:2]) else LONGEST_V1)
    else:
        assert 0 < header.length <= len(data)


class Transport(StringTransport):
    """
    A transport that a balancer's header can rename.

    @ivar peer: The balancer's end of its socket.

    @ivar record: What is known of the connection.
    """

    aborted = False
    protocol: Protocol

    def __init__(self, address: IAddress) -> None:
        super().__init__(peerAddress=address)
        self._socket, self.peer = socket.socketpair()
        self.record = Record(1, "proxy:tcp:0", address, 0.0)

    def getHandle(self) -> socket.socket:
        """
        The socket.
        """
        return self._socket

    def seenAs(self, peer: IAddress, host: IAddress | None) -> None:
        """
        See L{kvserver.transport.Transport}.
        """
        self.peerAddr = peer
        self.hostAddr = host

    def abortConnection(self) -> None:
        """
        Abort, and note it.
        """
        self.aborted = True
        super().abortConnection()


class Balancer:
    """
    A connection of a balancer.
    """

    def __init__(self, host: str = "127.0.0.1", limits: Limits | None = None) -> None:
        self.clock = Clock()
        self.connections = Connections(self.clock, limits or Limits())
        echo = EchoFactory(self.connections)
        self.factory = ProxyFactory(self.clock, echo, self.connections, LOOPBACK)
        self.connect(host)

    def connect(self, host: str) -> None:
        """
        Connect (again).
        """
        address = IPv4Address("TCP", host, 7)
        self.transport = Transport(address)
        self.header = self.factory.buildProtocol(address)
        self.transport.protocol = self.header
        self.header.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """
        Send to whoever has the connection now.
        """
        self.transport.protocol.dataReceived(data)


def logged(balancer: Balancer, action: Callable[[], object]) -> list[str]:
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
    After the header, cut anywhere, the client has the connection, under its address.
    """
    for place in range(len(header) + 1):
        balancer = Balancer()
        balancer.send(header[:place])
        if place < len(header):
            assert list(balancer.connections) == []
            assert len(balancer.connections) == 1
        balancer.send(header[place:] + b"hello\nis it")
        (client,) = balancer.connections
        assert client.transport.getPeer() == CLIENT
        assert client.transport.getHost() == SERVER
        assert balancer.transport.value() == b"hello\n"
        balancer.send(b" me\n")
        assert balancer.transport.value() == b"hello\nis it me\n"
        assert balancer.clock.getDelayedCalls() == []


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(0x20, 0, b"")])
def test_balancerItself(header: bytes) -> None:
    """
    A balancer that speaks for itself has its own address, and its health check is no warning.
    """
    balancer = Balancer()

    def check() -> None:
        balancer.send(header)
        (client,) = balancer.connections
        assert client.transport.getPeer() == IPv4Address("TCP", "127.0.0.1", 7)
        client.connectionLost()

    assert logged(balancer, check) == []


def test_healthCheckWithoutHeader() -> None:
    """
    Who connects, says nothing and goes is no warning.
    """
    balancer = Balancer()
    assert logged(balancer, balancer.header.connectionLost) == []
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
            assert balancer.transport.aborted
            assert balancer.transport.record.ending is Ending.PROXY_HEADER
            balancer.header.connectionLost()
            balancer.connect("127.0.0.1")

    (line,) = logged(balancer, again)
    assert line.startswith("PROXY header from 127.0.0.1 refused: ")


def test_untrusted() -> None:
    """
    Who may not send one is not listened to.
    """

    def connect() -> None:
        balancer = Balancer("192.0.2.9")
        assert balancer.transport.aborted
        balancer.header.connectionLost()
        # What the log is kept from repeating.
        balancer.clock.advance(MINUTE)
        assert balancer.clock.getDelayedCalls() == []

    assert logged(Balancer(), connect) == [
        "PROXY header from 192.0.2.9 refused: its address is not in --proxy-trusted"
    ]


def test_late() -> None:
    """
    A header that does not come in time ends the connection.
    """
    balancer = Balancer()
    balancer.send(b"PROX")
    assert logged(balancer, lambda: balancer.clock.advance(TIMEOUT)) == [
        "PROXY header from 127.0.0.1 refused: no header within 5 s"
    ]
    assert balancer.transport.aborted


def test_ended() -> None:
    """
    A header that ends in the middle is told.
    """
    balancer = Balancer()
    balancer.send(b"PROX")
    assert logged(balancer, balancer.header.connectionLost) == [
        "PROXY header from 127.0.0.1 refused: it ended in the middle of the header"
    ]


def test_limits() -> None:
    """
    A connection without a client counts for all, and with one for the client's source.
    """
    balancer = Balancer(limits=Limits(connections=1, perSource=1))
    assert not balancer.connections.whenRoom(lambda: None)
    balancer.send(PROXY_V1)
    assert not balancer.connections.whenRoom(lambda: None)
    balancer.connect("127.0.0.1")
    (line,) = logged(balancer, lambda: balancer.send(PROXY_V1))
    assert line == "192.0.2.1 has 1 connections: more are refused"
    assert balancer.transport.aborted
    assert balancer.transport.record.ending is Ending.REFUSED


@pytest.mark.parametrize("where", ["in the kernel", "in the daemon"])
def test_drain(where: str) -> None:
    """
    A drain waits for those that have begun with a header.
    """
    balancer = Balancer()
    balancer.connections.startService()
    if where == "in the kernel":
        balancer.transport.peer.sendall(b"PROX")
    else:
        balancer.send(b"PROX")
    done: list[object] = []
    balancer.connections.stopService().addCallback(done.append)
    assert done == []
    balancer.clock.pump([DRAIN_INTERVAL] * 10)
    assert not balancer.transport.aborted
    balancer.clock.advance(TIMEOUT)
    assert balancer.transport.aborted
    assert balancer.transport.record.ending is Ending.PROXY_HEADER
    balancer.header.connectionLost()
    assert done == [None]


def test_drainAtRest() -> None:
    """
    A drain closes those of which nothing has come.
    """
    balancer = Balancer()
    balancer.connections.startService()
    done: list[object] = []
    balancer.connections.stopService().addCallback(done.append)
    balancer.clock.pump([DRAIN_INTERVAL] * 10)
    assert balancer.transport.aborted
    assert balancer.transport.record.ending is Ending.DRAINED
    balancer.header.connectionLost()
    assert done == [None]


@given(BEGINNINGS, st.lists(st.binary(max_size=50), max_size=20))
def test_anything(beginning: bytes, chunks: list[bytes]) -> None:
    """
    Whatever comes, cut anywhere: no exception, and no buffer that grows without bound.
    """
    balancer = Balancer()
    for chunk in [beginning, *chunks, b"x" * 5000]:
        if not balancer.transport.aborted:
            balancer.send(chunk)
        assert isinstance(balancer.header, ProxyHeader)
        assert len(balancer.header._buffer) < 16 + LONGEST_V2
