"""
One worker process, as the master sees it.
"""

import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from kvserver.connections.record import CloseReason
from kvserver.connections.throttle import SourceLog
from kvserver.workers.channel import Channel
from kvserver.workers.ending import howItEnded
from kvserver.workers.messages import toAddress
from kvserver.workers.printed import Printed
from kvserver.workers.remote import RemoteConnection
from kvserver.workers.spawn import spawn

_log = Logger(namespace="kvserver.worker")

ACKNOWLEDGE_TIMEOUT = 0.1
"""
How long a worker may owe an acknowledgement before it gets no more connections, in seconds.
"""

LATE_HEARTBEAT = 2.5
"""
How long a worker may be without a heartbeat before it gets no more connections, in seconds.
"""

DUMP_TIME = 1.0
"""
How long a worker that hangs may take to say where, before it is killed, in seconds.
"""


class WorkerProcess(ProcessProtocol):
    """
    A worker process.

    @ivar number: The number of the worker, from 1. A worker that is restarted or replaced keeps it.

    @ivar connections: What it serves, by their ids; also what it has not acknowledged yet.

    @ivar isReady: Does it take connections?

    @ivar hasBeenReady: Has it ever taken connections?

    @ivar isKilled: Was it found to hang?

    @ivar isRetired: Is it to end when its last connection has?

    @ivar lastBeat: When it was heard of last, by the reactor's clock.

    @ivar cpu: The CPU time that it has used, in seconds.
    """

    pid = 0
    isReady = False
    hasBeenReady = False
    isKilled = False
    isRetired = False
    isGone = False
    cpu = 0.0

    def __init__(
        self,
        reactor: Any,
        poller: Any,
        number: int,
        sourceLog: SourceLog,
        ready: Callable[["WorkerProcess"], None],
        acknowledged: Callable[[], None],
        lost: Callable[[list[RemoteConnection]], None],
        ended: Callable[[str], None],
    ) -> None:
        """
        @param reactor: Provides C{IReactorProcess} and C{IReactorTime}.

        @param poller: Watches the channel.

        @param ready: Called once, when it can take connections.

        @param acknowledged: Called when it has acknowledged connections.

        @param lost: Called when the process can serve no more, with the connections that it had not
            acknowledged: they can be handed over again.

        @param ended: Called once, when the process has ended, with the reason.
        """
        self._reactor = reactor
        self._poller = poller
        self.number = number
        self._sourceLog = sourceLog
        self._ready = ready
        self._acknowledged = acknowledged
        self._lost = lost
        self._ended = ended
        self._whenEnded: list[Deferred[None]] = []
        self.connections: dict[int, RemoteConnection] = {}
        self.unacknowledged: dict[int, float] = {}
        self.lastBeat = reactor.seconds()
        self._failure: str | None = None
        self._printed = Printed(number)

    def start(self, settings: dict[str, Any]) -> None:
        """
        Start the process.

        @param settings: What it needs to get ready.

        @raise OSError: It can't be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            self._channel = Channel(self._poller, ours, self._receive, self._channelIsClosed)
            try:
                spawn(self._reactor, self, theirs)
            except BaseException:
                self._channel.close()
                raise
        self._channel.send(["begin", settings])

    @property
    def isServing(self) -> bool:
        """
        Is it ready, and heard of?
        """
        isLate = self._reactor.seconds() - self.lastBeat >= LATE_HEARTBEAT
        return self.isReady and not (self.isRetired or self.isGone or isLate)

    @property
    def mayTake(self) -> bool:
        """
        May it get a connection now?
        """
        now = self._reactor.seconds()
        oldest = next(iter(self.unacknowledged.values()), now)
        return bool(self.isServing and now - oldest < ACKNOWLEDGE_TIMEOUT)

    def take(self, batch: Sequence[RemoteConnection]) -> None:
        """
        Hand connections over.
        """
        now = self._reactor.seconds()
        for connection in batch:
            number = connection.record.id
            connection.record.worker = self.number
            self.connections[number] = connection
            self.unacknowledged[number] = now
        self._channel.send(
            ["take", [connection.description() for connection in batch]],
            [connection.fileno() for connection in batch],
        )

    def send(self, *message: Any) -> None:
        """
        Send a message without sockets.
        """
        self._channel.send(list(message))

    def retire(self) -> None:
        """
        Take no more, and end when the last connection has.
        """
        self.isRetired = True
        self._closeIfEmpty()

    def close(self) -> None:
        """
        The master is about to go: the process ends when its connections have.
        """
        self._channel.close()

    def whenEnded(self) -> Deferred[None]:
        """
        Return what fires when the process has ended.
        """
        waiting: Deferred[None] = Deferred()
        if self.isGone:
            waiting.callback(None)
        else:
            self._whenEnded.append(waiting)
        return waiting

    def kill(self, how: int = signal.SIGKILL) -> None:
        """
        Send a signal, unless the process has ended.
        """
        if self.transport is not None and not self.isGone:
            with suppress(Exception):
                self.transport.signalProcess(how)

    def killHung(self) -> None:
        """
        Make the process say where it hangs, and kill it. A process that is stopped gets SIGABRT
        only when it goes on.
        """
        _log.error("Worker {number} hangs: it is killed", number=self.number)
        self.isReady = False
        self.isKilled = True
        self.kill(signal.SIGABRT)
        self.kill(signal.SIGCONT)
        self._reactor.callLater(DUMP_TIME, self.kill)

    def _receive(self, message: list[Any], descriptors: list[int]) -> None:
        kind, *rest = message
        getattr(self, f"_on_{kind}")(*rest)

    def _on_ready(self) -> None:
        self.lastBeat = self._reactor.seconds()
        self.isReady = self.hasBeenReady = True
        self._ready(self)

    def _on_failed(self, reason: str) -> None:
        self._failure = reason
        self.kill()

    def _on_took(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.unacknowledged[number]
            self.connections[number].release()
        self._acknowledged()

    def _on_missing(self, numbers: list[int]) -> None:
        """
        The kernel could not give the worker these sockets: it has no file descriptor for them.
        """
        _log.error("Worker {worker} has too few file descriptors", worker=self.number)
        for number in numbers:
            del self.unacknowledged[number]
            self.connections.pop(number).endWith(CloseReason.ERROR)
        self._acknowledged()

    def _on_ended(self, ended: list[list[Any]]) -> None:
        now = self._reactor.seconds()
        for written in ended:
            self.connections.pop(written[0][0]).end(written, now)
        self._closeIfEmpty()

    def _on_beat(self, cpu: float, living: list[list[Any]]) -> None:
        self.lastBeat = self._reactor.seconds()
        self.cpu = cpu
        for progress in living:
            self.connections[progress[0]].update(progress)

    def _on_warn(self, address: list[Any], text: str, fields: dict[str, Any]) -> None:
        client = toAddress(address)
        assert client is not None
        self._sourceLog.warn(client, text, **fields)

    def _on_log(self, level: str, namespace: str | None, text: str) -> None:
        Logger(namespace=namespace or "kvserver.worker").emit(
            LogLevel.lookupByName(level), "Worker {worker}: {text}", worker=self.number, text=text
        )

    def _closeIfEmpty(self) -> None:
        if self.isRetired and not self.connections:
            self._channel.close()

    def connectionMade(self) -> None:
        """
        The process has started.
        """
        self.pid = self.transport.pid or 0  # type: ignore[union-attr]

    def outReceived(self, data: bytes) -> None:
        """
        Log what the process prints, to standard output or standard error.
        """
        self._printed.add(data)

    errReceived = outReceived

    def _channelIsClosed(self) -> None:
        """
        The process ends, and its clients are counted out before they see the end (C{highest} in
        C{child.py}).
        """
        self.isReady = False
        self._lose()

    def processExited(self, reason: Failure) -> None:
        """
        The process has ended. What it has started may still hold its pipes: don't wait for that.
        """
        self._reactor.callLater(DUMP_TIME, self._closePipes)

    def _closePipes(self) -> None:
        if not self.isGone and self.transport is not None:
            self.transport.loseConnection()

    def receive(self) -> None:
        """
        Receive what the worker has said so far.
        """
        self._channel.receiveAll()

    def processEnded(self, reason: Failure) -> None:
        """
        The process has ended. What it has sent before that still counts.
        """
        self._channel.receiveAll()
        self._channel.close()
        self._printed.end()
        self.isGone = True
        self.isReady = False
        self._lose()
        self._ended(self._failure or howItEnded(reason))
        for waiting in self._whenEnded:
            waiting.callback(None)

    def _lose(self) -> None:
        """
        End what the process has taken along, and hand back what it had not acknowledged.
        """
        untouched = [self.connections.pop(number) for number in self.unacknowledged]
        self.unacknowledged.clear()
        for connection in list(self.connections.values()):
            connection.endWith(CloseReason.WORKER_DIED)
        self.connections.clear()
        self._lost(untouched)
