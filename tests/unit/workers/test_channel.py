"""
The channel between master and worker, over a socket pair.
"""

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure

from kvserver.workers.channel import MAX_DESCRIPTORS, Channel
from tests.support.memory import isReadable


class End:
    """
    One end of a channel.

    @ivar received: The messages that have come.

    @ivar descriptors: The descriptors that have come, and that nobody has taken.

    @ivar lost: How often the other end was lost.
    """

    def __init__(self, reactor: MemoryReactor, end: socket.socket) -> None:
        end.setblocking(False)
        self.received: list[list[Any]] = []
        self.descriptors: list[int] = []
        self.lost = 0
        self.channel = Channel(reactor, end, self._receive, self._lose)

    def _receive(self, message: list[Any], descriptors: list[int]) -> None:
        self.received.append(message)
        self.descriptors += descriptors
        descriptors.clear()

    def _lose(self) -> None:
        self.lost += 1

    def read(self) -> None:
        """
        Receive what there is.
        """
        while self.channel.isOpen and isReadable(self.channel):
            self.channel.doRead()


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    """
    Both ends of a channel.
    """
    reactor = MemoryReactor()
    one, other = (End(reactor, end) for end in socket.socketpair())
    yield one, other
    for end in one, other:
        end.channel.close()
        for number in end.descriptors:
            os.close(number)
    assert not reactor.getReaders()
    assert not reactor.getWriters()


def test_messages(ends: tuple[End, End]) -> None:
    """
    Messages come whole, in order, however the kernel cuts them.
    """
    one, other = ends
    messages: list[list[Any]] = [["x", "\n\u20ac\udcff", None, 1.5], ["y" * 300_000], ["z"]]
    for message in messages:
        one.channel.send(message)
    while len(other.received) < len(messages):
        other.read()
        one.channel.doWrite()
    assert other.received == messages
    one.read()
    assert one.received == []


def test_sockets(ends: tuple[End, End]) -> None:
    """
    Sockets come with their message, as many as may be sent together; nobody inherits them.
    """
    one, other = ends
    pairs = [socket.socketpair() for _ in range(MAX_DESCRIPTORS)]
    one.channel.send(["before"])
    one.channel.send(["take"], [ours.fileno() for ours, _ in pairs])
    one.channel.send(["after"])
    other.read()
    assert other.received == [["before"], ["take"], ["after"]]
    assert len(other.descriptors) == MAX_DESCRIPTORS
    for number, (ours, theirs) in zip(other.descriptors, pairs, strict=True):
        ours.close()
        assert not os.get_inheritable(number)
        os.write(number, b"hello")
        assert theirs.recv(10) == b"hello"
        theirs.close()


def test_full(ends: tuple[End, End]) -> None:
    """
    What the other end does not take waits, in order; it is told when the kernel has all.
    """
    one, other = ends
    told: list[str] = []
    one.channel.whenFlushed(lambda: told.append("at once"))
    with socket.socket() as passed:
        count = 0
        while one.channel not in one.channel._poller.getWriters():
            one.channel.send([count, "x" * 10_000], [passed.fileno()])
            count += 1
        one.channel.whenFlushed(lambda: told.append("later"))
        assert told == ["at once"]
        while len(other.received) < count:
            other.read()
            one.channel.doWrite()
        assert told == ["at once", "later"]
        assert [number for number, _ in other.received] == list(range(count))
        assert len(other.descriptors) == count


@pytest.mark.parametrize("how", ["closed", "reset", "reactor"])
def test_lost(ends: tuple[End, End], how: str) -> None:
    """
    The end of the other end is told once, after all that it has sent, also if it died with
    something unread.
    """
    one, other = ends
    if how == "reset":
        one.channel.send(["unread"])
    other.channel.send(["last words"])
    other.channel.close()
    one.read()
    if how == "reactor":
        one.channel.connectionLost(Failure(ConnectionLost()))
    assert one.received == [["last words"]]
    assert one.lost == 1
    one.channel.send(["nobody hears"])


def test_receiveAll(ends: tuple[End, End]) -> None:
    """
    What has been sent can be received at once.
    """
    one, other = ends
    for number in range(3):
        other.channel.send([number, "x" * 50_000])
    other.channel.close()
    one.channel.receiveAll()
    assert [number for number, _ in one.received] == [0, 1, 2]


def test_receiveAllInTheMiddle(ends: tuple[End, End]) -> None:
    """
    What a message brings about may receive what has been sent since, wherever that was cut: the
    limits do so when a connection has ended.
    """
    one, other = ends
    numbers = []

    def received(message: list[Any], descriptors: list[int]) -> None:
        numbers.append(message[0])
        one.channel.receiveAll()

    one.channel._received = received
    for number in range(10):
        other.channel.send([number, "x" * 20_000])
    one.read()
    assert numbers == list(range(10))
