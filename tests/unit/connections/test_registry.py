"""
Who may connect, and how connections leave: on a fake clock, over socket pairs that go nowhere.
"""

import resource
from collections.abc import Iterator
from functools import partial

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure

from kvserver.connections.addresses import sourceKey
from kvserver.connections.limits import RESERVED_FDS, Limits, maxConnectionsAllowed
from kvserver.connections.record import CloseReason
from kvserver.connections.throttle import MAX_KEYS, REPEAT_INTERVAL, LogThrottle, SourceLog
from tests.support.memory import PLENTY, MemoryServer, Pair, Recorder, RecorderFactory


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
    A connection counts from when it is accepted until it has ended, for whatever reason.
    """
    server = MemoryServer()
    first, second = server.enter().transport, server.enter().transport
    assert set(server.connections) == {first, second}
    first.connectionLost(Failure(ConnectionLost()))
    assert list(server.connections) == [second]
    second.connectionLost(connectionDone)
    assert len(server.connections) == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_failsAtTheBeginning(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """
    One whose protocol fails at its beginning ends, whatever it raises, and has its record.
    """

    def fail(self: Recorder) -> None:
        raise error

    monkeypatch.setattr(Recorder, "connectionMade", fail)
    server = MemoryServer(factory=RecorderFactory())
    with capturedLogs() as logs:
        server.enter()
    assert len(server.connections) == 0
    assert [record.reason for record in server.ended] == [CloseReason.ERROR]
    assert [event["log_level"] for event in logs] == [LogLevel.error]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_failsWhileLookedAt(error: type[BaseException]) -> None:
    """
    One that fails when it is to close ends, whatever it raises, and the others are still looked at.
    """

    def fail() -> None:
        raise error

    server = MemoryServer(Limits(idleTimeout=8))
    server.connections.startService()
    server.enter().transport.close = fail  # type: ignore[method-assign]
    server.enter()
    with capturedLogs() as logs:
        server.passes(8 * 1.5)
    assert [record.reason for record in server.ended] == [CloseReason.IDLE_TIMEOUT] * 2
    assert LogLevel.error in [event["log_level"] for event in logs]


def test_endsWhileIterating() -> None:
    """
    Connections may end while somebody goes through them.
    """
    server = MemoryServer()
    server.enter(), server.enter()
    for transport in server.connections:
        transport.connectionLost(connectionDone)
    assert len(server.connections) == 0


def test_factory() -> None:
    """
    Each connection gets a protocol of its own, that knows its factory.
    """
    server = MemoryServer()
    first, second = server.enter(), server.enter()
    assert first.protocol is not second.protocol
    assert first.protocol.factory is server.factory


def test_record() -> None:
    """
    Each connection has a number of its own, and is reported once, at its end, with how long it has
    lasted; it does not count any more then.
    """
    server = MemoryServer()
    server.clock.advance(1)
    first, second = server.enter(), server.enter()
    assert (first.record.id, second.record.id) == (1, 2)
    assert first.record.acceptedAt == 1
    assert first.record.duration is None
    first.peer.sendall(b"1\n2\n3")
    server.passes(1.5)
    for _ in range(2):
        first.transport.connectionLost(Failure(ConnectionLost()))
    assert server.ended == [first.record]
    assert first.record.duration == pytest.approx(1.5)
    assert first.record.reason is CloseReason.RESET
    assert (first.record.work, first.record.received, first.record.sent) == (2, 5, 4)
    counters = server.connections.counters
    assert (counters.accepted, sum(counters.ended.values())) == (2, 1)
    assert (counters.work, counters.received, counters.sent) == (2, 5, 4)


def test_reportedFirst() -> None:
    """
    What is known of a connection is written down before anybody hears that it has left, and that
    all have.
    """
    server = MemoryServer()
    server.connections.startService()
    pair = server.enter()
    told: list[tuple[str, int]] = []
    server.connections.onNextEnd(lambda: told.append(("one", len(server.ended))))
    drained = server.connections.stopService()
    drained.addCallback(lambda _: told.append(("all", len(server.ended))))
    pair.peer.close()
    server.turn()
    assert told == [("one", 1), ("all", 1)]


def test_verbose() -> None:
    """
    Begin and end are logged if that is wanted, and else not.
    """
    for verbose in True, False:
        server = MemoryServer(verbose=verbose)
        with capturedLogs() as logs:
            pair = server.enter()
            pair.transport.connectionLost(connectionDone)
        assert [event["log_format"].format(**event) for event in logs] == [
            "Connection 1 from 192.0.2.1:1024 on tcp:0",
            "Connection 1 ended: client_closed",
        ][: 2 * verbose]
        assert {event["log_level"] for event in logs} <= {LogLevel.debug}


# Who may connect.


def test_room() -> None:
    """
    At the limit there is no room, and who asked is told when there is.
    """
    server = MemoryServer(Limits(maxConnections=2))
    told: list[str] = []
    first = server.enter()
    assert server.connections.hasRoom()
    server.enter()
    with capturedLogs() as logs:
        assert not server.connections.hasRoom()
        assert not server.connections.hasRoom()
    for name in "one", "two":
        server.connections.onNextEnd(partial(told.append, name))
    assert [event["log_level"] for event in logs] == [LogLevel.warn]
    assert told == []
    first.transport.connectionLost(connectionDone)
    assert told == ["one", "two"]
    server.enter().transport.connectionLost(connectionDone)
    assert told == ["one", "two"]


def test_roomByDefault() -> None:
    """
    By default there is room for as many as the hard limit of file descriptors allows, less a
    reserve; starting raises the soft limit to it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    assert maxConnectionsAllowed() == hard - RESERVED_FDS
    MemoryServer().connections.startService()
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
    assert sourceKey(address) == source


