"""
An accepted connection that a protocol uses.
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

from kvserver.connections.connection import DONE
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
    An accepted connection, as the transport of a protocol: what is read, and how it closes.
    """

    _isPaused = False
    _inputEnded = False
    _inReadConnectionLost = False

    def connect(self, protocol: IProtocol) -> None:
        """
        The connection can be used, by C{protocol}.
        """
        self.protocol = protocol
        protocol.makeConnection(self)
        self._read()

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

    def isIdle(self) -> bool:
        """
        Is nothing begun: no line, no header, no handshake, nothing that waits to be sent?
        """
        if self.stage is not None:
            return not self.stage.hasReceived
        protocol: Any = self.protocol
        return not self._buffer and (not IDrainable.providedBy(protocol) or protocol.isIdle())

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
        self.record.closeWith(CloseReason.CLIENT_CLOSED)
        self.disconnecting = True
        self._outputEnded = True
        self._mayWriteNow = False
        self._buffer.clear()
        self.poller.remove(self)
        Farewell(self).begin()
