"""
What runs in a worker process, over socket pairs.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, LogPublisher

from kvserver.connections.limits import Limits
from kvserver.connections.record import ConnectionRecord
from kvserver.connections.throttle import SourceLog
from kvserver.workers.channel import Channel
from kvserver.workers.child import HEARTBEAT_INTERVAL, REPORT_INTERVAL, Child, highest
from kvserver.workers.messages import fromAddress, toAddress
from kvserver.workers.remote import RemoteConnection
from tests.support.daemon import PATIENCE
from tests.support.memory import isReadable

ECHO = "kvserver.echo.factory.EchoFactory"

CLIENT = IPv4Address("TCP", "192.0.2.1", 1024)


class Reactor(MemoryReactorClock):
    """
    A reactor that is stopped at most once.

    @ivar isStopped: Was it?
    """

    isStopped = False

    def stop(self) -> None:
        """
        Stop.
        """
        assert not self.isStopped
        self.isStopped = True


class Master:
    """
    A worker, and the master's end of its channel.

    @ivar said: What the worker has said: the rest of each message, by its kind.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        for end in ours, theirs:
            end.setblocking(False)
        self.reactor = Reactor()
        self.child = Child(self.reactor, theirs)
        self.channel = Channel(MemoryReactorClock(), ours, self._receive, lambda: None)
        self.said: list[list[Any]] = []
        self.peers: list[socket.socket] = []

    def _receive(self, message: list[Any], descriptors: list[int]) -> None:
        self.said.append(message)

    def begin(self, served: str = ECHO, banner: str | None = None, **limits: int) -> "Master":
        """
        Let the worker get ready.
        """
        settings = {
            "served": served,
            "number": 7,
            "banner": banner,
            "limits": asdict(Limits(**limits)),
            "certificates": None,
        }
        self.channel.send(["begin", settings])
        self.turn()
        return self

    def turn(self, seconds: float = 0) -> None:
        """
        Time passes, and then the worker's reactor has some turns.
        """
        self.reactor.advance(seconds)
        for _ in range(5):
            for reader in self.reactor.getReaders():
                if isReadable(reader):
                    reader.doRead()
            self.reactor.advance(0)
        while self.channel.isOpen and isReadable(self.channel):
            self.channel.doRead()

    def hand(self, number: int, client: IAddress | None = None) -> socket.socket:
        """
        Hand a connection over.

        @return: The client's end.
        """
        accepted, peer = socket.socketpair()
        accepted.setblocking(False)
        peer.settimeout(PATIENCE)
        self.peers.append(peer)
        addresses = [fromAddress(CLIENT), fromAddress(client), None]
        with accepted:
            description = [number, "tcp:0", False, *addresses]
            self.channel.send(["take", [description]], [accepted.fileno()])
        self.turn()
        return peer

    def heard(self, kind: str) -> list[list[Any]]:
        """
        What the worker has said of this kind.
        """
        return [rest for one, *rest in self.said if one == kind]

    def close(self) -> None:
        """
        The master goes, and everybody with it.
        """
        for peer in self.peers:
            peer.close()
        self.channel.close()
        for _ in range(10):
            self.turn(1)


@pytest.fixture
def master() -> Iterator[Master]:
    """
    A master whose worker ends with it.
    """
    master = Master()
    yield master
    master.close()
    assert master.reactor.isStopped


@pytest.mark.parametrize(
    "address",
    [
        CLIENT,
        IPv6Address("TCP", "fe80::1%lo", 1, 2, 3),
        UNIXAddress(b"/\xff"),
        UNIXAddress(None),
        None,
    ],
)
def test_addresses(address: IAddress | None) -> None:
    """
    An address is the same on the other side.
    """
    assert toAddress(fromAddress(address)) == address


def test_life(master: Master) -> None:
    """
    A connection is acknowledged before it is served; its end is reported with all that is to be
    known of it.
    """
    master.begin()
    assert master.said == [["ready"], *master.said[1:]]
    peer = master.hand(7, IPv4Address("TCP", "198.51.100.1", 1))
    assert master.heard("took") == [[[7]]]
    peer.sendall(b"one\ntwo\nthree")
    master.turn()
    assert peer.recv(100) == b"one\ntwo\n"
    master.turn(HEARTBEAT_INTERVAL)
    cpu, living = master.heard("beat")[-1]
    assert cpu > 0
    assert living == [[7, 13, 8, 2, None, None]]
    # What stands still is not said again.
    assert [*master.child._progress] == [7]
    master.turn(HEARTBEAT_INTERVAL)
    assert master.heard("beat")[-1][1] == []
    peer.shutdown(socket.SHUT_WR)
    master.turn()
    assert peer.recv(100) == b"three"
    assert peer.recv(1) == b""
    # With others that end shortly after it.
    assert master.heard("ended") == []
    master.turn(REPORT_INTERVAL)
    ((ended,),) = master.heard("ended")
    *told, ago = ended[0]
    assert told == [[7, 13, 13, 2, None, None], "client_closed", 0]
    # So the wait is no part of how long the connection lasted.
    assert ago == pytest.approx(REPORT_INTERVAL)
    record = ConnectionRecord("tcp:0", CLIENT)
    remote = RemoteConnection(peer, record, None, lambda _: None, SourceLog(None))
    remote.end(ended[0], 100.0)
    assert record.endedAt == pytest.approx(100.0 - REPORT_INTERVAL)
    assert master.child._progress == {}