def isRefused(pair: Pair) -> bool:
    """
    Was the connection closed at once, and is it known why?
    """
    if not pair.transport.disconnected:
        assert pair.isSilent()
        return False
    assert pair.peer.recv(1) == b""
    assert pair.protocol is None
    assert pair.record.reason is CloseReason.REFUSED
    return True


def test_perSource() -> None:
    """
    A source that has its share is refused more until one of its connections ends: they are closed
    at once, and never were anybody's. Refusals are logged once a minute for each source.
    """
    server = MemoryServer(Limits(maxPerSource=2))
    other = IPv4Address("TCP", "192.0.2.2", 1024)
    first, second = server.enter(), server.enter()
    assert not isRefused(first)
    assert not isRefused(second)
    with capturedLogs() as logs:
        assert isRefused(server.enter())
        assert isRefused(server.enter())
        assert not isRefused(server.enter(other))
        assert not isRefused(server.enter(other))
        assert isRefused(server.enter(other))
    assert [event["source"] for event in logs] == ["192.0.2.1", "192.0.2.2"]
    assert all(event["log_level"] == LogLevel.warn for event in logs)
    assert len(server.connections) == 4
    assert [record.id for record in server.ended] == [3, 4, 7]
    first.transport.connectionLost(connectionDone)
    assert not isRefused(server.enter())
    assert isRefused(server.enter())


def test_perSourceForIPAlone() -> None:
    """
    All peers of a UNIX socket have the same address, or none: they have no share.
    """
    server = MemoryServer(Limits(maxPerSource=1))
    for _ in range(3):
        assert not isRefused(server.enter(UNIXAddress(None)))


def test_perSourceIsForgotten() -> None:
    """
    Nothing is kept of a source that has no connections.
    """
    server = MemoryServer(Limits(maxPerSource=1))
    server.enter()
    assert isRefused(server.enter())
    server.close()
    assert server.connections._perSource == {}


def test_oncePerMinute() -> None:
    """
    What happens is logged at once, and then once a minute as long as it goes on, with how often it
    has happened. What has stopped is forgotten.
    """
    clock = Clock()
    logged: list[tuple[str, int]] = []
    once = LogThrottle(clock)

    def happens(what: str) -> None:
        once(what, lambda count: logged.append((what, count)))

    for _ in range(3):
        happens("a")
    happens("b")
    assert logged == [("a", 1), ("b", 1)]
    clock.advance(REPEAT_INTERVAL)
    assert logged[2:] == [("a", 2)]
    happens("a")
    happens("b")
    assert logged[3:] == [("b", 1)]
    clock.advance(REPEAT_INTERVAL)
    assert logged[4:] == [("a", 1)]
    clock.advance(REPEAT_INTERVAL)
    assert clock.getDelayedCalls() == []
    assert len(logged) == 5


