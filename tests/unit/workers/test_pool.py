"""
The hand-over to workers, without processes.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs

from kvserver.connections.limits import Limits
from kvserver.connections.poller import Poller
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.registry import Connections
from kvserver.workers import pool as pools
from kvserver.workers.channel import MAX_DESCRIPTORS
from kvserver.workers.ending import WorkersNotReady
from kvserver.workers.hangs import HANG_TIMEOUT
from kvserver.workers.pool import Pool
from kvserver.workers.remote import RemoteConnection
from kvserver.workers.worker import Worker, WorkerHandover
from tests.support.memory import CLIENT_ADDRESS


class FakeProcess:
    """
    A worker process that only says what it is asked for.

    @ivar asked: What it was asked for.
    """

    pid = 1
    cpu = 0.0

    def __init__(
        self,
        reactor: MemoryReactorClock,
        poller: Poller,
        number: int,
        sourceLog: object,
        ready: Callable[[Any], None],
        acknowledged: Callable[[], None],
        lost: Callable[[list[RemoteConnection]], None],
        ended: Callable[[str], None],
    ) -> None:
        self.number = number
        self._ready = ready
        self._lost = lost
        self._ended = ended
        self._acknowledged = acknowledged
        self.connections: dict[int, RemoteConnection] = {}
        self.unacknowledged: list[int] = []
        self.batches: list[int] = []
        self.asked: list[str] = []
        self.isReady = self.hasBeenReady = self.isRetired = self.isGone = self.isKilled = False
        self.isPrompt = True
        self.lastBeat = reactor.seconds()

    def start(self, settings: dict[str, Any]) -> None:
        """
        Start.
        """
        self.settings = settings

    def becomeReady(self) -> None:
        """
        Say that it is ready.
        """
        self.isReady = self.hasBeenReady = True
        self._ready(self)

    @property
    def isServing(self) -> bool:
        """
        Is it ready?
        """
        return self.isReady and not self.isRetired

    @property
    def mayTake(self) -> bool:
        """
        May it get a connection?
        """
        return self.isServing and self.isPrompt

    def take(self, batch: Sequence[RemoteConnection]) -> None:
        """
        Take these.
        """
        self.batches.append(len(batch))
        for connection in batch:
            self.connections[connection.record.id] = connection
            self.unacknowledged.append(connection.record.id)

    def acknowledge(self) -> None:
        """
        Acknowledge all.
        """
        self.unacknowledged.clear()
        self._acknowledged()

    def send(self, *message: Any) -> None:
        """
        Be told something.
        """
        self.asked.append(message[0])

    def retire(self) -> None:
        """
        Take no more.
        """
        self.isRetired = True

    def killHung(self) -> None:
        """
        Be found to hang.
        """
        self.isKilled = True
        self.asked.append("killHung")

    def kill(self) -> None:
        """
        Be killed.
        """
        self.die("killed")

    def close(self) -> None:
        """
        End, as nothing is left.
        """
        self.die("closed")

    def receive(self) -> None:
        """
        Say what is to be said.
        """

    def whenEnded(self) -> Deferred[None]:
        """
        It has ended.
        """
        ended: Deferred[None] = Deferred()
        ended.callback(None)
        return ended

    def die(self, reason: str) -> None:
        """
        End.
        """
        if not self.isGone:
            self.isGone = True
            self.loseChannel()
            self._ended(reason)

    def loseChannel(self) -> None:
        """
        Give back what is not acknowledged, and end the rest.
        """
        self.isReady = False
        untouched = [self.connections.pop(number) for number in self.unacknowledged]
        self.unacknowledged.clear()
        for connection in self.connections.values():
            connection.endWith(CloseReason.WORKER_DIED)
        self.connections.clear()
        self._lost(untouched)


class Master:
    """
    A pool of some workers, and connections that arrive.

    @ivar ended: The records of the connections that have ended.

    @ivar died: The reasons with which workers died.
    """

    def __init__(self, count: int, replaceTimeout: int = 0) -> None:
        self.clock = MemoryReactorClock()
        self.ended: list[ConnectionRecord] = []
        self.connections = Connections(self.clock, Limits(drainTimeout=5), self.ended.append)
        self.poller = Poller(self.clock)
        self.pool = Pool(
            *(self.clock, self.poller, count, "x.Y", self.connections, None, replaceTimeout)
        )
        self.connections.workers = self.pool
        self.died: list[Exception] = []
        self.workers = [
            Worker(self.pool, number, self.died.append) for number in range(1, count + 1)
        ]
        self._peers: list[socket.socket] = []
        for service in self.pool, *self.workers:
            service.startService()
        self.run()

    def run(self) -> None:
        """
        The reactor runs.
        """
        hooks, self.clock.whenRunningHooks = self.clock.whenRunningHooks, []
        for call, args, kwargs in hooks:
            call(*args, **kwargs)

    @property
    def processes(self) -> list[Any]:
        """
        All processes.
        """
        return list(self.pool.processes)

    def ready(self) -> "Master":
        """
        Let all processes be ready.
        """
        for process in self.processes:
            if not process.isReady:
                process.becomeReady()
        return self

    def arrive(self, count: int) -> list[RemoteConnection]:
        """
        Connections arrive, and are handed over at the end of the turn.
        """
        arrived = []
        for _ in range(count):
            accepted, peer = socket.socketpair()
            self._peers.append(peer)
            connections = self.connections
            connection = RemoteConnection(
                accepted,
                ConnectionRecord("tcp:0", CLIENT_ADDRESS),
                self.poller,
                connections.ended,
                connections.sourceLog,
            )
            connections.accepted(connection)
            WorkerHandover(self.pool, False).handOver(connection)
            arrived.append(connection)
        self.clock.advance(0)
        return arrived

    def loads(self) -> list[int]:
        """
        How many connections each process has.
        """
        return [len(process.connections) for process in self.processes]

    def close(self) -> None:
        """
        End all.
        """
        for peer in self._peers:
            peer.close()
        for connection in self.connections:
            connection.socket.close()


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Master]]:
    """
    Makes a master with so many workers.
    """
    masters: list[Master] = []
    monkeypatch.setattr(pools, "WorkerProcess", FakeProcess)

    def make(count: int, **options: int) -> Master:
        masters.append(Master(count, **options))
        return masters[-1]

    yield make
    for one in masters:
        one.close()


def test_waitsForAll(master: Callable[..., Master]) -> None:
    """
    Nothing is handed over before all workers are ready, and then all of it, to all of them alike.
    """
    two = master(2)
    first, second = two.processes
    two.arrive(10)
    first.becomeReady()
    two.clock.advance(0)
    assert two.loads() == [0, 0]
    assert not two.pool.ready.called
    assert not two.pool.isReady()
    second.becomeReady()
    two.clock.advance(0)
    assert two.pool.ready.called
    assert two.pool.isReady()
    assert two.loads() == [5, 5]


@pytest.mark.parametrize("burst", [1, 7, 200])
def test_fewestFirst(master: Callable[..., Master], burst: int) -> None:
    """
    Connections go to the worker that has the fewest, in a trickle as in a burst.
    """
    four = master(4).ready()
    for _ in range(200 // burst):
        four.arrive(burst)
    loads = four.loads()
    assert max(loads) - min(loads) <= 1
    assert sum(loads) == 200 // burst * burst
    busy = four.processes[0]
    for connection in list(busy.connections.values())[:10]:
        del busy.connections[connection.record.id]
    four.arrive(10)
    assert max(four.loads()) - min(four.loads()) <= 1


def test_bigBurst(master: Callable[..., Master]) -> None:
    """
    One message has no more sockets than the kernel takes.
    """
    one = master(1).ready()
    one.arrive(MAX_DESCRIPTORS + 1)
    one.clock.advance(0)
    assert one.processes[0].batches == [MAX_DESCRIPTORS, 1]


def test_slowToAcknowledge(master: Callable[..., Master]) -> None:
    """
    A worker that owes an acknowledgement gets no more; if all do, connections wait.
    """
    two = master(2).ready()
    first, second = two.processes
    first.isPrompt = False
    two.arrive(4)
    assert two.loads() == [0, 4]
    second.isPrompt = False
    two.arrive(2)
    assert two.loads() == [0, 4]
    first.isPrompt = True
    first.acknowledge()
    two.clock.advance(0)
    assert two.loads() == [2, 4]


def test_diesWithSome(master: Callable[..., Master]) -> None:
    """
    What a worker has taken along is recorded; what it had not acknowledged goes to another one.
    """
    two = master(2).ready()
    first, _ = two.processes
    two.arrive(4)
    first.acknowledge()
    two.arrive(2)
    assert two.loads() == [3, 3]
    first.die("killed")
    two.clock.advance(0)
    assert [record.reason for record in two.ended] == [CloseReason.WORKER_DIED] * 2
    assert two.loads() == [4]
    assert len(two.connections) == 4
    assert [str(reason) for reason in two.died] == ["process 1: killed"]


def test_losesItsChannel(master: Callable[..., Master]) -> None:
    """
    What a worker had is counted out as soon as its channel ends, before its process has.
    """
    two = master(2).ready()
    first, _ = two.processes
    two.arrive(4)
    first.acknowledge()
    two.arrive(2)
    first.loseChannel()
    two.clock.advance(0)
    assert [record.reason for record in two.ended] == [CloseReason.WORKER_DIED] * 2
    assert two.loads() == [0, 4]
    assert two.died == []
    first.die("killed")
    assert len(two.ended) == 2
    assert [str(reason) for reason in two.died] == ["process 1: killed"]


def test_diesAlone(master: Callable[..., Master]) -> None:
    """
    When the only worker has died, connections wait for its successor.
    """
    one = master(1).ready()
    one.arrive(1)
    one.processes[0].die("killed")
    assert not one.pool.isReady()
    one.arrive(1)
    one.workers[0].startService()
    one.run()
    one.ready().clock.advance(0)
    assert one.loads() == [2]
    assert one.pool.restarts == {1: 1}


def test_diesBeforeItIsReady(master: Callable[..., Master]) -> None:
    """
    If one ends before all have been ready, the start has failed, once, and nothing is restarted.
    """
    two = master(2)
    failures: list[object] = []
    two.pool.ready.addErrback(lambda failure: failures.append(failure.value))
    for process in two.processes:
        process.die("no such protocol")
    (failure,) = failures
    assert isinstance(failure, WorkersNotReady)
    assert str(failure) == "Worker 1 could not start: no such protocol"
    assert two.died == []


def test_stopsBeforeItIsReady(master: Callable[..., Master]) -> None:
    """
    A worker that is stopped before it is ready could start: it was not to.
    """
    two = master(2)
    failures: list[object] = []
    two.pool.ready.addErrback(failures.append)
    two.workers[1].stopService()
    assert two.processes == []
    assert failures == []


def test_hangs(master: Callable[..., Master]) -> None:
    """
    A worker that is not heard of is killed; but not if it was the master that was late.
    """
    two = master(2).ready()
    first, second = two.processes
    for _ in range(int(HANG_TIMEOUT) * 2 - 2):
        two.clock.advance(0.5)
        second.lastBeat = two.clock.seconds()
    assert not first.isKilled
    # The master is late.
    two.clock.advance(5)
    assert not first.isKilled
    for _ in range(int(HANG_TIMEOUT) * 2 + 2):
        two.clock.advance(0.5)
        second.lastBeat = two.clock.seconds()
    assert first.isKilled
    assert not second.isKilled
    assert first.asked == ["killHung"]


def test_replace(master: Callable[..., Master]) -> None:
    """
    One after the other: the new process is ready before the old one gets no more.
    """
    two = master(2, replaceTimeout=60).ready()
    old = two.processes
    two.arrive(4)
    two.pool.replace()
    for number in 0, 1:
        assert len(two.processes) == 3 + number
        assert not old[number].isRetired
        two.processes[-1].becomeReady()
        assert old[number].isRetired
    with capturedLogs() as logs:
        two.pool.replace()
    assert ["ignored" in event["log_format"] for event in logs] == [True]
    two.arrive(2)
    assert two.loads() == [2, 2, 1, 1]
    two.clock.advance(60)
    assert [process.asked for process in old] == [["drain"]] * 2
    for process in old:
        with capturedLogs() as logs:
            process.die("ended")
    assert [event["log_format"] for event in logs] == ["All workers that were replaced have ended"]
    assert two.died == []
    two.pool.replace()
    assert len(two.processes) == 3


def test_replacedAtOnce(master: Callable[..., Master]) -> None:
    """
    That all have ended is said once, also if each ends as soon as it is replaced.
    """
    two = master(2).ready()
    old = two.processes
    two.pool.replace()
    with capturedLogs() as logs:
        for process in old:
            two.processes[-1].becomeReady()
            process.die("ended")
    said = [event["log_format"] for event in logs]
    assert said.count("All workers that were replaced have ended") == 1


def test_newProcessDies(master: Callable[..., Master]) -> None:
    """
    When the process that has replaced another one dies, the old one keeps its connections.
    """
    one = master(1).ready()
    (old,) = one.processes
    one.arrive(2)
    old.acknowledge()
    one.pool.replace()
    one.processes[-1].becomeReady()
    one.processes[-1].die("killed")
    # As the supervisor does.
    one.workers[0].stopService()
    one.workers[0].startService()
    one.run()
    one.clock.advance(10)
    assert not old.isGone
    assert len(old.connections) == 2
    assert one.ended == []
    done: list[object] = []
    one.pool.stopService().addCallback(done.append)
    assert done == [None]
    assert old.isGone


def test_replaceFails(master: Callable[..., Master]) -> None:
    """
    If the new process does not come up, the old one stays.
    """
    one = master(1).ready()
    (old,) = one.processes
    with capturedLogs() as logs:
        one.pool.replace()
        one.processes[-1].die("no such protocol")
    assert logs[-1]["log_format"] == "Worker {number} is not replaced: {reason}"
    assert one.processes == [old]
    one.arrive(1)
    assert one.loads() == [1]
    assert one.died == []


def test_drain(master: Callable[..., Master]) -> None:
    """
    A drain is told to all workers; when it is aborted, so is that, and what is left then is killed.
    """
    two = master(2).ready()
    two.arrive(2)
    done: list[object] = []
    two.connections.startService()
    two.connections.stopService().addCallback(done.append)
    assert [process.asked for process in two.processes] == [["drain"]] * 2
    two.connections.abortDrain()
    assert [process.asked for process in two.processes] == [["drain", "abort"]] * 2
    for process in two.processes:
        process.acknowledge()
    two.clock.advance(10)
    assert done == [None]
    assert [record.reason for record in two.ended] == [CloseReason.WORKER_DIED] * 2


def test_replacedInDrain(master: Callable[..., Master]) -> None:
    """
    A process that is started when the drain begins is told of it; no further one is started.
    """
    two = master(2).ready()
    two.arrive(2)
    two.pool.replace()
    two.connections.startService()
    two.connections.stopService()
    successor = two.processes[-1]
    assert successor.asked == ["drain"]
    successor.becomeReady()
    assert len(two.processes) == 3


def test_diesInDrain(master: Callable[..., Master]) -> None:
    """
    When the last worker dies in the drain there is a new one for those whom none has taken, and it
    drains; but not again and again if it can't get ready.
    """
    two = master(2).ready()
    first, second = two.processes
    two.arrive(4)
    done: list[object] = []
    two.connections.startService()
    two.connections.stopService().addCallback(done.append)
    first.die("killed")
    two.clock.advance(0)
    assert two.loads() == [4]
    with capturedLogs() as logs:
        second.die("killed")
    assert logs[0]["log_format"] == "Worker {number} died in the drain, and is restarted: {reason}"
    (third,) = two.processes
    assert third.asked == ["drain"]
    third.becomeReady()
    two.clock.advance(0)
    assert two.loads() == [4]
    assert done == two.ended == []
    third.hasBeenReady = False
    third.die("it is broken")
    assert two.processes == []


def test_abortedWhileStopped(master: Callable[..., Master]) -> None:
    """
    What a worker has not taken when it is killed in an aborted drain does not wait for another one.
    """
    one = master(1).ready()
    one.arrive(1)
    done: list[object] = []
    one.connections.startService()
    one.connections.stopService().addCallback(done.append)
    one.connections.abortDrain()
    one.clock.advance(10)
    assert done == [None]
    assert [record.reason for record in one.ended] == [CloseReason.ABORTED]


def test_stop(master: Callable[..., Master]) -> None:
    """
    A worker that is stopped ends its process, and does not die of it.
    """
    one = master(1).ready()
    one.workers[0].stopService()
    assert one.processes == []
    assert one.died == []
