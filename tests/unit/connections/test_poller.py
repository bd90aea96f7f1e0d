"""
The poller: over socket pairs, turn by turn.
"""

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.logger import LogLevel, capturedLogs
from zope.interface.verify import verifyObject

from kvserver.connections.poller import EVENTS_PER_TURN
from kvserver.connections.record import CloseReason
from tests.support.house import Guest, House, isReadable


def test_interfaces(house: House) -> None:
    """
    It is a reactor to the connections, and a file descriptor to the reactor.
    """
    assert verifyObject(IReactorFDSet, house.poller)
    assert verifyObject(IReadDescriptor, house.poller)
    assert house.poller.logPrefix()
    assert house.clock.getReaders() == []
    house.enter()
    guest = house.enter()
    assert house.clock.getReaders() == [house.poller]
    assert not isReadable(house.poller)
    guest.peer.sendall(b"x")
    assert isReadable(house.poller)
    house.turn()
    assert not isReadable(house.poller)


def test_watched(house: House) -> None:
    """
    It knows what is watched, and for what; to say it twice is to say it once.
    """
    one, two = house.enter().transport, house.enter().transport
    assert house.poller.getReaders() == [one, two]
    house.poller.addReader(one)
    house.poller.removeWriter(one)
    house.poller.addWriter(two)
    assert house.poller.getWriters() == [two]
    house.poller.removeReader(two)
    assert house.poller.getReaders() == [one]
    assert house.poller.removeAll() == [one, two]
    assert house.poller.getReaders() == house.poller.getWriters() == []


def test_remove(house: House) -> None:
    """
    What is removed is not served, whatever it was watched for, until it is added again.
    """
    guest = house.enter()
    house.poller.addWriter(guest.transport)
    house.poller.remove(guest.transport)
    house.poller.remove(guest.transport)
    assert house.poller.getReaders() == house.poller.getWriters() == []
    guest.peer.sendall(b"x")
    house.turn()
    assert guest.protocol.events == []
    house.poller.addReader(guest.transport)
    house.turn()
    assert guest.protocol.events == [b"x"]


def test_forget(house: House) -> None:
    """
    What is forgotten and closed leaves nothing: the next connection, that gets its file descriptor,
    is served as any.
    """
    one = house.enter()
    number = one.transport.fileno()
    one.peer.sendall(b"x")
    house.poller.addWriter(one.transport)
    house.poller.forget(one.transport)
    house.poller.forget(one.transport)
    assert house.poller.getReaders() == house.poller.getWriters() == []
    one.transport.getHandle().close()
    house.turn()
    assert one.protocol.events == []
    two = house.enter()
    assert two.transport.fileno() == number
    assert house.poller.getReaders() == [two.transport]
    two.peer.sendall(b"y")
    house.turn()
    assert two.protocol.events == [b"y"]


def test_serves(house: House) -> None:
    """
    All that are ready are served in one turn.
    """
    guests = [house.enter() for _ in range(3)]
    for guest in guests[1:]:
        guest.peer.sendall(b"hello\n")
    house.turn()
    assert [guest.protocol.events for guest in guests] == [[], *[[b"hello\n"]] * 2]


def test_batch(house: House) -> None:
    """
    There is an end to a turn, however many are ready.
    """
    guests = [house.enter() for _ in range(EVENTS_PER_TURN + 10)]
    for guest in guests:
        guest.peer.sendall(b"hello\n")
    house.turn()
    assert sum(len(guest.protocol.events) for guest in guests) == EVENTS_PER_TURN
    house.turn()
    assert {len(guest.protocol.events) for guest in guests} == {1}


def test_onceATurn(house: House) -> None:
    """
    What becomes ready while others are served has its turn in the next one: to look again costs
    something.
    """
    one, two = house.enter(), house.enter()
    one.protocol.whenReceived = two.peer.sendall
    one.peer.sendall(b"x")
    for events in [], [b"x"]:
        before = house.poller.turn
        house.turn()
        assert house.poller.turn == before + 1
        assert two.protocol.events == events


def test_newOnes(house: House) -> None:
    """
    Those who come while others are served are served in the same turn, and still it has an end.
    """
    guests: list[Guest] = []

    def enters(data: bytes) -> None:
        if len(guests) == 7:
            return
        guests.append(house.enter())
        guests[-1].protocol.whenReceived = enters
        guests[-1].peer.sendall(b"x")

    enters(b"")
    for count in 3, 5:
        before = house.poller.turn
        house.turn()
        assert house.poller.turn == before + 1
        assert len(guests) == count


def test_readsAndWrites(house: House) -> None:
    """
    One that is ready for both does both in one turn; but not if it has been aborted in between, or
    is gone.
    """
    acts = (lambda guest: None), end, abort
    for act, events in zip(acts, (["resumed"], ["stopped", ConnectionDone], []), strict=True):
        guest = house.enter()
        guest.transport.registerProducer(guest.protocol, False)
        guest.protocol.whenReceived = lambda data, act=act, guest=guest: act(guest)
        guest.peer.sendall(b"x")
        house.poller.doRead()
        assert guest.protocol.events == events
        guest.transport.write(b"late")
        assert guest.record.sent == 0
        house.close()


def end(guest: Guest) -> None:
    """
    A connection is gone.
    """
    guest.transport.connectionLost(connectionDone)


def abort(guest: Guest) -> None:
    """
    A connection will be gone.
    """
    guest.transport.abortConnection()


def test_closedByAnother(house: House) -> None:
    """
    One that has been closed in the same turn by another is not served.
    """
    one, two = house.enter(), house.enter()
    one.protocol.whenReceived = lambda data: end(two)
    two.protocol.whenReceived = lambda data: end(one)
    one.peer.sendall(b"x")
    two.peer.sendall(b"x")
    house.turn()
    both = [one.protocol.events, two.protocol.events]
    assert sorted(both, key=len) == [[], [ConnectionDone]]


def test_failsAlone(house: House) -> None:
    """
    A protocol that raises is closed; the others are served, in the same turn.
    """
    one, two = house.enter(), house.enter()
    one.protocol.whenReceived = lambda data: 1 / 0
    one.peer.sendall(b"x")
    two.peer.sendall(b"x")
    with capturedLogs() as logs:
        house.turn()
    assert one.protocol.events == [ZeroDivisionError]
    assert one.peer.recv(1) == b""
    assert [record.reason for record in house.ended] == [CloseReason.ERROR]
    assert two.protocol.events == [b"x"]
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    assert logs[0]["connection"] == "Recorder,1,192.0.2.1"


def test_failsTwice(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    One that raises again when it is told of its end is forgotten all the same.
    """
    one, two = house.enter(), house.enter()
    one.protocol.whenReceived = lambda data: 1 / 0
    monkeypatch.setattr(one.protocol, "connectionLost", lambda reason: 1 / 0)
    one.peer.sendall(b"x")
    two.peer.sendall(b"x")
    with capturedLogs() as logs:
        house.turn()
    assert two.protocol.events == [b"x"]
    assert house.poller.getReaders() == [two.transport]
    assert len(logs) == 2
    assert house.ended == [one.record]


def test_reactorEnds(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    When the reactor ends so do the connections.
    """
    one, two = house.enter(), house.enter()
    monkeypatch.setattr(one.protocol, "connectionLost", lambda reason: 1 / 0)
    with capturedLogs() as logs:
        house.poller.connectionLost(connectionDone)
    assert two.protocol.events == [ConnectionDone]
    assert house.ended == [one.record, two.record]
    assert [event["log_level"] for event in logs] == [LogLevel.error]
    assert "192.0.2.1" in logs[0]["connection"]