def test_oncePerMinuteForMany() -> None:
    """
    There is an end to what is kept: past it all that is new is one, and is not taken for the first
    of them.
    """
    clock = Clock()
    logged: list[int] = []
    once = LogThrottle(clock)
    with capturedLogs() as logs:
        for number in range(MAX_KEYS + 100):
            once(str(number), logged.append)
        assert logged == [1] * MAX_KEYS
        assert len(clock.getDelayedCalls()) == MAX_KEYS + 1
        clock.advance(REPEAT_INTERVAL)
    assert logged == [1] * MAX_KEYS
    assert [(event["log_level"], event["count"]) for event in logs] == [
        (LogLevel.warn, 1),
        (LogLevel.warn, 99),
    ]


def test_eachReasonForItself() -> None:
    """
    Two reasons of one source are two warnings, each with its own count; so are two sources.
    """
    clock = Clock()
    source = SourceLog(clock)
    one, two = (IPv4Address("TCP", f"192.0.2.{number}", 1024) for number in (1, 2))
    with capturedLogs() as logs:
        for reason in ["broken", *["too long"] * 7, "broken"]:
            source.warn(one, "{source} refused: {reason}", reason=reason)
        source.warn(two, "{source} refused: {reason}", reason="broken")
        clock.advance(REPEAT_INTERVAL)
    assert [(event["source"], event["reason"], event["count"]) for event in logs] == [
        ("192.0.2.1", "broken", 1),
        ("192.0.2.1", "too long", 1),
        ("192.0.2.2", "broken", 1),
        ("192.0.2.1", "broken", 1),
        ("192.0.2.1", "too long", 6),
    ]


def test_nothingOfAClientInTheKey() -> None:
    """
    What only a port or the rest of a /64 tells apart is one source.
    """
    source = SourceLog(Clock())
    with capturedLogs() as logs:
        for number in range(100):
            peer = IPv6Address("TCP", f"2001:db8::{number:x}", 1024 + number)
            source.warn(peer, "{source} refused: {reason}", reason="broken")
    assert [event["source"] for event in logs] == ["2001:db8::/64"]


# Time-outs.


def test_idle() -> None:
    """
    A connection without a byte in either direction is closed after the idle time-out, never before
    it, and not much later; one that receives now and then is not.
    """
    server = MemoryServer(Limits(idleTimeout=5))
    server.connections.startService()
    idle, dripping = server.enter(), server.enter()
    for _ in range(5):
        dripping.peer.sendall(b"x")
        server.passes(0.95)
    assert set(server.connections) == {idle.transport, dripping.transport}
    for _ in range(2):
        dripping.peer.sendall(b"x")
        server.passes(0.8)
    assert set(server.connections) == {dripping.transport}
    assert idle.record.reason is CloseReason.IDLE_TIMEOUT
    assert idle.peer.recv(1) == b""
    server.passes(7)
    assert len(server.connections) == 0


def test_idlePausedProcess() -> None:
    """
    After a pause of the process, a connection with a line in the kernel is not idle. One that is
    not read from is, whatever it has in the kernel.
    """
    server = MemoryServer(Limits(idleTimeout=5), RecorderFactory())
    server.connections.startService()
    sending, unread = server.enter(), server.enter()
    unread.transport.pauseProducing()
    for pair in sending, unread:
        pair.peer.sendall(b"line\n")
    server.clock.advance(6)
    server.clock.pump([0] * 10)
    server.turn()
    assert sending.protocol.events == [b"line\n"]
    assert sending.record.reason is None
    assert unread.record.reason is CloseReason.IDLE_TIMEOUT


def test_idleForEver() -> None:
    """
    By default idle connections stay.
    """
    server = MemoryServer()
    server.connections.startService()
    server.enter()
    server.passes(500)
    assert len(server.connections) == 1


