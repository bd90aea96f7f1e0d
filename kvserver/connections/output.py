"""
The half of a connection that is written to.
"""

from collections.abc import Iterable
from typing import Any

from twisted.internet.main import CONNECTION_LOST

from kvserver.connections.connection import Connection

CORK_SIZE = 64 * 1024
"""
How many bytes a protocol may write while it is given some, before they are sent.
"""

WRITE_SIZE = 128 * 1024
"""
How many bytes that have waited are offered to the kernel at once, at most.
"""


class Output(Connection):
    """
    The half of a connection that is written to.

    What is written goes to the socket at once. Twisted's own transport waits until the reactor says
    that the socket takes something, which costs two system calls and a turn of the reactor for each
    line. What a protocol writes after that, still in the same C{dataReceived}, goes together when
    that is over. What the socket does not take waits here, and as long as anything waits the peer
    is not read from.
    """

    streamingProducer = False
    producerPaused = False
    # Is what is written collected, to be sent in few segments?
    _isCorked = False
    _outputEnds = False
    _outputEnded = False

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
            self._bufferData(memoryview(data)[sent:])
        else:
            self._bufferData(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send them one after the other.
        """
        self.write(b"".join(data))

    def _bufferData(self, data: bytes | memoryview) -> None:
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
