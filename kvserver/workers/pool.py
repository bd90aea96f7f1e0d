"""
The workers together: they serve the connections that the master admits.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from kvserver.connections.certificates import Certificates
from kvserver.connections.record import CloseReason
from kvserver.connections.registry import Connections
from kvserver.interfaces import IWorkers
from kvserver.workers.channel import MAX_DESCRIPTORS
from kvserver.workers.messages import fromCertificates
from kvserver.workers.process import WorkerProcess
from kvserver.workers.remote import RemoteConnection

_log = Logger(namespace="kvserver.worker")

HANG_TIMEOUT = 10.0
"""
A worker that has sent no heartbeat for this long hangs, in seconds.
"""

START_TIMEOUT = 30.0
"""
How long a worker may take to get ready, in seconds.
"""

CHECK_INTERVAL = 0.5
"""
How often the master looks whether a worker hangs, in seconds.
"""

KILL_MARGIN = 2.0
"""
How long a worker may take to reset its connections, or to end, before it is killed, in seconds.
"""


class WorkersNotReady(Exception):
    """
    A worker has ended before it was ready. The message says why.
    """


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
        count: int,
        served: str,
        connections: Connections,
        certificates: Certificates | None = None,
        replaceTimeout: int = 0,
    ) -> None:
        """
        @param reactor: The reactor to run on.

        @param count: How many workers there are.

        @param served: The name of the protocol that they serve.

        @param connections: The registry of connections.

        @param certificates: What TLS shows; None: there is no TLS.

        @param replaceTimeout: How long a worker that was replaced waits for its last connections
            before it drains, in seconds; 0: for ever.
        """
        self._reactor = reactor
        self._served = served
        self._connections = connections
        self._certificates = certificates
        self._replaceTimeout = replaceTimeout
        numbers = range(1, count + 1)
        self.processes: list[WorkerProcess] = []
        self.current: dict[int, WorkerProcess] = {}
        self.restarts = dict.fromkeys(numbers, -1)
        self.ready: Deferred[None] = Deferred()
        self._cpu = dict.fromkeys(numbers, 0.0)
        self._isComplete = False
        self._waiting: deque[RemoteConnection] = deque()
        self._isScheduled = False
        # The workers that are still to be replaced, and the process that is to replace the first.
        self._toReplace: deque[int] = deque()
        self._successor: WorkerProcess | None = None
        self._checking = LoopingCall(self._check)
        self._checking.clock = reactor
        self._checkedAt = self._onTimeSince = reactor.seconds()

    def startService(self) -> None:
        """
        Look for workers that hang.
        """
        super().startService()
        self._checking.start(CHECK_INTERVAL)

    def stopService(self) -> None:
        """
        Look no more.
        """
        super().stopService()
        self._checking.stop()

    def isReady(self) -> bool:
        """
        Is there a worker that takes connections?
        """
        return self._isComplete and any(one.isReady for one in self.current.values())

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

    # The hand-over.

    def give(self, connection: RemoteConnection) -> None:
        """
        Hand a connection over, together with others that come in the same turn.
        """
        self._connections.handedOver(connection)
        self._waiting.append(connection)
        self.schedule()

    def schedule(self) -> None:
        """
        Hand over what waits, at the end of this turn.
        """
        if self._waiting and not self._isScheduled:
            self._isScheduled = True
            self._reactor.callLater(0, self._flush)

    def _flush(self) -> None:
        """
        Give each connection to the worker that has the fewest.
        """
        self._isScheduled = False
        takers = [one for one in self.current.values() if self._isComplete and one.mayTake]
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

    # The processes.

    def start(self, number: int, gone: Callable[[WorkerProcess, str], None]) -> None:
        """
        Start the process of a worker.

        @param gone: Called once, when a process of this worker has ended that was the current one,
            with the reason.
        """
        self.restarts[number] += 1
        self.current[number] = self._start(number, gone)

    def _start(self, number: int, gone: Callable[[WorkerProcess, str], None]) -> WorkerProcess:
        process = WorkerProcess(
            self._reactor,
            number,
            self._connections.sourceLog,
            self._onReady,
            self.schedule,
            lambda reason: self._onGone(process, reason, gone),
        )
        process.gone = gone
        self.processes.append(process)
        process.start(self._settings())
        return process

    def _settings(self) -> dict[str, Any]:
        certificates = self._certificates
        return {
            "served": self._served,
            "limits": asdict(self._connections.limits),
            "certificates": certificates and fromCertificates(certificates),
        }

    def _onReady(self, process: WorkerProcess) -> None:
        if process is self._successor:
            self._successor = None
            self._swap(process)
            self._replaceNext()
        elif not self._isComplete and all(one.isReady for one in self.current.values()):
            self._isComplete = True
            self.ready.callback(None)
        self.schedule()

    def _onGone(
        self, process: WorkerProcess, reason: str, gone: Callable[[WorkerProcess, str], None]
    ) -> None:
        self.processes.remove(process)
        self._cpu[process.number] += process.cpu
        self._waiting.extendleft(reversed(process.lose()))
        self.schedule()
        if process is self._successor:
            self._successor = None
            self._toReplace.clear()
            _log.error(
                "Worker {number} is not replaced: {reason}", number=process.number, reason=reason
            )
        elif self.current.get(process.number) is process:
            del self.current[process.number]
            if self._isComplete or not self.running:
                gone(process, reason)
            elif not self.ready.called:
                text = f"Worker {process.number} could not start: {reason}"
                self.ready.errback(WorkersNotReady(text))

    def _check(self) -> None:
        """
        Kill the workers that hang. While the master itself was late, it has not heard them.
        """
        now = self._reactor.seconds()
        if now - self._checkedAt > 2 * CHECK_INTERVAL:
            self._onTimeSince = now
        self._checkedAt = now
        for process in self.processes:
            timeout = HANG_TIMEOUT if process.hasBeenReady else START_TIMEOUT
            if now - max(process.lastBeat, self._onTimeSince) > timeout and not process.isKilled:
                process.killHung()
        self.schedule()

    # All together.

    def replace(self) -> None:
        """
        Replace the processes one after the other. The new one is ready before the old one gets no
        more connections; that ends when its last connection has.
        """
        if not self._isComplete or self._toReplace or any(one.isRetired for one in self.processes):
            _log.warn("Received SIGUSR2: ignored, since workers are still being replaced")
            return
        _log.info("Received SIGUSR2: replacing the workers")
        self._toReplace.extend(sorted(self.current))
        self._replaceNext()

    def _replaceNext(self) -> None:
        while self._toReplace:
            old = self.current.get(self._toReplace[0])
            if old is not None:
                self._successor = self._start(old.number, old.gone)
                return
            # It has just died, and is restarted anyway.
            self._toReplace.popleft()

    def _swap(self, process: WorkerProcess) -> None:
        self._toReplace.popleft()
        old = self.current.get(process.number)
        self.current[process.number] = process
        if old is None:
            return
        old.retire()
        if self._replaceTimeout and not old.isGone:
            drainTimeout = self._connections.limits.drainTimeout
            self._reactor.callLater(self._replaceTimeout, old.send, "drain", drainTimeout)

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
        Let all workers drain.
        """
        for process in self.processes:
            process.send("drain", seconds)

    def abort(self) -> None:
        """
        Reset all connections. A worker that does not do that in time is killed.
        """
        for process in self.processes:
            process.send("abort")
        self._reactor.callLater(KILL_MARGIN, self._killBusy)
        while self._waiting:
            connection = self._waiting.popleft()
            connection.record.closeWith(CloseReason.ABORTED)
            connection.abortConnection()

    def _killBusy(self) -> None:
        for process in list(self.processes):
            if process.connections:
                process.kill()
