"""
What a connection passes before its protocol, and after it.
"""

import socket
import termios

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.connections.connection import Connection, IStage

READ_SIZE = 64 * 1024
"""
How many bytes are read at once, at most.
"""

CLOSE_TIMEOUT = 5.0
"""
How long a peer may take to end its own half after we have ended ours, in seconds.
"""


LOST = Failure(CONNECTION_LOST)


@implementer(IStage)
class Stage:
    """
    What a connection passes before its protocol, or after it. The poller watches it in place of the
    transport; it has an end, in time.

    @cvar timeout: How long it may take, in seconds.

    @ivar hasReceived: Has anything come from the peer?
    """

    timeout: float
    hasReceived = False
    _timer: IDelayedCall | None = None

    def __init__(self, transport: Connection) -> None:
        """
        @param transport: The connection.
        """
        self.transport = transport

    def begin(self) -> None:
        """
        From now on the connection is here.
        """
        transport = self.transport
        transport.stage = self
        self._timer = transport.poller.callLater(self.timeout, self.late)
        transport.poller.addReader(self)

    def end(self) -> None:
        """
        The connection goes on, to what comes next.
        """
        self.transport.stage = None
        self.transport.poller.removeWriter(self)
        self.transport.poller.removeReader(self)
        self._stopTimer()

    def ended(self) -> None:
        """
        The connection is gone.
        """
        self._stopTimer()

    def _stopTimer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        # One that has fired would keep this, and this it.
        self._timer = None

    def late(self) -> None:
        """
        It has taken too long.
        """
        self.transport.abortConnection()

    def fileno(self) -> int:
        """
        The socket's.
        """
        return self.transport.fileno()

    def logPrefix(self) -> str:
        """
        The connection's.
        """
        return self.transport.logPrefix()

    def connectionLost(self, reason: Failure) -> None:
        """
        The poller has found the connection's end.
        """
        self.transport.connectionLost(reason)

    def doRead(self) -> Exception | None:  # type: ignore[override]
        """
        Something has come, or can be sent.
        """
        raise NotImplementedError

    def doWrite(self) -> Exception | None:  # type: ignore[override]
        """
        The same.
        """
        return self.doRead()


class Farewell(Stage):
    """
    We have ended our half, and wait for the peer to end its own; what it still sends is dropped. A
    close at once would answer that with a reset, which may destroy what the peer has not read yet
    (RFC 1122, section 4.2.2.13).
    """

    timeout = CLOSE_TIMEOUT

    def begin(self) -> None:
        """
        End our half.
        """
        super().begin()
        try:
            self.transport.socket.shutdown(socket.SHUT_WR)
        except OSError:
            # It is gone already: that is read in a moment.
            return

    def doRead(self) -> Exception | None:
        """
        Drop what comes.
        """
        try:
            return None if self.transport.socket.recv(READ_SIZE) else CONNECTION_DONE
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST

    def late(self) -> None:
        """
        Wait on as long as the peer has something to read: that has its own time-out.
        """
        if self.transport.queued(termios.TIOCOUTQ):
            self._timer = self.transport.poller.callLater(self.timeout, self.late)
        else:
            super().late()
