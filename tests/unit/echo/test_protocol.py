"""
The echo contract, against a transport in memory.
"""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.testing import StringTransport
from zope.interface.verify import verifyObject

from kvserver.echo.protocol import EchoProtocol


class ShortLines(EchoProtocol):
    """
    The protocol with a line buffer so short that most lines are too long for it.
    """

    MAX_LENGTH = 4


class Transport(StringTransport):
    """
    Counts the writes.
    """

    writes = 0

    def write(self, data: bytes) -> None:
        """
        Write, and count it.
        """
        self.writes += 1
        super().write(data)


class Connection:
    """
    A protocol that is connected.
    """

    def __init__(self, protocol: type[EchoProtocol] = EchoProtocol) -> None:
        self.transport = Transport()
        self.protocol = protocol()
        self.protocol.makeConnection(self.transport)

    def send(self, *chunks: bytes) -> bytes:
        """
        The peer sends. Return what has come back in all.
        """
        for chunk in chunks:
            self.protocol.dataReceived(chunk)
        return bytes(self.transport.value())


def echo(sent: bytes, maxLength: int) -> bytes:
    """
    What must have come back when C{sent} has been received, and no more: the contract in short.
    """
    *lines, unfinished = sent.split(b"\n")
    pieces = len(unfinished) // maxLength * maxLength
    return b"".join(line + b"\n" for line in lines) + unfinished[:pieces]


def cuts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """
    C{data} in two, at each place where it can be cut.
    """
    for place in range(len(data) + 1):
        yield data[:place], data[place:]


def test_interfaces() -> None:
    """
    The protocol is what the transport takes it for.
    """
    protocol = EchoProtocol()
    assert verifyObject(IHalfCloseableProtocol, protocol)
    # LineReceiver has the methods of a push producer and does not declare it.
    assert verifyObject(IPushProducer, protocol, tentative=True)


def test_completeLineComesBack() -> None:
    """
    A line comes back byte for byte, its CR and LF included.
    """
    assert Connection().send(b"hello\n") == b"hello\n"
    assert Connection().send(b"hello\r\n") == b"hello\r\n"


def test_nothingEarly() -> None:
    """
    Nothing comes back before the line is complete.
    """
    connection = Connection()
    assert connection.send(b"hel") == b""
    assert connection.send(b"lo\r") == b""
    assert connection.send(b"\nyou") == b"hello\r\n"


def test_anyCut() -> None:
    """
    It makes no difference where the network cuts.
    """
    text = b"is it me\r\n\nyou are\rlooking for?\n\r\n\n"
    for first, second in cuts(text):
        connection = Connection()
        assert connection.send(first) == echo(first, 1 << 16)
        assert connection.send(second) == text


def test_everyByte() -> None:
    """
    No byte but LF has a meaning, wherever in the line it stands.
    """
    for value in set(range(256)) - {0x0A}:
        byte = bytes([value])
        for before, after in cuts(b"line"):
            line = before + byte + after + b"\n"
            assert Connection().send(line) == line


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r", b"tail", b"x" * 70_000])
def test_endOfInput(ending: bytes) -> None:
    """
    At the peer's FIN all that has not come back comes back, and the connection is closed.
    """
    connection = Connection()
    connection.send(b"hello\n", ending)
    connection.protocol.readConnectionLost()
    assert connection.transport.value() == b"hello\n" + ending
    assert connection.transport.disconnecting
    # A transport that still has a producer would not close.
    assert connection.transport.producer is None


def test_linesInOneWrite() -> None:
    """
    Many lines in one segment go back in one write.
    """
    connection = Connection()
    connection.send(b"begin", b" end\n" + b"line\n" * 1000 + b"begin")
    assert connection.transport.writes == 1


def test_longLineInPieces() -> None:
    """
    A line longer than the line buffer comes back in pieces of its size, and then its end.
    """
    connection = Connection()
    size = connection.protocol.MAX_LENGTH
    assert size == 64 * 1024
    assert len(connection.send(b"x" * (size - 1))) == 0
    assert len(connection.send(b"x")) == size
    assert len(connection.send(b"x" * size * 2)) == size * 3
    assert len(connection.send(b"end")) == size * 3
    assert connection.send(b"\n") == b"x" * size * 3 + b"end\n"


@given(st.lists(st.lists(st.sampled_from(b"ab\r\n")).map(bytes)))
def test_contract(chunks: list[bytes]) -> None:
    """
    Whatever bytes come, cut anywhere: at each moment what the contract says has come back, and at
    the end everything has.
    """
    connection = Connection(ShortLines)
    sent = b""
    for chunk in chunks:
        sent += chunk
        assert connection.send(chunk) == echo(sent, ShortLines.MAX_LENGTH)
    connection.protocol.readConnectionLost()
    assert connection.transport.value() == sent


@given(st.lists(st.binary()))
def test_anyBytes(chunks: list[bytes]) -> None:
    """
    The same for all bytes there are, with the real line buffer.
    """
    connection = Connection()
    assert connection.send(*chunks) == echo(b"".join(chunks), EchoProtocol.MAX_LENGTH)


def test_backPressure() -> None:
    """
    To read no more from a peer that does not read its echo is the transport's business: the
    protocol registers nothing, and is never paused.
    """
    connection = Connection()
    connection.send(b"begin")
    assert connection.transport.producer is None
    assert connection.transport.producerState == "producing"
    assert connection.send(b" end\n") == b"begin end\n"


def test_isIdle() -> None:
    """
    It is known whether a line has begun: a drain waits for its end.
    """
    connection = Connection(ShortLines)
    for chunk, unfinished in (b"a", 1), (b"b\n", 0), (b"c\nde", 2), (b"f", 3), (b"g", 0):
        connection.send(chunk)
        assert connection.protocol.isIdle() is (unfinished == 0)
    connection.send(b"h")
    connection.protocol.readConnectionLost()
    assert connection.protocol.isIdle()


def test_byteByByteIsLinear() -> None:
    """
    A byte of a long line costs what a byte of a short one costs, when each comes alone.
    """

    def cost(length: int) -> float:
        line = [b"x"] * length + [b"\n"]
        connection = Connection()
        begin = time.process_time()
        for _ in range(180_000 // length):
            connection.send(*line)
        return time.process_time() - begin

    cost(100)
    assert cost(60_000) < 2.5 * cost(1_000)


def test_counts() -> None:
    """
    Lines are counted when they have come back, however they were cut, and pieces of lines are not.
    """
    connection = Connection()
    connection.send(b"one\ntw", b"o\n\n", b"three")
    assert connection.protocol.count == 3
    connection.send(b"\n", b"\n" * 1000, b"x" * connection.protocol.MAX_LENGTH)
    assert connection.protocol.count == 1004
    connection.send(b"y", b"\n")
    assert connection.protocol.count == 1005
