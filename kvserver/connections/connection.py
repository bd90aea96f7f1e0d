"""
An accepted connection: its socket, its addresses, its record, and its end.
"""

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD, TIOCOUTQ
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocol, IReadWriteDescriptor
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Attribute

from kvserver.connections.addresses import fromSockaddr
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.throttle import SourceLog
from kvserver.interfaces import ICountsWork

_log = Logger(namespace="kvserver.connections.Connections")

DONE = Failure(CONNECTION_DONE)


class IStage(IReadWriteDescriptor):
    """
    A stage that a connection passes before its protocol, or after it. Meanwhile the poller watches
    the stage in place of the transport.
    """

    hasReceived = Attribute("Has anything come from the peer?")

    def ended() -> None:
        """
        The connection has ended.
        """


class Connection:
    """
    An accepted TCP or UNIX connection.

    It shows addresses as people know them. The peer of an IPv6 socket has an IPv4 address if it
    connects over IPv4. The client of a balancer has the address that the balancer saw.

    @ivar record: What is known of the connection.

    @ivar protocol: The protocol that talks with the peer. None before it can use the connection,
        and after the end.

    @ivar stage: The stage that the connection is in, before its protocol or after it. None: it is
        in no stage.

    @ivar source: The source that the connection counts for, if sources are limited.

    @ivar producer: A registered producer, which writes besides the protocol (C{IConsumer}).

    @ivar steps: How often bytes have arrived that the protocol did not get, or not yet.
    """

    protocol: IProtocol | None = None
    stage: IStage | None = None
    source: str | None = None
    producer: Any = None
    steps = 0
    connected = True
    disconnecting = False
    disconnected = False
    _aborting = False
    _outputEnded = False
    # Whether a write may go to the socket. If not, it must wait for earlier bytes.
    _mayWriteNow = True
    _host: IAddress | None = None

    def __init__(
        self,
        accepted: socket.socket,
        record: ConnectionRecord,
        poller: Any,
        ended: Callable[[Any], None],
        sourceLog: SourceLog,
    ) -> None:
        """
        @param accepted: The socket. It must be non-blocking.

        @param record: What is known of the connection.

        @param poller: Provides C{IReactorFDSet} and C{callLater}.

        @param ended: Called once, with this connection, when it has ended.

        @param sourceLog: Logs the warnings that this client causes.
        """
        self.socket = accepted
        # Saves a call: the poller asks for it several times in the life of a connection.
        self.fileno = accepted.fileno
        self.record = record
        self.poller = poller
        self.sourceLog = sourceLog
        self._ended = ended
        # The bytes that wait to be sent.
        self._buffer = bytearray()

    def getPeer(self) -> Any:
        """
        Return the address of the client's end of this connection.
        """
        return self.record.client or self.record.peer

    def getHost(self) -> Any:
        """
        Return the address of the server's end of this connection.
        """
        return self._host or fromSockaddr(self.socket.getsockname())

    def setClient(self, peer: IAddress, host: IAddress | None) -> None:
        """
        Set the addresses that a balancer has named.
        """
        self.record.client = peer
        self._host = host

    def logPrefix(self) -> str:
        """
        Return the name of this connection in the log: its protocol, its number, its peer.
        """
        name = type(self.protocol or self).__name__
        if ILoggingContext.providedBy(self.protocol):
            # This is also called to log that the protocol has failed.
            with suppress(BaseException):
                name = str(self.protocol.logPrefix())
        peers = dict.fromkeys(map(_host, filter(None, (self.record.peer, self.record.client))))
        return ",".join((name, str(self.record.id), *peers))

    def __repr__(self) -> str:
        return f"<{self.logPrefix()}>"

    def getHandle(self) -> socket.socket:
        """
        Return the socket.
        """
        return self.socket

    def _isUNIX(self) -> bool:
        # Twisted's protocols set TCP options without asking; a UNIX socket never delays.
        return self.socket.family == socket.AF_UNIX

    def getTcpNoDelay(self) -> bool:
        """
        Return whether writes are sent without delay, which is the default here.
        """
        return self._isUNIX() or bool(
            self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        )

    def setTcpNoDelay(self, enabled: bool) -> None:
        """
        Set whether writes are sent without delay.
        """
        if not self._isUNIX():
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        """
        Return whether the kernel checks that the peer has not vanished, which is the default here.
        """
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """
        Set whether the kernel checks that the peer has not vanished.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    @property
    def work(self) -> int:
        """
        How much work the protocol has done, by its own count. If it can't say, only its connection
        ends: the question comes from what looks after all connections.
        """
        protocol: Any = self.protocol
        if not ICountsWork.providedBy(protocol):
            return 0
        try:
            # A plain number: what counts may be of a kind that no message to the master can have.
            return int(protocol.count)
        except BaseException:
            if not self._aborting:
                _log.failure("{connection} can't count its work, and is aborted", connection=self)
                self.record.closeWith(CloseReason.ERROR)
                self.abortConnection()
            return 0

    def progress(self) -> int:
        """
        Return a number that grows whenever bytes come from the peer or go to it.
        """
        return self.record.received + self.record.sent + self.steps

    def queued(self, request: int) -> int:
        """
        Return how many bytes of the connection are in the kernel (tcp(7), unix(7)).

        @param request: C{FIONREAD}: bytes received and not read. C{TIOCOUTQ}: bytes sent and not
            acknowledged.

        @raise OSError: The socket is closed.
        """
        (count,) = struct.unpack("i", ioctl(self.socket, request, bytes(4)))
        assert isinstance(count, int)
        return count

    def hasUnread(self) -> bool:
        """
        Has the kernel received something that is about to be read? After a pause of the process,
        timers come before the bytes that have arrived during the pause. Of a connection that is not
        read from, what is unread does not count: it may stay so for ever.
        """
        watched = self.stage or self
        return self.poller.isReading(watched) and self.queued(FIONREAD) > 0

    def isIdle(self) -> bool:
        """
        Return whether nothing has come that the stage waits for.
        """
        return self.stage is None or not self.stage.hasReceived

    def close(self) -> None:
        """
        Close in good order, because the daemon wants to.
        """
        if not self.disconnecting:
            # The protocol has sent nothing, and nobody waits for the rest of a handshake.
            self.connectionLost(DONE)

    def abortConnection(self) -> None:
        """
        Reset the connection, and drop the bytes that wait to be sent. The protocol is told in the
        next turn of the reactor.
        """
        if self.disconnected or self._aborting:
            return
        self._aborting = True
        self._mayWriteNow = False
        self.poller.remove(self)
        self.poller.callLater(0, self.connectionLost, Failure(ConnectionAborted()))

    def connectionLost(self, reason: Failure) -> None:
        """
        The connection is lost: close the socket, tell the protocol, and then report the end.
        """
        if self.disconnected:
            return
        self.disconnected = True
        self.connected = False
        self._mayWriteNow = False
        self.poller.forget(self)
        if self._aborting or (reason is not DONE and not reason.check(ConnectionDone)):
            self._countUnacknowledged()
        if self._aborting:
            self._linger0()
        stage, self.stage = self.stage, None
        if stage is not None:
            stage.ended()
        producer, self.producer = self.producer, None
        protocol = self.protocol
        try:
            if producer is not None:
                producer.stopProducing()
        finally:
            try:
                if protocol is not None:
                    protocol.connectionLost(reason)
            finally:
                self.record.closeWith(_closeReasonFor(reason))
                try:
                    self.record.work = self.work
                finally:
                    # Break the reference cycle: otherwise only the garbage collector could free
                    # both.
                    self.protocol = None
                    try:
                        self._ended(self)
                    finally:
                        # Only now does the client see the end. It may come again at once, and must
                        # not be counted twice.
                        self.socket.close()

    def _countUnacknowledged(self) -> None:
        """
        Ask the kernel how many bytes the peer has not acknowledged: they will not reach it. A UNIX
        socket does not know: its C{TIOCOUTQ} is an amount of memory (unix(7)).
        """
        try:
            if self.socket.family != socket.AF_UNIX:
                # Our FIN takes a sequence number, as a byte does (RFC 9293, section 3.4).
                fin = int(self._outputEnded)
                self.record.unacknowledged = max(0, self.queued(TIOCOUTQ) - fin)
        except OSError:
            # The socket is gone.
            return

    def _linger0(self) -> None:
        """
        Make the close a reset: SO_LINGER of 0 seconds (socket(7)).
        """
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            # The peer has ended the connection before us.
            return


def _closeReasonFor(reason: Failure) -> CloseReason:
    """
    Return the reason of an end that the daemon did not decide itself.
    """
    if reason is DONE or reason.check(ConnectionDone):
        return CloseReason.CLIENT_CLOSED
    if reason.check(ConnectionAborted):
        return CloseReason.PROTOCOL_ABORTED
    if reason.check(ConnectionLost):
        return CloseReason.RESET
    return CloseReason.ERROR


def _host(address: IAddress) -> str:
    return address.host if isinstance(address, IPv4Address | IPv6Address) else "unix"
