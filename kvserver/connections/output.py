"""
The sending half of a connection.
"""

from collections.abc import Iterable
from typing import Any

from twisted.internet.main import CONNECTION_LOST

from kvserver.connections.connection import Connection

CORK_SIZE = 64 * 1024
"""
How many bytes a protocol may write during one C{dataReceived} before they are sent.
"""

WRITE_SIZE = 128 * 1024
"""
The most waiting bytes that are offered to the kernel at once.
"""


class Output(Connection):
    """
    The sending half of a connection.

    A write goes to the socket at once. Twisted's own transport waits until the reactor reports that
    the socket is writable, which costs two system calls and a turn of the reactor for each line.
    Further writes in the same C{dataReceived} are collected, and sent together when it returns.
    Bytes that the socket does not take wait in a buffer. As long as bytes wait, the peer is not
    read from.
    """

    streamingProducer = False
    producerPaused = False
    # Whether writes are collected, to be sent in few segments.
    _isCorked = False
    _outputEnds = False

    def write(self, data: bytes) -> None:
        """
        Send what the socket takes now, and the rest later.
        """
        if self._mayWriteNow:
            try:
                sent = self.socket.send(data)
            except OSError:
                # Either the socket is full, or it has an error, which comes again in doWrite.
                sent = 0
            self._count(sent)
            if sent == len(data):
                self._mayWriteNow = not self._isCorked
                return
            self._bufferData(memoryview(data)[sent:])
        else:
            self._bufferData(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send all of C{data}, one after the other.
        """
        self.write(b"".join(data))

    def _bufferData(self, data: bytes | memoryview) -> None:
        """
        Keep bytes, to send them later.
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
        Send the bytes that have been collected.
        """
        if not (self.disconnected or self._aborting or self._outputEnded):
            # An error comes again in doWrite.
            self._flush()
            if self._buffer:
                self._wait()
            elif not self._isCorked:
                self._mayWriteNow = self.producer is None or self.streamingProducer

    def _flush(self) -> Exception | None:
        """
        Send the bytes that wait, or the first of them.

        @return: Why no more bytes can be sent; None if they can.
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
        Count bytes that the kernel has taken.
        """
        self.record.sent += sent

    def isFlushed(self) -> bool:
        """
        Return whether no bytes wait to be sent.
        """
        return not self._buffer

    def goOnWriting(self) -> None:
        """
        Send the bytes that have waited since before the poller watched this transport.
        """
        if self._buffer:
            self.poller.addWriter(self)

    def _wait(self) -> None:
        """
        Bytes wait to be sent. Until they are gone, do not read from the peer, and pause a push
        producer.
        """
        self.poller.addWriter(self)
        self.poller.removeReader(self)
        if self.producer is not None and self.streamingProducer and not self.producerPaused:
            self.producerPaused = True
            self.producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Let a producer write, as defined by C{IConsumer}.

        @raise RuntimeError: Another producer is already registered.
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
            # A pull producer writes only through doWrite, which asks it for more.
            self._mayWriteNow = False
            self.poller.addWriter(self)
        elif self._buffer:
            self.producerPaused = True
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """
        Forget the producer: it has no more to write.
        """
        self.producer = None
        if not (self.disconnected or self._outputEnded or self._aborting):
            self._mayWriteNow = not self._buffer
            if self.disconnecting or self._outputEnds:
                self.poller.addWriter(self)

    def _stopProducer(self) -> None:
        """
        Stop the producer, because a transport does not close while its producer may write more.
        """
        producer = self.producer
        if producer is not None:
            self.unregisterProducer()
            producer.stopProducing()
