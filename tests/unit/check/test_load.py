"""
A load and its connections, in memory: where they connect to, and how long they wait.
"""

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from kvserver.check import connection as connections
from kvserver.check.giving import Plan
from kvserver.check.load import Load
from kvserver.check.run import RESET, Run, Settings
from kvserver.check.target import Address, parseTarget

TIMEOUT = 3.0


class Socket:
    """
    What has two ends.
    """

    def getsockname(self) -> tuple[str, int]:
        """
        Ours.
        """
        return "192.0.2.9", 1

    getpeername = getsockname


class Network:
    """
    Makes transports.

    @ivar transports: All of them.

    @ivar room: How many bytes each takes.
    """

    def __init__(self) -> None:
        self.transports: list[Transport] = []
        self.room = 1 << 40

    def transport(self, reactor: object, owner: connections.CheckedConnection) -> "Transport":
        """
        One more.
        """
        self.transports.append(Transport(self, owner))
        return self.transports[-1]

    def hosts(self) -> list[str]:
        """
        Where they have connected to.
        """
        return [transport.host for transport in self.transports]


class Transport:
    """
    Takes bytes, and gives none back.
    """

    host = ""

    def __init__(self, network: Network, owner: connections.CheckedConnection) -> None:
        self.owner = owner
        self.socket = Socket()
        self._room = network.room

    def connect(self, family: int, address: tuple[str, int]) -> None:
        """
        Begin to connect.
        """
        self.host = address[0]

    def send(self, data: memoryview) -> int:
        """
        Take what there is room for.
        """
        taken = min(len(data), self._room)
        self._room -= taken
        return taken

    def askForTurn(self) -> None:
        """
        The kernel never says that there is room.
        """

    sendEnd = close = abort = askForTurn


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """
    What connections connect by.
    """
    network = Network()
    monkeypatch.setattr(connections, "Transport", network.transport)
    return network


def newRun(size: int = 64) -> tuple[Run, Any]:
    """
    A run, and its reactor.
    """
    clock = MemoryReactorClock()
    settings = Settings(
        parseTarget("tcp:a:1"), None, None, 2, None, (size, size), binary=False, timeout=TIMEOUT
    )
    run = Run(clock, clock.seconds, settings, at("old"), 1)
    run.start()
    return run, clock


def at(host: str) -> list[Address]:
    """
    What a name server says.
    """
    return [(socket.AF_INET, (host, 1))]


def elapse(clock: Clock, seconds: float) -> None:
    """
    Let time pass.
    """
    clock.pump([0.01] * round(seconds / 0.01))


Done = Callable[[list[Address] | str], None]


def test_resetAtOnce(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    One that is reset as soon as it is established is reset, not refused.
    """

    def getpeername(self: Socket) -> tuple[str, int]:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(Socket, "getpeername", getpeername)
    run, _ = newRun()
    connections.CheckedConnection(run).begin()
    network.transports[0].owner.connected()
    assert run.endings == {RESET: 1}
    assert run.whyNot == "reset"


def test_aSoakLooksTheNameUpAnew(network: Network) -> None:
    """
    Each time a soak reconnects it asks where the target is now, once for all that wait for it; if
    that is not known in half a second, or not at all, it goes where it was.
    """
    run, clock = newRun()
    asked: list[Done] = []
    load = Load(run, Plan(2, rate=10, duration=None, soak=True), asked.append)
    load.start()
    for transport in network.transports:
        transport.owner.connected()
    assert (network.hosts(), asked) == (["old", "old"], [])
    for transport in network.transports:
        transport.owner.ended()
    clock.advance(0)
    assert len(asked) == 1
    assert len(network.hosts()) == 2
    asked[0](at("new"))
    assert network.hosts()[2:] == ["new", "new"]
    one, two = network.transports[2:]
    one.owner.connected()
    one.owner.ended()
    clock.advance(0)
    asked[1]("no such host")
    assert network.hosts()[4:] == ["new"]
    network.transports[4].owner.connected()
    two.owner.connected()
    two.owner.ended()
    clock.advance(0)
    assert len(asked) == 3
    elapse(clock, 0.3)
    assert len(network.hosts()) == 5
    elapse(clock, 0.2)
    assert network.hosts()[5:] == ["new"]
    # What comes too late serves the next one.
    asked[2](at("newest"))
    assert len(network.hosts()) == 6
    network.transports[5].owner.connected()
    network.transports[5].owner.ended()
    clock.advance(0)
    elapse(clock, 0.6)
    assert network.hosts()[6:] == ["newest"]


def test_anEndWhileTheNameIsLookedUp(network: Network) -> None:
    """
    When a soak is interrupted then, it ends.
    """
    run, clock = newRun()
    asked: list[Done] = []
    load = Load(run, Plan(1, rate=10, duration=None, soak=True), asked.append)
    done = load.start()
    network.transports[0].owner.connected()
    network.transports[0].owner.ended()
    clock.advance(0)
    load.interrupt()
    elapse(clock, 4)
    assert done.called
    asked[0](at("new"))
    assert len(network.transports) == 1


@pytest.mark.parametrize("room", [0, 100_000, 3 << 20])
def test_aPathThatTakesNoMore(network: Network, room: int) -> None:
    """
    In the middle of a long line, when nothing is owed: that is a wait, too.
    """
    network.room = room
    run, clock = newRun(50_000_000)
    one = connections.CheckedConnection(run)
    one.begin()
    one.connected()
    one.sendLines(1)
    elapse(clock, TIMEOUT - 0.2)
    assert one.ending is None
    elapse(clock, 0.3)
    assert one.ending == "timeout"


def test_aSoakTriesTwiceASecond(network: Network) -> None:
    """
    Also when nothing answers, once it has been connected.
    """
    run, clock = newRun()
    load = Load(run, Plan(1, rate=10, duration=None, soak=True))
    load.start()
    network.transports[0].owner.connected()
    network.transports[0].owner.ended()
    elapse(clock, 10)
    assert 20 <= len(network.transports) - 1 <= 30
