"""
The poller: over socket pairs, turn by turn.
"""

import socket
from asyncio import CancelledError

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs
from zope.interface.verify import verifyObject

from kvserver.connections.poller import EVENTS_PER_TURN, Poller
from kvserver.connections.record import CloseReason
from tests.support.memory import MemoryServer, Pair, isReadable


def test_interfaces(server: MemoryServer) -> None:
    """
    It is a reactor to the connections, and a file descriptor to the reactor.
    """
    assert verifyObject(IReactorFDSet, server.poller)
    assert verifyObject(IReadDescriptor, server.poller)
    assert server.poller.logPrefix()
    assert server.clock.getReaders() == []
    server.enter()
    pair = server.enter()
    assert server.clock.getReaders() == [server.poller]
    assert not isReadable(server.poller)
    pair.peer.sendall(b"x")
    assert isReadable(server.poller)
    server.turn()
    assert not isReadable(server.poller)


def test_watched(server: MemoryServer) -> None:
    """
    It knows what is watched, and for what; to say it twice is to say it once.
    """
    one, two = server.enter().transport, server.enter().transport
    assert server.poller.getReaders() == [one, two]
    server.poller.addReader(one)
    server.poller.removeWriter(one)
    server.poller.addWriter(two)
    assert server.poller.getWriters() == [two]
    server.poller.removeReader(two)
    assert server.poller.getReaders() == [one]
    assert server.poller.removeAll() == [one, two]
    assert server.poller.getReaders() == server.poller.getWriters() == []


def test_remove(server: MemoryServer) -> None:
    """
    What is removed is not served, whatever it was watched for, until it is added again.
    """
    pair = server.enter()
    server.poller.addWriter(pair.transport)
    server.poller.remove(pair.transport)
    server.poller.remove(pair.transport)
    assert server.poller.getReaders() == server.poller.getWriters() == []
    pair.peer.sendall(b"x")
    server.turn()
    assert pair.protocol.events == []
    server.poller.addReader(pair.transport)
    server.turn()
    assert pair.protocol.events == [b"x"]


def test_forget(server: MemoryServer) -> None:
    """
    What is forgotten and closed leaves nothing: the next connection, that gets its file descriptor,
    is served as any.
    """
    one = server.enter()
    number = one.transport.fileno()
    one.peer.sendall(b"x")
    server.poller.addWriter(one.transport)
    server.poller.forget(one.transport)
    server.poller.forget(one.transport)
    assert server.poller.getReaders() == server.poller.getWriters() == []
    one.transport.getHandle().close()
    server.turn()
    assert one.protocol.events == []
    # A lower number may have become free, too.
    others = [server.enter() for _ in range(20)]
    (two,) = (other for other in others if other.transport.fileno() == number)
    assert two.transport in server.poller.getReaders()
    two.peer.sendall(b"y")
    server.turn()
    assert two.protocol.events == [b"y"]


def test_serves(server: MemoryServer) -> None:
    """
    All that are ready are served in one turn.
    """
    pairs = [server.enter() for _ in range(3)]
    for pair in pairs[1:]:
        pair.peer.sendall(b"hello\n")
    server.turn()
    assert [pair.protocol.events for pair in pairs] == [[], *[[b"hello\n"]] * 2]


def test_batch(server: MemoryServer) -> None:
    """
    There is an end to a turn, however many are ready.
    """
    pairs = [server.enter() for _ in range(EVENTS_PER_TURN + 10)]
    for pair in pairs:
        pair.peer.sendall(b"hello\n")
    server.turn()
    assert sum(len(pair.protocol.events) for pair in pairs) == EVENTS_PER_TURN
    server.turn()
    assert {len(pair.protocol.events) for pair in pairs} == {1}


def test_onceATurn(server: MemoryServer) -> None:
    """
    What becomes ready while others are served has its turn in the next one: to look again costs
    something.
    """
    one, two = server.enter(), server.enter()
    one.protocol.whenReceived = two.peer.sendall
    one.peer.sendall(b"x")
    for events in [], [b"x"]:
        before = server.poller.turn
        server.turn()
        assert server.poller.turn == before + 1
        assert two.protocol.events == events


def test_newOnes(server: MemoryServer) -> None:
    """
    Those who come while others are served are served in the same turn, and still it has an end.
    """
    pairs: list[Pair] = []

    def enters(data: bytes) -> None:
        if len(pairs) == 7:
            return
        pairs.append(server.enter())
        pairs[-1].protocol.whenReceived = enters
        pairs[-1].peer.sendall(b"x")

    enters(b"")
    for count in 3, 5:
        before = server.poller.turn
        server.turn()
        assert server.poller.turn == before + 1
        assert len(pairs) == count


def test_readsAndWrites(server: MemoryServer) -> None:
    """
    One that is ready for both does both in one turn; but not if it has been aborted in between, or
    is gone.
    """
    acts = (lambda pair: None), end, abort
    for act, events in zip(acts, (["resumed"], ["stopped", ConnectionDone], []), strict=True):
        pair = server.enter()
        pair.transport.registerProducer(pair.protocol, False)
        pair.protocol.whenReceived = lambda data, act=act, pair=pair: act(pair)
        pair.peer.sendall(b"x")
        server.poller.doRead()
        assert pair.protocol.events == events
        pair.transport.write(b"late")
        assert pair.record.sent == 0
        server.close()


