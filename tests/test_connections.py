"""
Who may connect, and how connections leave: on a fake clock, over socket pairs that go nowhere.
"""

import resource
import socket
from collections.abc import Iterator

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure

from kvserver.connections import (
    KNOWN,
    MINUTE,
    RESERVED_FDS,
    Connections,
    Limits,
    OncePerMinute,
    mostConnections,
    sourceOf,
)
from kvserver.factory import EchoFactory
from kvserver.protocol import EchoProtocol
from kvserver.record import Ending, Record

HOME = IPv4Address("TCP", "192.0.2.1", 1024)


class Transport(StringTransport):
    """
    A transport with a socket, whose other end is the peer's.

    @ivar peer: The peer's end.

    @ivar aborting: Has it been aborted?

    @ivar record: What is known of the connection.
    """

    aborting = False

    def __init__(self, address: IAddress) -> None:
        super().__init__(peerAddress=address)
        self.record = Record(1, "tcp:0", address, 0.0)
        self._socket, self.peer = socket.socketpair()

    def getHandle(self) -> socket.socket:
        """
        The socket.
        """
        return self._socket

    def abortConnection(self) -> None:
        """
        Abort, and note it.
        """
        self.aborting = True
        super().abortConnection()


class House:
    """
    Connections, a factory that builds into them, and a clock.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.clock = Clock()
        self.connections = Connections(self.clock, limits or Limits())
        self.factory = EchoFactory(self.connections)
        self.transports: list[Transport] = []

    def enter(self, address: IAddress = HOME) -> EchoProtocol | None:
        """
        Somebody connects.
        """
        protocol = self.factory.buildProtocol(address)
        if protocol is not None:
            self.transports.append(Transport(address))
            protocol.makeConnection(self.transports[-1])
        return protocol

    def admit(self, address: IAddress = HOME) -> EchoProtocol:
        """
        Somebody connects, and is admitted.
        """
        protocol = self.enter(address)
        assert protocol is not None
        return protocol

    def passes(self, seconds: float) -> None:
        """
        Time passes, in small steps; in each, what was closed is gone.
        """
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)
            for protocol in self.connections:
                if transportOf(protocol).disconnecting:
                    protocol.connectionLost()


def transportOf(protocol: EchoProtocol) -> Transport:
    """
    The transport of a protocol that a L{House} has connected.
    """
    transport: object = protocol.transport
    assert isinstance(transport, Transport)
    return transport


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """
    Starting takes all file descriptors there are: give them back.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# Who is connected.


def test_everyLiveConnection() -> None:
    """
    A connection counts from when it is made until it is lost, for whatever reason.
    """
    house = House()
    first, second = house.admit(), house.admit()
    assert set(house.connections) == {first, second}
    first.connectionLost(Failure(ConnectionLost()))
    assert list(house.connections) == [second]
    second.connectionLost()
    assert len(house.connections) == 0


def test_endsWhileIterating() -> None:
    """
    Connections may end while somebody goes through them.
    """
    house = House()
    house.admit(), house.admit()
    for protocol in house.connections:
        protocol.connectionLost()
    assert len(house.connections) == 0


def test_factory() -> None:
    """
    Each connection gets a protocol of its own, that knows its factory.
    """
    house = House()
    first, second = house.admit(), house.admit()
    assert first is not second
    assert first.factory is house.factory


# Who may connect.


def test_room() -> None:
    """
    At the limit there is no room, and who asked is told when there is.
    """
    house = House(Limits(connections=2))
    told: list[str] = []
    first = house.admit()
    assert house.connections.whenRoom(lambda: told.append("too early"))
    house.admit()
    with capturedLogs() as logs:
        assert not house.connections.whenRoom(lambda: told.append("one"))
        assert not house.connections.whenRoom(lambda: told.append("two"))
    assert [event["log_level"] for event in logs] == [LogLevel.warn]
    assert told == []
    first.connectionLost()
    assert told == ["one", "two"]
    house.admit().connectionLost()
    assert told == ["one", "two"]


