"""
An accepted connection: its socket, its addresses, its record, and its end.
"""

import socket
import struct
from collections.abc import Callable
from fcntl import ioctl
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocol, IReadWriteDescriptor
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure
from zope.interface import Attribute

from kvserver.connections.addresses import fromSockaddr
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.throttle import SourceLog
from kvserver.interfaces import ICountsWork

DONE = Failure(CONNECTION_DONE)


class IStage(IReadWriteDescriptor):
    """
    What a connection passes before its protocol, or after it. The poller watches it in place of the
    transport.
    """

    hasReceived = Attribute("Has anything come from the peer?")

    def ended() -> None:
        """
        The connection is gone.
        """


class Connection:
    """
    An accepted connection, of TCP or UNIX.

    It shows its addresses as people know them: an IPv4 peer of an IPv6 socket as IPv4, the client
    of a balancer as the balancer saw it.

    @ivar record: What is known of the connection.

    @ivar protocol: Speaks with the peer; None before the connection can be used, and after its end.

    @ivar stage: What the connection passes at the moment, before its protocol or after it.

    @ivar source: The source that it counts for, if those are limited.

    @ivar producer: What writes besides the protocol, as C{IConsumer} has it.

    @ivar steps: How often something has come that was not, or not yet, for the protocol.
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
    # May a write go to the socket, or must it wait for what came before?
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
        @param accepted: The socket. It must not block.

        @param poller: Provides C{IReactorFDSet} and C{callLater}.

        @param ended: Called with this, once, when the connection has ended.

        @param sourceLog: Logs the warnings that this client causes.
        """
        self.socket = accepted
        # The poller asks for it several times in the life of a connection.
        self.fileno = accepted.fileno
        self.record = record
        self.poller = poller
        self.sourceLog = sourceLog
        self._ended = ended
        # What waits to be sent.
        self._buffer = bytearray()

    def getPeer(self) -> Any:
        """
        The client's end of this connection.
        """
        return self.record.client or self.record.peer

    def getHost(self) -> Any:
        """
        The server's end of this connection.
        """
        return self._host or fromSockaddr(self.socket.getsockname())

    def setClient(self, peer: IAddress, host: IAddress | None) -> None:
        """
        Show the addresses that a balancer has named.
        """
        self.record.client = peer
        self._host = host

    def logPrefix(self) -> str:
        """
        What the log calls this connection: its protocol, its number, its peer.
        """
        if self.protocol is None:
            name = type(self).__name__
        elif ILoggingContext.providedBy(self.protocol):
            name = self.protocol.logPrefix()
        else:
            name = type(self.protocol).__name__
        peers = dict.fromkeys(map(_host, filter(None, (self.record.peer, self.record.client))))
        return ",".join((name, str(self.record.id), *peers))

    def __repr__(self) -> str:
        return f"<{self.logPrefix()}>"

    def getHandle(self) -> socket.socket:
        """
        The socket.
        """
        return self.socket

    def getTcpNoDelay(self) -> bool:
        """
        Is what is written sent without a delay? It is, unless somebody changes that.
        """
        return bool(self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """
        Change that.
        """
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        """
        Does the kernel find out when the peer has vanished? It does, unless somebody changes that.
        """
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """
        Change that.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    @property
    def work(self) -> int:
        """
        How much the protocol has done, by its own count.
        """
        protocol: Any = self.protocol
        return protocol.count if ICountsWork.providedBy(protocol) else 0

    def progress(self) -> int:
        """
        A number that grows whenever anything comes from the peer, or goes to it.
        """
        return self.record.received + self.record.sent + self.steps

    def queued(self, request: int) -> int:
        """
        How many bytes of the connection are in the kernel: C{FIONREAD}, received and not read;
        C{TIOCOUTQ}, sent and not acknowledged (tcp(7), unix(7)).

        @raise OSError: The socket is gone.
        """
        (count,) = struct.unpack("i", ioctl(self.socket, request, bytes(4)))
        assert isinstance(count, int)
        return count

    def abortConnection(self) -> None:
        """
        Reset the connection, and drop what waits to be sent. The protocol is told in the next turn
        of the reactor.
        """
        if self.disconnected or self._aborting:
            return
        self._aborting = True
        self._mayWriteNow = False
        self.poller.remove(self)
        self.poller.callLater(0, self.connectionLost, Failure(ConnectionAborted()))

    def connectionLost(self, reason: Failure) -> None:
        """
        The connection is gone: close the socket, tell the protocol, and then those who count
        connections.
        """
        if self.disconnected:
            return
        self.disconnected = True
        self.connected = False
        self._mayWriteNow = False
        self.poller.forget(self)
        if self._aborting:
            self._linger0()
        self.socket.close()
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
                    # Nothing is left that only the garbage collector could find.
                    self.protocol = None
                    self._ended(self)

    def _linger0(self) -> None:
        """
        Let the close be a reset: SO_LINGER of 0 seconds (socket(7)).
        """
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            # The peer was faster.
            return


def _closeReasonFor(reason: Failure) -> CloseReason:
    """
    How a connection has ended that nobody here wanted to end.
    """
    if reason is DONE or reason.check(ConnectionDone):
        return CloseReason.CLIENT_CLOSED
    if reason.check(ConnectionLost) and not reason.check(ConnectionAborted):
        return CloseReason.RESET
    return CloseReason.ERROR


def _host(address: IAddress) -> str:
    return address.host if isinstance(address, IPv4Address | IPv6Address) else "unix"
