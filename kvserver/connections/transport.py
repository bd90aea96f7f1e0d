"""
An accepted connection as a protocol uses it.
"""

import socket
from termios import FIONREAD, TIOCOUTQ
from typing import Any

from twisted.internet.interfaces import (
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

from kvserver.connections.output import Output
from kvserver.connections.record import CloseReason
from kvserver.connections.stage import READ_SIZE, Farewell
from kvserver.interfaces import IDrainable


@implementer(
    ITCPTransport,
    ISystemHandle,
    IConsumer,
    IPushProducer,
    IReadWriteDescriptor,
    IHalfCloseableDescriptor,
    ILoggingContext,
)
class Transport(Output):
    """
    The transport of a protocol: how an accepted connection is read and how it closes.
    """

    _isPaused = False
    _inputEnded = False
    _inReadConnectionLost = False

    def connect(self, protocol: IProtocol) -> None:
        """
        Hand the connection over to a protocol.
        """
        self.protocol = protocol
        protocol.makeConnection(self)
        self._read()

    def doRead(self) -> Exception | None:  # type: ignore[override]
        """
        Give the protocol the bytes that have arrived.

        @return: Why no more bytes will come, as defined by C{IReadDescriptor}.
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
        Give the protocol the bytes that have arrived. Then send what it has written in pieces.
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
        Send the bytes that wait. If none wait, get more from the producer, or close.

        @return: Why no more bytes can be sent, as defined by C{IWriteDescriptor}.
        """
        if self._buffer:
            why = self._flush()
            if why is not None or self._buffer:
                return why
        self.poller.removeWriter(self)
        producer = self.producer
        if producer is not None:
            if not self.streamingProducer:
                # Its bytes wait for the next turn, in which it is asked again.
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

    def pauseProducing(self) -> None:
        """
        Stop reading for a while.
        """
        self._isPaused = True
        if self.stage is None:
            self.poller.removeReader(self)

    def resumeProducing(self) -> None:
        """
        Read again, as soon as no bytes wait to be sent.
        """
        self._isPaused = False
        self._read()

    def stopProducing(self) -> None:
        """
        Stop reading for good: close the connection.
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
        Close when all bytes have been sent, and a producer has no more to write.
        """
        if self.disconnecting or self.disconnected or self._aborting:
            return
        self.disconnecting = True
        if self._inReadConnectionLost and not self._buffer and self.producer is None:
            # readConnectionLost, which has called the protocol, closes when that returns.
            return
        self.poller.removeReader(self)
        self.poller.addWriter(self)

    def loseWriteConnection(self) -> None:
        """
        End our half when all bytes have been sent, and go on reading.
        """
        if not (self.disconnecting or self.disconnected or self._aborting or self._outputEnds):
            self._outputEnds = True
            self.poller.addWriter(self)

    def isIdle(self) -> bool:
        """
        Return whether nothing has begun: no line, no PROXY header, no handshake, and no bytes wait
        to be sent.
        """
        protocol: Any = self.protocol
        if self.stage is not None:
            return super().isIdle()
        return not self._buffer and (not IDrainable.providedBy(protocol) or protocol.isIdle())

    def close(self) -> None:
        """
        Close in good order, because the daemon wants to.
        """
        protocol: Any = self.protocol
        if self.stage is None:
            self._stopProducer()
            if IDrainable.providedBy(protocol):
                protocol.close()
            else:
                self.loseConnection()
        else:
            super().close()

    def readConnectionLost(self, reason: Failure) -> None:
        """
        The peer has sent its last byte.

        A protocol without half-close is told when all bytes have been sent. If they have been sent
        already, and the protocol has closed, the connection ends now, and not in another turn of
        the reactor.
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
                    # The producer may be endless, and the protocol can't stop it before it knows of
                    # the end.
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
        Our half can't be used any more: end the connection.
        """
        self.connectionLost(reason)

    def _close(self) -> Exception | None:
        """
        All bytes have been sent: end the connection.

        If the peer may still send, or has not acknowledged everything, wait for it. The kernel
        answers bytes that it can't deliver with a reset, and a reset would destroy bytes that are
        still on their way.

        @return: Why the connection is over. None: it is not over yet.
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
        All bytes have been sent: end our half (FIN).
        """
        self._outputEnded = True
        self._mayWriteNow = False
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The connection is lost. The next read will say so.
            return
        protocol: Any = self.protocol
        if IHalfCloseableProtocol.providedBy(protocol):
            protocol.writeConnectionLost()

    def sayFarewell(self) -> None:
        """
        Send nothing more: end our half, and wait until the peer ends its own.
        """
        self.record.closeWith(CloseReason.CLIENT_CLOSED)
        self.disconnecting = True
        self._outputEnded = True
        self._mayWriteNow = False
        self._buffer.clear()
        self.poller.remove(self)
        Farewell(self).begin()
