"""
How all workers are replaced, one after the other.
"""

from collections import deque
from typing import Any

from twisted.logger import Logger

from kvserver.connections.throttle import connectionsText
from kvserver.workers.process import WorkerProcess

_log = Logger(namespace="kvserver.worker")


class Replacement:
    """
    Replaces the processes of a pool one after the other. The new one is ready before the old one
    gets no more connections; the old one ends when its last connection has.
    """

    def __init__(self, pool: Any) -> None:
        """
        @param pool: The C{Pool}.
        """
        self._pool = pool
        # The workers that are still to be replaced, and the process that is to replace the first.
        self._numbers: deque[int] = deque()
        self._successor: WorkerProcess | None = None

    def begin(self) -> None:
        """
        Begin, unless processes that were replaced still have connections.
        """
        pool = self._pool
        old = sum(len(one.connections) for one in pool.processes if one.isRetired)
        if not pool.isComplete or self._numbers or pool.connections.isDraining:
            _log.warn("Received SIGUSR2: ignored, since workers are starting, changing or ending")
        elif old:
            text = f"Received SIGUSR2: ignored, replaced workers still have {connectionsText(old)}"
            _log.warn(text, count=old)
        else:
            _log.info("Received SIGUSR2: replacing the workers")
            self._numbers.extend(sorted(pool.current))
            self._next()

    def _next(self) -> None:
        if self._pool.connections.isDraining:
            self._numbers.clear()
        while self._numbers:
            number = self._numbers[0]
            if number not in self._pool.current:
                # It has just died, and is restarted anyway.
                self._numbers.popleft()
                continue
            try:
                self._successor = self._pool.spawn(number)
            except OSError as error:
                self._giveUp(number, str(error))
            return

    def isReady(self, process: WorkerProcess) -> bool:
        """
        A process is ready. If it is the successor, it takes the place of the old one.

        @return: Is it the successor?
        """
        if process is not self._successor:
            return False
        self._successor = None
        self._numbers.popleft()
        pool = self._pool
        old = pool.current.get(process.number)
        pool.current[process.number] = process
        _log.info(
            "Worker {number} is replaced: process {pid}", number=process.number, pid=process.pid
        )
        if old is not None:
            old.retire()
            if pool.replaceTimeout and not old.isGone:
                drainTimeout = pool.connections.limits.drainTimeout
                pool.reactor.callLater(pool.replaceTimeout, old.send, "drain", drainTimeout)
        self._next()
        return True

    def hasEnded(self, process: WorkerProcess, reason: str) -> bool:
        """
        A process has ended. If it is the successor, the old one stays.

        @return: Is it the successor?
        """
        if process is not self._successor:
            isLast = not (self._numbers or any(one.isRetired for one in self._pool.processes))
            if process.isRetired and isLast:
                _log.info("All workers that were replaced have ended")
            return False
        self._giveUp(process.number, reason)
        return True

    def _giveUp(self, number: int, reason: str) -> None:
        self._successor = None
        self._numbers.clear()
        _log.error("Worker {number} is not replaced: {reason}", number=number, reason=reason)