def test_echoUnread() -> None:
    """
    A client that leaves its echo unread is aborted after the write time-out; one that reads some of
    it is not.
    """
    server = MemoryServer(Limits(writeTimeout=4))
    server.connections.startService()
    stuck, slow = server.enter(), server.enter()
    for _ in range(2):
        for pair in stuck, slow:
            pair.peer.sendall(b"x" * 999 + b"\n")
        server.turn()
    server.passes(3)
    assert set(server.connections) == {stuck.transport, slow.transport}
    slow.peer.recv(1000)
    server.passes(3)
    assert set(server.connections) == {slow.transport}
    assert stuck.record.reason is CloseReason.WRITE_TIMEOUT
    slow.peer.recv(1000)
    server.passes(50)
    assert set(server.connections) == {slow.transport}


def test_echoUnreadThatCameLate() -> None:
    """
    What a protocol holds back for a moment is not forgotten when it reaches the kernel.
    """
    server = MemoryServer(Limits(writeTimeout=8), RecorderFactory())
    server.connections.startService()
    stuck = server.enter()
    stuck.peer.sendall(b"x")
    # One look has seen bytes come in, and one that nothing is unsent.
    server.passes(2.5)
    stuck.transport.write(b"x")
    server.passes(11)
    assert stuck.record.reason is CloseReason.WRITE_TIMEOUT


def test_echoUnreadIsNoIdleness() -> None:
    """
    It is the write time-out that counts while an echo is unread, be it the longer one.
    """
    server = MemoryServer(Limits(writeTimeout=20, idleTimeout=4))
    server.connections.startService()
    stuck = server.enter()
    stuck.peer.sendall(b"x\n")
    server.passes(15)
    assert len(server.connections) == 1
    server.passes(10)
    assert len(server.connections) == 0
    assert stuck.record.reason is CloseReason.WRITE_TIMEOUT


def test_idleWithAProducer() -> None:
    """
    Also a connection is closed whose protocol has a producer, and all that it has written is sent.
    """
    server = MemoryServer(Limits(idleTimeout=4), RecorderFactory())
    server.connections.startService()
    pair = server.enter()
    pair.transport.registerProducer(pair.protocol, True)
    pair.transport.write(PLENTY)
    assert server.collect(pair.peer, len(PLENTY)) == PLENTY
    server.passes(10)
    assert pair.record.reason is CloseReason.IDLE_TIMEOUT
    assert pair.peer.recv(1) == b""


def test_oneThatCannotBeLookedAt() -> None:
    """
    A connection that fails under the eyes of the time-outs fails alone.
    """
    server = MemoryServer(Limits(idleTimeout=4))
    server.connections.startService()
    broken, other = server.enter(), server.enter()
    broken.peer.sendall(b"x")
    server.turn()
    broken.transport.getHandle().close()
    with capturedLogs() as logs:
        server.passes(3)
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    assert set(server.connections) == {other.transport}
    assert broken.record.reason is CloseReason.ERROR
    server.passes(3)
    assert len(server.connections) == 0


# The drain.


def test_drainNobody() -> None:
    """
    Without connections there is nothing to wait for.
    """
    server = MemoryServer()
    server.connections.startService()
    assert not server.connections.isDraining
    assert drain(server) == [None]
    assert server.connections.isDraining
    server.passes(0.1)
    assert server.clock.getDelayedCalls() == []


def drain(server: MemoryServer) -> list[object]:
    """
    Begin to drain. The list that is returned is empty until the end.
    """
    done: list[object] = []
    server.connections.stopService().addCallback(done.append)
    return done


