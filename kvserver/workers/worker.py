"""
A worker as a child of the service tree, and the way of a listener's connections to the workers.
"""

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from kvserver.interfaces import IHandover
from kvserver.workers.pool import Pool
from kvserver.workers.process import WorkerProcess
from kvserver.workers.remote import RemoteConnection


class Worker(Service):
    """
    One worker: a permanent child, whose process is restarted when it ends.
    """

    def __init__(self, pool: Pool, number: int, died: Callable[[Exception], None]) -> None:
        """
        @param number: Its number, from 1.

        @param died: Called when its process has ended, unless the worker was stopped.
        """
        self._pool = pool
        self._number = number
        self._died = died

    def startService(self) -> None:
        """
        Start the process, as the user that C{twistd --uid} has switched to.
        """
        super().startService()
        # Not earlier: the reactor must be there to take a TERM.
        self._pool.whenRunning(self._start)

    def _start(self) -> None:
        if self.running:
            self._pool.start(self._number, self._onGone)

    def _onGone(self, process: WorkerProcess, reason: str) -> None:
        if self.running:
            self._died(OSError(f"process {process.pid}: {reason}"))

    def stopService(self) -> Deferred[None]:
        """
        End the processes, if this stops because all stops: their connections have ended before. If
        it stops because its own process has ended, the others go on.

        @return: Fires when they have ended.
        """
        super().stopService()
        isAlive = self._number in self._pool.current
        return self._pool.end() if isAlive else succeed(None)


@implementer(IHandover)
class WorkerHandover:
    """
    Hands the connections of a listener over to workers.
    """

    kind = RemoteConnection

    def __init__(self, pool: Pool, isTLS: bool) -> None:
        """
        @param isTLS: Do they begin with a TLS handshake?
        """
        self._pool = pool
        self._isTLS = isTLS

    def start(self) -> None:
        """
        Do nothing: the factories are in the workers.
        """

    def stop(self) -> None:
        """
        Do nothing: the factories are in the workers.
        """

    def handOver(self, connection: RemoteConnection) -> None:
        """
        Hand over the connection.
        """
        connection.isTLS = self._isTLS
        self._pool.give(connection)
