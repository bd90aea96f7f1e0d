"""
An accepted connection: it owns the socket, the bytes that wait to be sent, and the record.
"""

import socket
import struct
from collections.abc import Iterable
from fcntl import ioctl
from termios import FIONREAD, TIOCOUTQ
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    ILoggingContext,
    IProtocol,
    IPushProducer,
    IReadWriteDescriptor,
    ISystemHandle,
    ITCPTransport,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.address import addressOf
from kvserver.interfaces import ICountsWork, IDrainable
from kvserver.record import Ending, Record
from kvserver.stage import DONE, READ_SIZE, Farewell, Stage

if TYPE_CHECKING:
    from kvserver.connections import Connections

CORK_SIZE = 64 * 1024
"""
How many bytes a protocol may write while it is given some, before they are sent.
"""

WRITE_SIZE = 128 * 1024
"""
How many bytes that have waited are offered to the kernel at once, at most.
"""


@implementer(
    ITCPTransport,
    ISystemHandle,
    IConsumer,
    IPushProducer,
    IReadWriteDescriptor,
    IHalfCloseableDescriptor,
    ILoggingContext,
)
class Transport:
    """
    An accepted connection, of TCP or UNIX.

    What is written goes to the socket at once. Twisted's own transport waits until the reactor says
    that the socket takes something, which costs two system calls and a turn of the reactor for each
    line. What a protocol writes after that, still in the same C{dataReceived}, goes together when
    that is over. What the socket does not take waits here, and as long as anything waits the peer
    is not read from.

    It shows its addresses as people know them: an IPv4 peer of an IPv6 socket as IPv4, the client
    of a balancer as the balancer saw it.

    @ivar record: What is known of the connection.

    @ivar protocol: Speaks with the peer; None before the connection can be used, and after its end.

    @ivar stage: What the connection passes at the moment, before its protocol or after it.

    @ivar source: The source that it counts for, if those are limited.

    @ivar steps: How often something has come that was not, or not yet, for the protocol.
    """

    protocol: IProtocol | None = None
    stage: Stage | None = None
    source: str | None = None
    steps = 0
    producer: Any = None
    streamingProducer = False
    producerPaused = False
    connected = True
    disconnecting = False
    disconnected = False
    _aborting = False
    # May a write go to the socket, or must it wait for what came before?
    _mayWriteNow = True
    # Is what is written collected, to be sent in few segments?
    _isCorked = False
    _isPaused = False
    _inputEnded = False
    _inReadConnectionLost = False
    _outputEnds = False
    _outputEnded = False
    _host: IAddress | None = None

    def __init__(
        self,
        accepted: socket.socket,
        record: Record,
        poller: Any,
        connections: "Connections",
    ) -> None:
        """
        @param accepted: The socket. It must not block.

        @param record: Takes what becomes known of the connection.

        @param poller: Provides C{IReactorFDSet} and C{callLater}.

        @param connections: Is told when the connection has ended.
        """
        self.socket = accepted
        # The poller asks for it several times in the life of a connection.
        self.fileno = accepted.fileno
        self.record = record
        self.poller = poller
        self.connections = connections
        self._buffer = bytearray()

    def connect(self, protocol: IProtocol) -> None:
        """
        The connection can be used, by C{protocol}.
        """
        self.protocol = protocol
        protocol.makeConnection(self)
        self._read()

    # The addresses.

    def getPeer(self) -> IAddress:  # type: ignore[override]
        """
        The client's end of this connection.
        """
        return self.record.client or self.record.peer

    def getHost(self) -> IAddress:  # type: ignore[override]
        """
        The server's end of this connection.
        """
        return self._host or addressOf(self.socket.getsockname())

    def seenAs(self, peer: IAddress, host: IAddress | None) -> None:
        """
        Show the addresses that a balancer has named.
        """
        self.record.client = peer
        self._host = host

    # What the poller needs.

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
        return ",".join((name, str(self.record.number), *peers))

    def __repr__(self) -> str:
        return f"<{self.logPrefix()}>"

    def doRead(self) -> Exception | None:  # type: ignore[override]
        """
        Give the protocol what has come.

        @return: Why nothing more will come, as C{IReadDescriptor} has it.
        """
        try:
            data = self.socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self._deliver(data)
        return None

    def _deliver(self, data: bytes) -> None:
        """
        Give the protocol what has come, and then send what it has written piece by piece.
        """
        self.record.received += len(data)
        self._isCorked = True
        self.protocol.dataReceived(data)  # type: ignore[union-attr]
        self._isCorked = False
        if self._buffer:
            self._uncork()
        else:
            self._mayWriteNow = not self._outputEnded and (
                self.producer is None or self.streamingProducer
            )

    def doWrite(self) -> Exception | None:  # type: ignore[override]
        """
        Send what waits; when nothing does, get more from the producer, or close.

        @return: Why nothing more can be sent, as C{IWriteDescriptor} has it.
        """
        if self._buffer:
            why = self._flush()
            if why is not None or self._buffer:
                return why
        self.poller.removeWriter(self)
        producer = self.producer
        if producer is not None:
            if not self.streamingProducer:
                # What it writes waits for the next turn, in which it is asked again.
                producer.resumeProducing()
            else:
                self._mayWriteNow = not self._outputEnded
                if self.producerPaused:
                    self.producerPaused = False
                    producer.resumeProducing()
        elif self.disconnecting:
            return self._close()
        elif self._outputEnds:
            self._endOutput()
        else:
            self._mayWriteNow = not self._outputEnded
        self._read()
        return None

    def _flush(self) -> Exception | None:
        """
        Send what waits, or the beginning of it.
        """
        try:
            with memoryview(self._buffer) as waiting, waiting[:WRITE_SIZE] as first:
                sent = self.socket.send(first)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        self._count(sent)
        del self._buffer[:sent]
        return None

    def _count(self, sent: int) -> None:
        """
        So much of what had waited has been sent.
        """
        self.record.sent += sent

    # What the protocol needs.

    def getHandle(self) -> socket.socket:
        """
        The socket.
        """
        return self.socket

    def write(self, data: bytes) -> None:
        """
        Send now what the socket takes, and the rest later.
        """
        if self._mayWriteNow:
            try:
                sent = self.socket.send(data)
            except OSError:
                # Either it takes nothing now, or there is an error, which comes again in doWrite.
                sent = 0
            self.record.sent += sent
            if sent == len(data):
                self._mayWriteNow = not self._isCorked
                return
            self._hold(memoryview(data)[sent:])
        else:
            self._hold(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send them one after the other.
        """
        self.write(b"".join(data))

    def _hold(self, data: bytes | memoryview) -> None:
        """
        Send later.
        """
        if self.disconnected or self._outputEnded or self._aborting:
            return
        self._mayWriteNow = False
        self._buffer += data
        if not self._isCorked:
            self._wait()
        elif len(self._buffer) >= CORK_SIZE:
            self._uncork()

    def _uncork(self) -> None:
        """
        Send what has been collected.
        """
        if not (self.disconnected or self._aborting or self._outputEnded):
            # An error comes again in doWrite.
            self._flush()
            if self._buffer:
                self._wait()
            elif not self._isCorked:
                self._mayWriteNow = self.producer is None or self.streamingProducer

    def isFlushed(self) -> bool:
        """
        Does nothing wait to be sent?
        """
        return not self._buffer

    def goOnWriting(self) -> None:
        """
        Send what has waited since before this was watched.
        """
        if self._buffer:
            self.poller.addWriter(self)

    def _wait(self) -> None:
        """
        Something waits to be sent. Until that is done the peer is not read from, and a producer is
        not to produce.
        """
        self.poller.addWriter(self)
        self.poller.removeReader(self)
        if self.producer is not None and self.streamingProducer and not self.producerPaused:
            self.producerPaused = True
            self.producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Let C{producer} write, as C{IConsumer} has it.

        @raise RuntimeError: There is one already.
        """
        if self.producer is not None:
            raise RuntimeError(f"{producer!r} can't be registered: {self.producer!r} is")
        if self.disconnected or self._outputEnded or self._aborting:
            producer.stopProducing()
            return
        self.producer = producer
        self.streamingProducer = streaming
        self.producerPaused = False
        if not streaming:
            # All that it writes goes by doWrite, which asks it for more.
            self._mayWriteNow = False
            self.poller.addWriter(self)
        elif self._buffer:
            self.producerPaused = True
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """
        The producer has no more to write.
        """
        self.producer = None
        if not (self.disconnected or self._outputEnded or self._aborting):
            self._mayWriteNow = not self._buffer
            if self.disconnecting or self._outputEnds:
                self.poller.addWriter(self)

    def _stopProducer(self) -> None:
        """
        A transport does not close while a producer may have more to write: it is to write no more.
        """
        producer = self.producer
        if producer is not None:
            self.unregisterProducer()
            producer.stopProducing()

    def pauseProducing(self) -> None:
        """
        Read no more for the time being.
        """
        self._isPaused = True
        if self.stage is None:
            self.poller.removeReader(self)

    def resumeProducing(self) -> None:
        """
        Read again, as soon as nothing waits to be sent.
        """
        self._isPaused = False
        self._read()

    def stopProducing(self) -> None:
        """
        Read no more: close.
        """
        self.loseConnection()

    def _read(self) -> None:
        if not (
            self._buffer
            or self._isPaused
            or self._inputEnded
            or self.disconnecting
            or self.disconnected
            or self._aborting
            or self.stage is not None
        ):
            self.poller.addReader(self)

    def loseConnection(self) -> None:
        """
        Close when all has been sent, and a producer has no more to write.
        """
        if self.disconnecting or self.disconnected or self._aborting:
            return
        self.disconnecting = True
        if self._inReadConnectionLost and not self._buffer and self.producer is None:
            # L{readConnectionLost} goes on from here.
            return
        self.poller.removeReader(self)
        self.poller.addWriter(self)

    def loseWriteConnection(self) -> None:
        """
        End our half of the connection when all has been sent, and go on to read.
        """
        if not (self.disconnecting or self.disconnected or self._aborting or self._outputEnds):
            self._outputEnds = True
            self.poller.addWriter(self)

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

    # What time-outs and the drain need.

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

    def isIdle(self) -> bool:
        """
        Is nothing begun: no line, no header, no handshake, nothing that waits to be sent?
        """
        if self.stage is not None:
            return not self.stage.begun
        protocol: Any = self.protocol
        return not self._buffer and (not IDrainable.providedBy(protocol) or protocol.isIdle())

    def queued(self, request: int) -> int:
        """
        How many bytes of the connection are in the kernel: C{FIONREAD}, received and not read;
        C{TIOCOUTQ}, sent and not acknowledged (tcp(7), unix(7)).

        @raise OSError: The socket is gone.
        """
        (count,) = struct.unpack("i", ioctl(self.socket, request, bytes(4)))
        assert isinstance(count, int)
        return count

    def close(self) -> None:
        """
        Close in order, for a reason of ours.
        """
        protocol: Any = self.protocol
        if self.stage is None:
            self._stopProducer()
            if IDrainable.providedBy(protocol):
                protocol.close()
            else:
                self.loseConnection()
        elif not self.disconnecting:
            # Nothing was sent yet, or what was sent nobody waits for.
            self.connectionLost(DONE)

    # The end.

    def readConnectionLost(self, reason: Failure) -> None:
        """
        The peer has sent its last byte. A protocol that knows no half-close is told when all has
        been sent. If that is so already, and the protocol has closed, the connection ends now, and
        not in another turn of the reactor.
        """
        if self.disconnected or self._aborting:
            return
        self._inputEnded = True
        self._inReadConnectionLost = True
        try:
            protocol: Any = self.protocol
            if IHalfCloseableProtocol.providedBy(protocol):
                protocol.readConnectionLost()
            else:
                if self.streamingProducer:
                    # It may have no end, and the protocol can't end it before it knows of this one.
                    self._stopProducer()
                self.loseConnection()
        finally:
            self._inReadConnectionLost = False
        if self.disconnecting and not self._buffer and self.producer is None:
            why = self._close()
            if why is not None:
                self.connectionLost(reason if why is CONNECTION_DONE else Failure(why))
        if self.stage is None and not self.disconnected:
            self.poller.removeReader(self)

    def writeConnectionLost(self, reason: Failure) -> None:
        """
        Our half can't be used any more.
        """
        self.connectionLost(reason)

    def _close(self) -> Exception | None:
        """
        All has been sent: end the connection. If the peer may still send, or has not got all, it is
        waited for: a reset, which is what the kernel answers to what it can't deliver, would
        destroy what is still on its way.

        @return: Why it is over, if it is.
        """
        try:
            if self._inputEnded or not (self.queued(FIONREAD) or self.queued(TIOCOUTQ)):
                return CONNECTION_DONE
        except OSError:
            return CONNECTION_LOST
        self.sayFarewell()
        return None

    def _endOutput(self) -> None:
        """
        All has been sent: end our half.
        """
        self._outputEnded = True
        self._mayWriteNow = False
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The peer is gone, which is found out when we read.
            return
        protocol: Any = self.protocol
        if IHalfCloseableProtocol.providedBy(protocol):
            protocol.writeConnectionLost()

    def sayFarewell(self) -> None:
        """
        Nothing more is sent: end our half, and wait for the peer to end its own.
        """
        self.record.ends(Ending.CLIENT_CLOSED)
        self.disconnecting = True
        self._outputEnded = True
        self._mayWriteNow = False
        self._buffer.clear()
        self.poller.remove(self)
        Farewell(self).begin()

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
                self.record.ends(_endingFor(reason))
                try:
                    self.record.work = self.work
                finally:
                    # Nothing is left that only the garbage collector could find.
                    self.protocol = None
                    self.connections.ended(self)

    def _linger0(self) -> None:
        """
        Let the close be a reset: SO_LINGER of 0 seconds (socket(7)).
        """
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            # The peer was faster.
            return


def _endingFor(reason: Failure) -> Ending:
    """
    How a connection has ended that nobody here wanted to end.
    """
    if reason is DONE or reason.check(ConnectionDone):
        return Ending.CLIENT_CLOSED
    if reason.check(ConnectionLost) and not reason.check(ConnectionAborted):
        return Ending.RESET
    return Ending.ERROR


def _host(address: IAddress) -> str:
    return address.host if isinstance(address, IPv4Address | IPv6Address) else "unix"