def test_drainAtRest() -> None:
    """
    What is at rest is closed at once; what has received a moment ago, when it has been silent for a
    while.
    """
    server = MemoryServer(Limits(idleTimeout=1))
    server.connections.startService()
    idle = server.enter()
    server.passes(0.5)
    busy = server.enter()

    def ask() -> None:
        busy.peer.sendall(b"line\n")
        server.turn()
        assert busy.peer.recv(100) == b"line\n"

    ask()
    done = drain(server)
    server.passes(0.05)
    assert set(server.connections) == {busy.transport}
    assert idle.record.reason is CloseReason.DRAINED
    assert idle.peer.recv(1) == b""
    ask()
    server.passes(0.25)
    ask()
    server.passes(0.25)
    assert set(server.connections) == {busy.transport}
    server.passes(0.3)
    assert done == [None]
    assert busy.record.reason is CloseReason.DRAINED
    assert busy.peer.recv(1) == b""
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize("busy", ["line begun", "unread", "unsent"])
def test_drainBusy(busy: str) -> None:
    """
    A connection goes on while a line is begun, or something is unread or unsent; at the deadline it
    is aborted, and counted.
    """
    server = MemoryServer(Limits(drainTimeout=5))
    server.connections.startService()
    pair = server.enter()
    pair.peer.sendall(b"begin" if busy == "line begun" else b"line\n")
    server.turn()
    if busy == "unread":
        assert pair.peer.recv(100) == b"line\n"
        pair.transport.pauseProducing()
        pair.peer.send(b"x")
    done = drain(server)
    with capturedLogs() as logs:
        server.passes(4.9)
        assert not pair.transport.disconnecting
        assert pair.record.reason is None
        server.passes(0.2)
    assert pair.record.reason is CloseReason.ABORTED
    assert done == [None]
    assert [event["count"] for event in logs] == [1]


@pytest.mark.parametrize("pause", [True, False])
def test_drainPausedProcess(pause: bool) -> None:
    """
    A line that has come in the drain's time is echoed, also if the process was paused meanwhile.
    That is so once: a deadline that comes in time is the end.
    """
    server = MemoryServer(Limits(drainTimeout=5))
    server.connections.startService()
    pair = server.enter()
    pair.peer.sendall(b"is it")
    server.turn()
    done = drain(server)
    if pause:
        server.passes(1)
        pair.peer.sendall(b" me\n")
        server.clock.advance(10)
        server.turn()
        assert pair.peer.recv(100) == b"is it me\n"
        server.passes(2)
        assert pair.record.reason is CloseReason.DRAINED
    else:
        server.passes(4.9)
        server.clock.advance(10)
        server.passes(2)
        assert pair.record.reason is CloseReason.ABORTED
    assert done == [None]


def test_drainUntilTheLineIsComplete() -> None:
    """
    A line that was begun is waited for.
    """
    server = MemoryServer()
    server.connections.startService()
    pair = server.enter()
    pair.peer.sendall(b"is it")
    server.turn()
    done = drain(server)
    server.passes(10)
    pair.peer.sendall(b" me\n")
    server.turn()
    assert pair.peer.recv(100) == b"is it me\n"
    server.passes(0.5)
    assert done == [None]
    assert pair.record.reason is CloseReason.DRAINED


@pytest.mark.parametrize("begun", [True, False])
def test_drainInAHurry(begun: bool) -> None:
    """
    A drain can be cut short, also before it begins.
    """
    server = MemoryServer()
    server.connections.startService()
    pair = server.enter(overTCP=True)
    pair.peer.sendall(b"is it")
    server.turn()
    if begun:
        done = drain(server)
        server.passes(1)
        server.connections.abortDrain()
    else:
        server.connections.abortDrain()
        with capturedLogs() as logs:
            done = drain(server)
        assert formatEvent(logs[0]) == "Draining 1 connection, for at most 0 s"
    server.passes(0.1)
    assert done == [None]
    assert pair.record.reason is CloseReason.ABORTED
    with pytest.raises(ConnectionResetError):
        pair.peer.recv(1)
    assert server.clock.getDelayedCalls() == []


def test_whenLeft() -> None:
    """
    Who waits for one to leave is told once, when the first one does, be it in the drain.
    """
    server = MemoryServer()
    server.connections.startService()
    told: list[str] = []
    server.enter(), server.enter()
    server.connections.onNextEnd(lambda: told.append("left"))
    done = drain(server)
    server.passes(1)
    assert told == ["left"]
    assert done == [None]


def test_counts() -> None:
    """
    The lines and bytes of all connections are counted, also of those that have ended.
    """
    server = MemoryServer()
    one, two = server.enter(), server.enter()
    for pair in one, two:
        pair.peer.sendall(b"1\n2\n3")
    server.turn()
    assert server.connections.counts() == (4, 10, 8)
    one.transport.connectionLost(Failure(ConnectionLost()))
    assert server.connections.counts() == (4, 10, 8)
