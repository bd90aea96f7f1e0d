"""
The echo contract, rule by rule, kept by the real daemon on each wire.
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import (
    LINES,
    Sender,
    Stream,
    ask,
    comesBack,
    connect,
    exchange,
    manyDescriptors,
    needsIPv6,
    receive,
    received,
    reset,
    silent,
    slow,
)
from tests.support.daemon import Daemon, waitFor
from tests.support.wires import SOME_WIRES, WIRES, Authority, Way, allOpened, opened

MB = 1024 * 1024


@pytest.fixture(scope="module")
def ways(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Way]]:
    """
    All wires, for all tests that don't need a daemon of their own.
    """
    with allOpened(authority, tmp_path_factory.mktemp("ways")) as ways:
        yield ways


@pytest.fixture(params=WIRES)
def way(request: pytest.FixtureRequest, ways: dict[str, Way]) -> Way:
    """
    Each wire in turn.
    """
    return ways[request.param]


@pytest.fixture(params=SOME_WIRES)
def freshWay(request: pytest.FixtureRequest, authority: Authority, tmp_path: Path) -> Iterator[Way]:
    """
    Each wire in turn, and a daemon that has served nobody yet.
    """
    with opened(request.param, authority, tmp_path) as way:
        yield way


@pytest.fixture
def client(way: Way) -> Iterator[Stream]:
    """
    A client that is connected.
    """
    with way.connect() as client:
        yield client


# 1. A line comes back when it is complete.


def test_everyByteEverywhere(client: Stream) -> None:
    """
    All 256 byte values in all positions of a line come back as they are.
    """
    line = b"01234567"
    sent = b"".join(
        line[:place] + bytes([value]) + line[place:] + ending
        for value in range(256)
        for place in range(len(line) + 1)
        for ending in (b"\n", b"\r\n")
    )
    assert exchange(client, [sent]) == sent


def test_urgentData(daemon: Daemon) -> None:
    """
    A byte that is sent as urgent (telnet's Synch) comes back in its place.
    """
    with connect(daemon.port) as client:
        for number in range(100):
            client.send(b"abc")
            client.send(b"\xff", socket.MSG_OOB)
            client.send(b"%d\n" % number)
            line = b"abc\xff%d\n" % number
            assert receive(client, len(line)) == line


@needsIPv6
def test_bothFamilies(daemon: Daemon) -> None:
    """
    C{--port} answers on IPv4 and on IPv6.
    """
    for host in "127.0.0.1", "::1":
        with connect(daemon.port, host) as client:
            assert ask(client, b"hello\r\n") == b"hello\r\n"


# 2. Nothing is echoed early.


def test_nothingEarly(client: Stream) -> None:
    """
    An unfinished line gives nothing, and then the whole line.
    """
    client.sendall(b"hel")
    assert silent(client)
    client.sendall(b"lo\nagain")
    assert receive(client, 6) == b"hello\n"
    assert silent(client)


def test_everyCut(client: Stream) -> None:
    """
    Lines cut at every possible place come back whole.
    """
    text = b"hello\nis it me\r\nyou are looking for?\n"
    for place in range(len(text)):
        client.sendall(text[:place])
        complete = text[: text.rfind(b"\n", 0, place) + 1]
        assert receive(client, len(complete)) == complete
        client.sendall(text[place:])
        assert receive(client, len(text) - len(complete)) == text[len(complete) :]


# 3. Nothing is lost at the end.


@pytest.mark.parametrize("text", [b"", b"hello\n", b"hello", b"hello\nis it", LINES, LINES + b"x"])
def test_endOfInput(way: Way, text: bytes) -> None:
    """
    After the client's FIN everything has come back and the daemon closes, 20 times of 20.
    """
    for _ in range(20):
        with way.connect() as client:
            assert exchange(client, [text]) == text


# 4. No line is too long.


def test_longLine(freshWay: Way) -> None:
    """
    A line of 1 MB, and then one of 50 MB, comes back intact, with less than 4 MB of memory more.
    """
    for size in 1 * MB, 50 * MB:
        chunks = [bytes([65 + number % 26]) * 65_521 for number in range(size // 65_521)] + [b"\n"]
        with freshWay.connect() as client:
            assert ask(client, b"hello\n") == b"hello\n"
            before = freshWay.daemon.memory()
            Sender(client, chunks)
            assert comesBack(client, chunks)
        assert freshWay.daemon.peakMemory() - before < 4 * MB


# 5. Memory is bounded.


def neverReads(way: Way, line: bytes) -> None:
    """
    A client that sends 500 MB and does not read costs less than 8 MB, and keeps nobody waiting.
    When it reads at last, every byte is there.
    """
    chunk = line * (MB // len(line))
    with way.connect() as client, way.connect() as other:
        assert ask(client, b"hello\n") == ask(other, b"hello\n") == b"hello\n"
        before = way.daemon.memory()
        sender = Sender(client, [chunk] * 500)
        waitFor(sender.isStuck, "the daemon reads no more")
        assert sender.sent < 100 * MB
        assert ask(other, b"hello\n") == b"hello\n"
        assert way.daemon.peakMemory() - before < 8 * MB
        assert comesBack(client, [chunk] * 500)
    assert way.daemon.peakMemory() - before < 8 * MB


def test_neverReads(freshWay: Way) -> None:
    """
    With lines of a usual length, on each wire.
    """
    neverReads(freshWay, b"x" * 1023 + b"\n")


@pytest.mark.parametrize("line", [slow(b"x" * 15 + b"\n"), b"\n"])
def test_neverReadsShortLines(authority: Authority, tmp_path: Path, line: bytes) -> None:
    """
    With short ones, whatever the wire.
    """
    with opened("tcp4", authority, tmp_path) as way:
        neverReads(way, line)


# 6. Time is linear in the bytes.


def test_bareLinesCostWhatLongOnesDo(way: Way) -> None:
    """
    64 KiB of bare LFs cost the daemon no more than 3 times what 64 KiB of long lines do.
    """

    def cost(line: bytes) -> int:
        before = way.daemon.cpu()
        with way.connect() as client:
            chunks = [line * (65_536 // len(line))] * 512
            Sender(client, chunks)
            assert sum(map(len, received(client))) == 512 * 65_536
        return way.daemon.cpu() - before

    long = cost(b"x" * 65_535 + b"\n")
    assert cost(b"\n") < 3 * long


# 7. A connection fails alone.


def test_resetDisturbsNobody(way: Way) -> None:
    """
    Clients that are reset, idle or stuck leave the others what they had.
    """
    with way.connect() as steady, way.connect() as stuck:
        sender = Sender(stuck, [LINES] * 50)
        for _ in range(50):
            with way.connect() as victim:
                victim.sendall(b"hello\nis it")
                reset(victim)
            assert ask(steady, b"hello\n") == b"hello\n"
        waitFor(sender.isStuck, "the daemon reads no more")
        assert ask(steady, b"hello\n") == b"hello\n"
        assert comesBack(stuck, [LINES] * 50)


# Any number of clients.


def test_oneAfterTheOther(daemon: Daemon) -> None:
    """
    5,000 connections, one after the other: each is answered, and none stays behind.
    """
    for number in range(5_000):
        line = b"%d\n" % number
        with connect(daemon.port) as client:
            assert exchange(client, [line]) == line
    waitFor(lambda: daemon.descriptors() == daemon.idleDescriptors, "all connections are closed")


def test_manyAtOnce(tmp_path: Path) -> None:
    """
    5,000 connections at once: each is answered, twice, in any order.
    """
    with manyDescriptors(6_000), Daemon(tmp_path) as daemon, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(5_000)]
        for order in clients, reversed(clients):
            for number, client in enumerate(order):
                assert ask(client, b"%d\n" % number) == b"%d\n" % number
