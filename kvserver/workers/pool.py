"""
The workers together: they serve the connections that the master admits.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from kvserver.connections.certificates import Certificates
from kvserver.connections.poller import Poller
from kvserver.connections.record import CloseReason
from kvserver.connections.registry import Connections
from kvserver.interfaces import IWorkers
from kvserver.workers.channel import MAX_DESCRIPTORS
from kvserver.workers.ending import KILL_MARGIN, WorkersNotReady, endAll
from kvserver.workers.hangs import Hangs
from kvserver.workers.messages import fromCertificates
from kvserver.workers.process import WorkerProcess
from kvserver.workers.remote import RemoteConnection
from kvserver.workers.replacement import Replacement

_log = Logger(namespace="kvserver.worker")


@implementer(IWorkers)
class Pool(Service):
    """
    The workers, and the connections that wait for one.

    Nothing is handed over before all workers have been ready once: else the first one would get
    everybody.

    @ivar processes: The processes that have not ended: the current one of each worker, those that
        are to replace one, and those that have retired.

    @ivar current: The process that takes connections, by the number of the worker.

    @ivar restarts: How many processes have been started anew, by the number of the worker.

    @ivar ready: Fires when all workers have been ready once; fails with L{WorkersNotReady} when one
        has ended before that.
    """

    def __init__(
        self,
        reactor: Any,
        poller: Poller,
        count: int,
        served: str,
        connections: Connections,
        certificates: Certificates | None = None,
        replaceTimeout: float = 0,
        banner: str | None = None,
    ) -> None:
        """
        @param reactor: The reactor to run on.

        @param poller: Watches the channels.

        @param count: How many workers there are.

        @param served: The name of the protocol that they serve.

        @param connections: The registry of connections.

        @param certificates: What TLS shows; None: there is no TLS.

        @param replaceTimeout: How long a worker that was replaced waits for its last connections
            before it drains, in seconds; 0: for ever.

        @param banner: The line that each connection begins with. None: there is none.
        """
        self.reactor = reactor
        self._poller = poller
        self._served = served
        self.connections = connections
        self._certificates = certificates
        self._banner = banner
        self.replaceTimeout = replaceTimeout
        numbers = range(1, count + 1)
        self.processes: list[WorkerProcess] = []
        self.current: dict[int, WorkerProcess] = {}
        self.restarts = dict.fromkeys(numbers, -1)
        self.ready: Deferred[None] = Deferred()
        self._cpu = dict.fromkeys(numbers, 0.0)
        self.isComplete = False
        self._waiting: deque[RemoteConnection] = deque()
        self._isScheduled = False
        self._isAborted = self._isEnding = False
        # When the drain is over. None: there is none.
        self._deadline: float | None = None
        # What is called when the current process of a worker has ended, by the worker's number.
        self._whenGone: dict[int, Callable[[WorkerProcess, str], None]] = {}
        self._replacement = Replacement(self)
        self._hangs = Hangs(self)

    def startService(self) -> None:
        """
        Look for workers that hang.
        """
        super().startService()
        self._hangs.start()

    def stopService(self) -> Deferred[None]:
        """
        Look no more, and end the processes that are left: those that were replaced.
        """
        super().stopService()
        self._hangs.stop()
        return self.end()

    def end(self) -> Deferred[None]:
        """
        End all processes. Their connections have ended before.

        @return: Fires when they have ended.
        """
        self._isEnding = True
        return Deferred.fromCoroutine(endAll(self.reactor, list(self.processes)))

    def whenRunning(self, call: Callable[[], None]) -> None:
        """
        Call C{call} as soon as the reactor runs.
        """
        self.reactor.callWhenRunning(call)

    def isReady(self) -> bool:
        """
        Is there a worker that takes connections?
        """
        return self.isComplete and any(one.isServing for one in self.current.values())

    def cpu(self) -> dict[int, float]:
        """
        Return the CPU time of each worker, in seconds, that of earlier processes included.
        """
        used = dict(self._cpu)
        for process in self.processes:
            used[process.number] += process.cpu
        return used

    def loads(self) -> dict[int, int]:
        """
        Return how many connections each worker has, those of retired processes included.
        """
        loads = dict.fromkeys(self._cpu, 0)
        for process in self.processes:
            loads[process.number] += len(process.connections)
        return loads

    def give(self, connection: RemoteConnection) -> None:
        """
        Hand a connection over, together with others that come in the same turn.
        """
        self.connections.handedOver(connection)
        self._wait([connection])

    def _wait(self, connections: Sequence[RemoteConnection]) -> None:
        if self._isAborted:
            for connection in connections:
                connection.record.closeWith(CloseReason.ABORTED)
                connection.abortConnection()
        self._waiting.extend(() if self._isAborted else connections)
        self.schedule()

    def schedule(self) -> None:
        """
        Hand over what waits, at the end of this turn.
        """
        if self._waiting and not self._isScheduled:
            self._isScheduled = True
            self._poller.callSoon(self._flush)

    def _flush(self) -> None:
        """
        Give each connection to the worker that has the fewest.
        """
        self._isScheduled = False
        takers = [one for one in self.current.values() if self.isComplete and one.mayTake]
        if not takers:
            # An acknowledgement, a heartbeat or a new process brings us here again.
            return
        loads = [len(process.connections) for process in takers]
        batches: list[list[RemoteConnection]] = [[] for _ in takers]
        while self._waiting:
            least = loads.index(min(loads))
            if len(batches[least]) == MAX_DESCRIPTORS:
                self.schedule()
                break
            loads[least] += 1
            batches[least].append(self._waiting.popleft())
        for process, batch in zip(takers, batches, strict=True):
            if batch:
                process.take(batch)

    def start(self, number: int, gone: Callable[[WorkerProcess, str], None]) -> None:
        """
        Start the process of a worker.

        @param gone: Called once, when a process of this worker has ended that was the current one,
            with the reason.
        """
        self.restarts[number] += 1
        self._whenGone[number] = gone
        self.current[number] = self.spawn(number)

    def spawn(self, number: int) -> WorkerProcess:
        process = WorkerProcess(
            self.reactor,
            self._poller,
            number,
            self.connections.sourceLog,
            self._onReady,
            self.schedule,
            self._wait,
            lambda reason: self._onGone(process, reason),
        )
        process.start(self._settings(number))
        self.processes.append(process)
        if self._deadline is not None:
            process.send("drain", max(0.0, self._deadline - self.reactor.seconds()))
        return process

    def _settings(self, number: int) -> dict[str, Any]:
        certificates = self._certificates
        return {
            "served": self._served,
            "number": number,
            "banner": self._banner,
            "limits": asdict(self.connections.limits),
            "certificates": certificates and fromCertificates(certificates),
        }

    def _onReady(self, process: WorkerProcess) -> None:
        if not self._replacement.isReady(process):
            if self.isComplete:
                _log.info(
                    "Worker {number} is back: process {pid}", number=process.number, pid=process.pid
                )
            elif all(one.isReady for one in self.current.values()):
                self.isComplete = True
                self.ready.callback(None)
        self.schedule()

    def _onGone(self, process: WorkerProcess, reason: str) -> None:
        self.processes.remove(process)
        self._cpu[process.number] += process.cpu
        if self._replacement.hasEnded(process, reason):
            return
        if self.current.get(process.number) is process:
            del self.current[process.number]
            if self._deadline is not None:
                self._replaceInDrain(process, reason)
            elif self.isComplete or not self.running or self._isEnding:
                self._whenGone[process.number](process, reason)
            elif not self.ready.called:
                text = f"Worker {process.number} could not start: {reason}"
                self.ready.errback(WorkersNotReady(text))

    def _replaceInDrain(self, process: WorkerProcess, reason: str) -> None:
        """
        The supervisor restarts nothing while all stops, but somebody must serve the clients that no
        worker has taken.
        """
        if self.current or self._isEnding or self._isAborted or not process.hasBeenReady:
            return
        text = "Worker {number} died in the drain, and is restarted: {reason}"
        _log.warn(text, number=process.number, reason=reason)
        try:
            self.current[process.number] = self.spawn(process.number)
        except OSError as error:
            text = "Worker {number} is not restarted: {reason}"
            _log.error(text, number=process.number, reason=str(error))

    def replace(self) -> None:
        """
        Replace the processes one after the other (L{Replacement}).
        """
        self._replacement.begin()

    def reload(self) -> None:
        """
        Send the certificates that the master has loaded.
        """
        if self._certificates is not None:
            files = fromCertificates(self._certificates)
            for process in self.processes:
                process.send("certificates", files)

    def drain(self, seconds: float) -> None:
        """
        Let all workers drain, also those that are started meanwhile.
        """
        self._deadline = self.reactor.seconds() + seconds
        for process in self.processes:
            process.send("drain", seconds)

    def abort(self) -> None:
        """
        Reset all connections. A worker that does not do that in time is killed.
        """
        self._isAborted = True
        for process in self.processes:
            process.send("abort")
        self.reactor.callLater(KILL_MARGIN, self._killBusy)
        waiting, self._waiting = list(self._waiting), deque()
        self._wait(waiting)

    def receive(self) -> None:
        """
        Receive what the workers have said so far: which connections have ended.
        """
        for process in list(self.processes):
            process.receive()

    def _killBusy(self) -> None:
        for process in list(self.processes):
            if process.connections:
                process.kill()
