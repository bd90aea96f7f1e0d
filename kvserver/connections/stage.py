"""
The stages of a connection before its protocol, and after it.
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
The most bytes that are read at once.
"""

CLOSE_TIMEOUT = 5.0
"""
How long a peer may take to end its half after we have ended ours, in seconds.
"""


@implementer(IStage)
class Stage:
    """
    A stage that a connection passes before its protocol, or after it. Meanwhile the poller watches
    the stage in place of the transport. A stage has a time-out.

    @cvar timeout: The time-out, in seconds.

    @ivar hasReceived: Whether bytes have arrived from the peer.
    """

    timeout: float
    hasReceived = False
    _isExtended = False
    _timer: IDelayedCall | None = None

    def __init__(self, transport: Connection) -> None:
        """
        @param transport: The connection.
        """
        self.transport = transport

    def begin(self) -> None:
        """
        The connection enters this stage.
        """
        transport = self.transport
        transport.stage = self
        self._timer = transport.poller.callLater(self.timeout, self._expire)
        transport.poller.addReader(self)

    def end(self) -> None:
        """
        The connection leaves this stage, for what comes next.
        """
        self.transport.stage = None
        self.transport.poller.removeWriter(self)
        self.transport.poller.removeReader(self)
        self._stopTimer()

    def ended(self) -> None:
        """
        The connection has ended.
        """
        self._stopTimer()

    def _stopTimer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        # A timer that has fired would refer to this stage, and the stage to the timer.
        self._timer = None

    def _expire(self) -> None:
        """
        Time is over. If the process was paused, the kernel may have what was waited for: that is
        read first, and then the peer has the same time once more, but only once.
        """
        transport = self.transport
        before = transport.steps
        transport.poller.readNow(self)
        if transport.stage is not self:
            return
        if transport.steps != before and not self._isExtended:
            self._isExtended = True
            self._timer = transport.poller.callLater(self.timeout, self._expire)
        else:
            self.late()

    def late(self) -> None:
        """
        The stage has timed out.
        """
        self.transport.abortConnection()

    def fileno(self) -> int:
        """
        Return the file descriptor of the socket.
        """
        return self.transport.fileno()

    def logPrefix(self) -> str:
        """
        Return the name of the connection in the log.
        """
        return self.transport.logPrefix()

    def connectionLost(self, reason: Failure) -> None:
        """
        The poller reports that the connection is lost.
        """
        self.transport.connectionLost(reason)

    def doRead(self) -> Exception | None:  # type: ignore[override]
        """
        Bytes have arrived, or can be sent. Each stage handles this in its own way.
        """
        raise NotImplementedError

    def doWrite(self) -> Exception | None:  # type: ignore[override]
        """
        Handle this as L{doRead} does.
        """
        return self.doRead()


class Farewell(Stage):
    """
    We have ended our half (FIN), and wait until the peer ends its own. Bytes that the peer still
    sends are dropped.

    If we closed at once, the kernel would answer such bytes with a reset, which may destroy what
    the peer has not read yet (RFC 1122, section 4.2.2.13).
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
            # The connection is already lost. The next read will say so.
            return

    def doRead(self) -> Exception | None:
        """
        Drop the bytes that the peer still sends.
        """
        try:
            return None if self.transport.socket.recv(READ_SIZE) else CONNECTION_DONE
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST

    def late(self) -> None:
        """
        Wait longer as long as the peer has not acknowledged everything: the write time-out takes
        care of that. Otherwise, reset the connection.
        """
        if self.transport.queued(termios.TIOCOUTQ):
            self._timer = self.transport.poller.callLater(self.timeout, self._expire)
        else:
            super().late()
