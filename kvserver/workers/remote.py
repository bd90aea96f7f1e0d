"""
A connection that a worker serves, as the master sees it.
"""

from typing import Any

from kvserver.connections.connection import Connection
from kvserver.connections.record import CloseReason
from kvserver.workers.messages import fromAddress, toEnd, toProgress


class RemoteConnection(Connection):
    """
    A connection that a worker serves. The master has its record, and counts it; until the worker
    has acknowledged the socket, the master has that, too.

    @ivar isTLS: Does it begin with a TLS handshake?
    """

    isTLS = False
    _work = 0

    @property
    def work(self) -> int:
        """
        What the protocol has done, as the worker said last.
        """
        return self._work

    def description(self) -> list[Any]:
        """
        What the worker needs to know.
        """
        record = self.record
        return [
            record.id,
            record.listener,
            self.isTLS,
            *map(fromAddress, (record.peer, record.client, self._host)),
        ]

    def release(self) -> None:
        """
        The worker has acknowledged the socket: close the copy. That is not the end of the
        connection, so it must not be shut down.
        """
        self.socket.close()

    def update(self, progress: list[Any]) -> None:
        """
        The worker has said how the connection goes on.
        """
        self._work = toProgress(self.record, progress)

    def end(self, written: list[Any], now: float) -> None:
        """
        The worker has said how the connection has ended, and how long ago.
        """
        toEnd(self.record, written, now)
        self._work = self.record.work
        self._finish()

    def endWith(self, reason: CloseReason) -> None:
        """
        The worker is gone, and the connection with it.
        """
        self.record.closeWith(reason)
        self.record.work = self._work
        self._finish()

    def _finish(self) -> None:
        self.disconnected = True
        self.connected = False
        self.socket.close()
        self._ended(self)