def end(pair: Pair) -> None:
    """
    A connection is gone.
    """
    pair.transport.connectionLost(connectionDone)


def abort(pair: Pair) -> None:
    """
    A connection will be gone.
    """
    pair.transport.abortConnection()


def test_closedByAnother(server: MemoryServer) -> None:
    """
    One that has been closed in the same turn by another is not served.
    """
    one, two = server.enter(), server.enter()
    one.protocol.whenReceived = lambda data: end(two)
    two.protocol.whenReceived = lambda data: end(one)
    one.peer.sendall(b"x")
    two.peer.sendall(b"x")
    server.turn()
    both = [one.protocol.events, two.protocol.events]
    assert sorted(both, key=len) == [[], [ConnectionDone]]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, CancelledError])
def test_failsAlone(server: MemoryServer, error: type[BaseException]) -> None:
    """
    A protocol that raises is closed, whatever it raises; the others are served, in the same turn.
    """

    def fail(data: bytes) -> None:
        raise error

    one, two = server.enter(), server.enter()
    one.protocol.whenReceived = fail
    one.peer.sendall(b"x")
    two.peer.sendall(b"x")
    with capturedLogs() as logs:
        server.turn()
    assert one.protocol.events == [error]
    assert one.peer.recv(1) == b""
    assert [record.reason for record in server.ended] == [CloseReason.ERROR]
    assert two.protocol.events == [b"x"]
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    assert logs[0]["connection"] == "Recorder,1,192.0.2.1"


def test_failsTwice(server: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    One that raises again when it is told of its end is forgotten all the same.
    """
    one, two = server.enter(), server.enter()
    one.protocol.whenReceived = lambda data: 1 / 0
    monkeypatch.setattr(one.protocol, "connectionLost", lambda reason: 1 / 0)
    one.peer.sendall(b"x")
    two.peer.sendall(b"x")
    with capturedLogs() as logs:
        server.turn()
    assert two.protocol.events == [b"x"]
    assert server.poller.getReaders() == [two.transport]
    assert len(logs) == 2
    assert server.ended == [one.record]


def test_reactorEnds(server: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    When the reactor ends so do the connections.
    """
    one, two = server.enter(), server.enter()
    monkeypatch.setattr(one.protocol, "connectionLost", lambda reason: 1 / 0)
    with capturedLogs() as logs:
        server.poller.connectionLost(connectionDone)
    assert two.protocol.events == [ConnectionDone]
    assert server.ended == [one.record, two.record]
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    assert "192.0.2.1" in logs[0]["connection"]


@pytest.mark.parametrize("areShared", [True, False])
def test_sharedSocket(areShared: bool) -> None:
    """
    A socket that another process has open, too, is not heard of after its end.
    """
    clock = MemoryReactorClock()
    poller = Poller(clock, areShared)
    ours, theirs = socket.socketpair()
    copy = ours.dup()
    reader = Reader(ours)
    poller.addReader(reader)
    poller.forget(reader)
    ours.close()
    theirs.close()
    # Nobody asks for this without the need.
    assert isReadable(poller) is not areShared
    copy.close()
    assert not isReadable(poller)


class Reader:
    """
    Reads nothing.
    """

    def __init__(self, end: socket.socket) -> None:
        self.fileno = end.fileno


def test_callSoon(server: MemoryServer) -> None:
    """
    What is asked for in a turn is done at its end, and what is asked for at another time in the
    next one; whatever of it fails.
    """
    done: list[str] = []

    def fail() -> None:
        raise ValueError("oops")

    def doRead() -> None:
        server.poller.callSoon(fail)
        server.poller.callSoon(lambda: done.append("at the end"))
        assert done == []
        pair.transport.__class__.doRead(pair.transport)

    pair = server.enter()
    pair.transport.doRead = doRead  # type: ignore[method-assign]
    pair.peer.sendall(b"x")
    with capturedLogs() as events:
        server.turn()
    assert done == ["at the end"]
    assert [event["log_level"] for event in events] == [LogLevel.critical]
    server.poller.callSoon(lambda: done.append("later"))
    server.poller.callSoon(lambda: done.append("in order"))
    assert done == ["at the end"]
    server.clock.advance(0)
    assert done == ["at the end", "later", "in order"]


def test_onceMoreBeforeTheEnd(server: MemoryServer) -> None:
    """
    What becomes ready in a turn is served before the calls at its end: hand-overs gather.
    """
    one, two = server.enter(), server.enter()
    done: list[list[object]] = []

    def received(data: bytes) -> None:
        two.peer.sendall(data)
        server.poller.callSoon(lambda: done.append(list(two.protocol.events)))

    one.protocol.whenReceived = received
    one.peer.sendall(b"x")
    server.turn()
    assert done == [[b"x"]]