def test_roomByDefault() -> None:
    """
    By default there is room for as many as the hard limit of file descriptors allows, less a
    reserve; starting raises the soft limit to it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert mostConnections() == hard - RESERVED_FDS
    House().connections.startService()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize(
    ("address", "source"),
    [
        (IPv4Address("TCP", "192.0.2.1", 1024), "192.0.2.1"),
        (IPv6Address("TCP", "2001:db8:1:2:3:4:5:6", 1024), "2001:db8:1:2::/64"),
        (IPv6Address("TCP", "fe80::1%lo", 1024), "fe80::/64"),
        (UNIXAddress(b"/run/echo"), None),
    ],
)
def test_sourceOf(address: IAddress, source: str | None) -> None:
    """
    One IPv4 address is one source, and one IPv6 /64; what is no IP has none.
    """
    assert sourceOf(address) == source


def test_perSource() -> None:
    """
    A source that has its share is refused more until one of its connections ends. Refusals are
    logged once a minute for each source.
    """
    house = House(Limits(perSource=2))
    other = IPv4Address("TCP", "192.0.2.2", 1024)
    first, _ = house.admit(), house.admit()
    with capturedLogs() as logs:
        assert house.enter() is None
        assert house.enter() is None
        house.admit(other), house.admit(other)
        assert house.enter(other) is None
    assert [event["source"] for event in logs] == ["192.0.2.1", "192.0.2.2"]
    assert all(event["log_level"] == LogLevel.warn for event in logs)
    first.connectionLost()
    house.admit()
    assert house.enter() is None


def test_perSourceForIPAlone() -> None:
    """
    All peers of a UNIX socket have the same address, or none: they have no share.
    """
    house = House(Limits(perSource=1))
    for _ in range(3):
        house.admit(UNIXAddress(None))


def test_oncePerMinute() -> None:
    """
    What happens is logged at once, and then once a minute as long as it goes on, with how often it
    has happened. What has stopped is forgotten.
    """
    clock = Clock()
    logged: list[tuple[str, int]] = []
    once = OncePerMinute(clock)

    def happens(what: str) -> None:
        once(what, lambda count: logged.append((what, count)))

    for _ in range(3):
        happens("a")
    happens("b")
    assert logged == [("a", 1), ("b", 1)]
    clock.advance(MINUTE)
    assert logged[2:] == [("a", 2)]
    happens("a")
    happens("b")
    assert logged[3:] == [("b", 1)]
    clock.advance(MINUTE)
    assert logged[4:] == [("a", 1)]
    clock.advance(MINUTE)
    assert clock.getDelayedCalls() == []
    assert len(logged) == 5


def test_oncePerMinuteForMany() -> None:
    """
    There is an end to what is kept: past it all that is new is one.
    """
    clock = Clock()
    logged: list[int] = []
    once = OncePerMinute(clock)
    for number in range(KNOWN + 100):
        once(str(number), logged.append)
    assert logged == [1] * (KNOWN + 1)
    assert len(clock.getDelayedCalls()) == KNOWN + 1
    clock.advance(MINUTE)
    assert logged[KNOWN + 1 :] == [99]


# Time-outs.


def test_idle() -> None:
    """
    A connection without a byte in either direction is closed after the idle time-out, never before
    it, and not much later; one that receives now and then is not.
    """
    house = House(Limits(idle=5))
    house.connections.startService()
    idle, dripping = house.admit(), house.admit()
    for _ in range(5):
        dripping.dataReceived(b"x")
        house.passes(0.99)
    assert set(house.connections) == {idle, dripping}
    for _ in range(2):
        dripping.dataReceived(b"x")
        house.passes(0.8)
    assert set(house.connections) == {dripping}
    house.passes(7)
    assert len(house.connections) == 0


def test_idleForEver() -> None:
    """
    By default idle connections stay.
    """
    house = House()
    house.connections.startService()
    house.admit()
    house.passes(500)
    assert len(house.connections) == 1


def test_echoUnread() -> None:
    """
    A client that leaves its echo unread is aborted after the write time-out; one that reads some of
    it is not.
    """
    house = House(Limits(write=4))
    house.connections.startService()
    stuck, slow = house.admit(), house.admit()
    for protocol in stuck, slow:
        protocol.dataReceived(b"x")
        transportOf(protocol).getHandle().send(b"x" * 1000)
        transportOf(protocol).getHandle().send(b"x" * 1000)
    house.passes(3)
    assert set(house.connections) == {stuck, slow}
    transportOf(slow).peer.recv(1000)
    house.passes(3)
    assert set(house.connections) == {slow}
    assert transportOf(stuck).aborting
    transportOf(slow).peer.recv(1000)
    house.passes(50)
    assert set(house.connections) == {slow}


def test_echoUnreadThatCameLate() -> None:
    """
    What the transport holds back for a moment is not forgotten when it reaches the kernel.
    """
    house = House(Limits(write=8))
    house.connections.startService()
    stuck = house.admit()
    stuck.dataReceived(b"x")
    # One look has seen bytes come in, and one that nothing is unsent.
    house.passes(1.5)
    transportOf(stuck).getHandle().send(b"x")
    house.passes(11)
    assert transportOf(stuck).aborting


def test_echoUnreadIsNoIdleness() -> None:
    """
    It is the write time-out that counts while an echo is unread, be it the longer one.
    """
    house = House(Limits(write=20, idle=4))
    house.connections.startService()
    stuck = house.admit()
    stuck.dataReceived(b"x")
    transportOf(stuck).getHandle().send(b"x")
    house.passes(15)
    assert len(house.connections) == 1
    house.passes(10)
    assert transportOf(stuck).aborting


def test_oneThatCannotBeLookedAt() -> None:
    """
    A connection that fails under the eyes of the time-outs fails alone.
    """
    house = House(Limits(idle=4))
    house.connections.startService()
    broken, other = house.admit(), house.admit()
    broken.dataReceived(b"x")
    transportOf(broken).getHandle().close()
    with capturedLogs() as logs:
        house.passes(3)
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    assert set(house.connections) == {other}
    house.passes(3)
    assert len(house.connections) == 0


# The drain.


def test_drainNobody() -> None:
    """
    Without connections there is nothing to wait for.
    """
    house = House()
    house.connections.startService()
    done: list[object] = []
    house.connections.stopService().addCallback(done.append)
    assert done == [None]
    house.passes(0.1)
    assert house.clock.getDelayedCalls() == []


def drain(house: House) -> list[object]:
    """
    Begin to drain. The list that is returned is empty until the end.
    """
    done: list[object] = []
    house.connections.stopService().addCallback(done.append)
    return done


def test_drainAtRest() -> None:
    """
    What is at rest is closed at once; what has received a moment ago, when it has been silent for a
    while.
    """
    house = House(Limits(idle=1))
    house.connections.startService()
    idle = house.admit()
    house.passes(0.5)
    busy = house.admit()
    busy.dataReceived(b"line\n")
    done = drain(house)
    house.passes(0.05)
    assert set(house.connections) == {busy}
    assert transportOf(idle).disconnecting
    busy.dataReceived(b"line\n")
    house.passes(0.25)
    busy.dataReceived(b"line\n")
    house.passes(0.25)
    assert set(house.connections) == {busy}
    house.passes(0.3)
    assert done == [None]
    assert not transportOf(busy).aborting
    assert house.clock.getDelayedCalls() == []


@pytest.mark.parametrize("busy", ["line begun", "unread", "unsent"])
def test_drainBusy(busy: str) -> None:
    """
    A connection goes on while a line is begun, or something is unread or unsent; at the deadline it
    is aborted, and counted.
    """
    house = House(Limits(drain=5))
    house.connections.startService()
    protocol = house.admit()
    transport = transportOf(protocol)
    protocol.dataReceived(b"begin" if busy == "line begun" else b"line\n")
    if busy == "unread":
        transport.peer.send(b"x")
    if busy == "unsent":
        transport.getHandle().send(b"x")
    done = drain(house)
    with capturedLogs() as logs:
        house.passes(4.9)
        assert not transport.disconnecting
        house.passes(0.2)
    assert transport.aborting
    assert done == [None]
    assert [event["count"] for event in logs] == [1]


def test_drainUntilTheLineIsComplete() -> None:
    """
    A line that was begun is waited for.
    """
    house = House()
    house.connections.startService()
    protocol = house.admit()
    protocol.dataReceived(b"is it")
    done = drain(house)
    house.passes(10)
    protocol.dataReceived(b" me\n")
    house.passes(0.5)
    assert done == [None]
    assert transportOf(protocol).value() == b"is it me\n"
    assert not transportOf(protocol).aborting


@pytest.mark.parametrize("begun", [True, False])
def test_drainInAHurry(begun: bool) -> None:
    """
    A drain can be cut short, also before it begins.
    """
    house = House()
    house.connections.startService()
    house.admit().dataReceived(b"is it")
    if begun:
        done = drain(house)
        house.passes(1)
        house.connections.hurry()
    else:
        house.connections.hurry()
        done = drain(house)
    house.passes(0.1)
    assert done == [None]
    assert house.clock.getDelayedCalls() == []


def test_whenLeft() -> None:
    """
    Who waits for one to leave is told once, when the first one does, be it in the drain.
    """
    house = House()
    house.connections.startService()
    told: list[str] = []
    house.admit(), house.admit()
    house.connections.whenLeft(lambda: told.append("left"))
    done = drain(house)
    house.passes(1)
    assert told == ["left"]
    assert done == [None]


def test_lines() -> None:
    """
    The lines of all connections are counted, also of those that have ended.
    """
    house = House()
    one, two = house.enter(), house.enter()
    assert one
    assert two
    for protocol in one, two:
        protocol.dataReceived(b"1\n2\n")
    assert house.connections.counts() == (4, 8, 8)
    one.connectionLost(Failure(ConnectionLost()))
    record = house.transports[0].record
    record.ending = Ending.RESET
    house.connections.end(record)
    assert house.connections.counts() == (4, 8, 8)