def test_workWithoutBytes(master: Master) -> None:
    """
    What a protocol has done when it begins is said at the next heartbeat, without a byte.
    """
    master.begin("tests.support.protocols.Ready").hand(7)
    master.turn(HEARTBEAT_INTERVAL)
    _, living = master.heard("beat")[-1]
    assert living == [[7, 0, 0, 1, None, None]]


def test_banner(master: Master) -> None:
    """
    A worker sends the banner, with its number.
    """
    peer = master.begin(banner="%w %c").hand(1, CLIENT)
    assert peer.recv(100) == f"7 {CLIENT.host}:{CLIENT.port}\n".encode()


def test_acknowledgesFirst(master: Master) -> None:
    """
    As long as the acknowledgement is not with the kernel, nothing is read from the client.
    """
    master.begin()
    channel = master.child._channel
    while not channel._unsent:
        channel.send(["log", "info", "x", "until nothing more is taken"])
    accepted, peer = socket.socketpair()
    accepted.setblocking(False)
    peer.sendall(b"hello\n")
    with accepted:
        description = [7, "tcp:0", False, fromAddress(CLIENT), None, None]
        master.channel.send(["take", [description]], [accepted.fileno()])
    for _ in range(5):
        channel.doRead()
        master.child._poller.doRead()
    assert not isReadable(peer)
    assert b"took" in channel._unsent[-1][0]
    master.turn()
    channel.doWrite()
    master.turn()
    assert master.heard("took") == [[[7]]]
    assert peer.recv(100) == b"hello\n"
    peer.close()
    master.turn(1)


def test_highest() -> None:
    """
    The channel has a number that no client gets.
    """
    one, two = socket.socketpair()
    with one, socket.socket(fileno=highest(two.detach())) as moved, socket.socket() as client:
        assert moved.fileno() > client.fileno()
        assert not os.get_inheritable(moved.fileno())
        moved.sendall(b"x")
        assert one.recv(1) == b"x"


def test_wrongProtocol() -> None:
    """
    A protocol that can't be imported here is said.
    """
    master = Master().begin("no.such.Protocol")
    ((reason,),) = master.heard("failed")
    assert reason.startswith("--protocol: 'no.such.Protocol' can't be used")
    master.channel.close()
    master.turn()
    assert master.reactor.isStopped


def test_drain(master: Master) -> None:
    """
    In a drain, connections at rest are closed, those that come late are served until they are, and
    what is left at its end is reset.
    """
    master.begin()
    resting, busy = master.hand(1), master.hand(2)
    busy.sendall(b"beg")
    master.turn()
    master.channel.send(["drain", 5])
    for _ in range(10):
        master.turn(0.1)
    assert resting.recv(1) == b""
    late = master.hand(3)
    late.sendall(b"late\n")
    master.turn()
    assert late.recv(100) == b"late\n"
    for _ in range(10):
        master.turn(0.1)
    assert late.recv(1) == b""
    assert not isReadable(busy)
    for _ in range(40):
        master.turn(0.1)
    reasons = {end[0][0]: end[1] for (ended,) in master.heard("ended") for end in ended}
    assert reasons == {1: "drained", 2: "aborted", 3: "drained"}
    assert not master.reactor.isStopped


def test_abort(master: Master) -> None:
    """
    All is reset at once when the master says so.
    """
    master.begin()
    busy = master.hand(1)
    busy.sendall(b"beg")
    master.turn()
    master.channel.send(["abort"])
    master.turn()
    master.turn(0.1)
    ((ended,),) = master.heard("ended")
    assert ended[0][1] == "aborted"


def test_masterGone(master: Master) -> None:
    """
    When the master is gone, lines that have begun may end; then the worker ends.
    """
    master.begin()
    busy = master.hand(1)
    busy.sendall(b"beg")
    master.turn()
    master.channel.close()
    for _ in range(20):
        master.turn(0.1)
    assert not master.reactor.isStopped
    busy.sendall(b"in\n")
    master.turn()
    assert busy.recv(100) == b"begin\n"
    for _ in range(10):
        master.turn(0.1)
    assert master.reactor.isStopped


def test_log(master: Master) -> None:
    """
    What is logged goes to the master, with its level and its name, and with tracebacks.
    """
    master.begin()
    logger = Logger(namespace="here", observer=LogPublisher(master.child))
    logger.warn("one {number}", number=1)
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.failure("two")
    master.turn()
    (first, second) = master.heard("log")[-2:]
    assert first == ["warn", "here", "one 1"]
    assert second[:2] == ["critical", "here"]
    assert "ZeroDivisionError" in second[2]


def test_warnings(master: Master) -> None:
    """
    What a client causes is for the master to log: it throttles for all workers.
    """
    master.begin()
    master.child.connections.sourceLog.warn(CLIENT, "{source}: {reason}", reason="x", limit=3)
    master.turn()
    assert master.heard("warn") == [
        [fromAddress(CLIENT), "{source}: {reason}", {"reason": "x", "limit": 3}]
    ]
