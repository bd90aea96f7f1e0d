"""
Protocols to serve in place of the echo. Each does something that the echo never does.
"""

import random
from collections.abc import Iterator
from typing import Any

from twisted.internet import task
from twisted.internet.interfaces import IDelayedCall, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.basic import FileSender, LineReceiver
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from kvserver.interfaces import ICountsWork, IDrainable

MANY = 100 * (1 << 20)
"""
The number of bytes that L{Pouring} writes.
"""

FEW = 8 * (1 << 20)
"""
The number of bytes that L{PouringLess} writes. It is more than a socket takes.
"""


def poured(size: int, chunk: int) -> Iterator[bytes]:
    """
    Yield C{size} bytes in pieces of C{chunk}. No two pieces are the same, so that a digest shows
    whether one is missing or misplaced.
    """
    count = size // chunk
    source = random.Random(chunk).randbytes(chunk + count)
    for number in range(count):
        yield source[number : number + chunk]


@implementer(ICountsWork)
class Shouting(LineReceiver):
    """
    Answers each line in capitals, and writes every byte by itself. It counts lines as C{shouts}.
    """

    transport: ITransport
    delimiter = b"\n"
    unit = "shouts"
    count = 0

    def lineReceived(self, line: bytes) -> None:
        """
        Answer, each byte by itself.
        """
        for byte in line.upper():
            self.transport.write(bytes([byte]))
        self.transport.write(b"\n")
        self.count += 1


@implementer(ICountsWork)
class Ready(Protocol):
    """
    Has done one thing when it begins, and does no more. It counts as C{things}.
    """

    unit = "things"
    count = 1


@implementer(IDrainable, ICountsWork)
class Chatting(LineReceiver):
    """
    Answers a line that holds a number with as many words, one in each turn of the reactor.
    """

    transport: ITransport
    delimiter = b"\n"
    unit = "words"
    count = 0
    left = 0
    _next: IDelayedCall | None = None

    def lineReceived(self, line: bytes) -> None:
        """
        Start to talk, or talk longer.
        """
        self.left += int(line)
        if self._next is None:
            self._talk()

    def _talk(self) -> None:
        from twisted.internet import reactor

        self._next = None
        if self.left:
            self.left -= 1
            self.count += 1
            self.transport.write(b"and\n")
            clock: Any = reactor
            self._next = clock.callLater(0, self._talk)

    def isIdle(self) -> bool:
        """
        Return whether all words have been written.
        """
        return not self.left

    def close(self) -> None:
        """
        Say goodbye.
        """
        self.transport.write(b"so long\n")
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Stop talking.
        """
        if self._next is not None:
            self._next.cancel()


@implementer(IDrainable, ICountsWork)
class Thinking(Protocol):
    """
    Owes an answer to each question mark. It gives all of them at the next exclamation mark.
    """

    transport: ITransport
    unit = "thoughts"
    count = 0
    owed = 0
    closed = False

    def dataReceived(self, data: bytes) -> None:
        """
        Count the question marks, and look for an exclamation mark.
        """
        self.owed += data.count(b"?")
        if b"!" in data:
            self.answer()

    def answer(self) -> None:
        """
        Give all answers that are owed.
        """
        self.transport.write(b"!" * self.owed)
        self.count += self.owed
        self.owed = 0

    def isIdle(self) -> bool:
        """
        Return whether no answer is owed.
        """
        return not self.owed

    def close(self) -> None:
        """
        Say goodbye.
        """
        self.closed = True
        self.transport.write(b"goodbye\n")
        self.transport.loseConnection()


class Failing(Protocol):
    """
    Raises when it receives anything.
    """

    def dataReceived(self, data: bytes) -> None:
        """
        Raise.
        """
        raise ZeroDivisionError("on purpose")


@implementer(IDrainable)
class Restless(Protocol):
    """
    Says that it is never idle. It sends back what it receives. Once that held a C{"t"} it ticks.
    """

    transport: ITransport

    def __init__(self) -> None:
        self._ticks = task.LoopingCall(self._tick)

    def dataReceived(self, data: bytes) -> None:
        """
        Send C{data} back, and start to tick if it says so.
        """
        self.transport.write(data)
        if b"t" in data and not self._ticks.running:
            self._ticks.start(0.05, now=False)

    def _tick(self) -> None:
        self.transport.write(b"tick\n")

    def isIdle(self) -> bool:
        """
        Return false, always.
        """
        return False

    def close(self) -> None:
        """
        Close the connection.
        """
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Stop ticking.
        """
        if self._ticks.running:
            self._ticks.stop()


@implementer(ICountsWork)
class Greeting(Protocol):
    """
    Speaks first, and names the client's address. It closes when the client has answered.
    """

    transport: ITransport
    unit = "greetings"
    count = 0

    def connectionMade(self) -> None:
        """
        Greet.
        """
        host = getattr(self.transport.getPeer(), "host", "unix")
        self.transport.write(f"hello {host}\n".encode())
        self.count += 1

    def dataReceived(self, data: bytes) -> None:
        """
        Say goodbye, and close.
        """
        self.transport.write(b"bye\n")
        self.transport.loseConnection()


class Waiting(Protocol):
    """
    Pauses the transport when it is connected, and resumes it a little later. It sends back what it
    receives, and complains of what it receives too early.
    """

    transport: Any
    _isPaused = True

    def connectionMade(self) -> None:
        """
        Pause.
        """
        from twisted.internet import reactor

        self.transport.pauseProducing()
        clock: Any = reactor
        clock.callLater(0.05, self._resume)

    def _resume(self) -> None:
        self._isPaused = False
        self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """
        Answer.
        """
        self.transport.write(b"too early\n" if self._isPaused else data)


class Pouring(Protocol):
    """
    Writes much more than a socket takes, all at once, and closes.

    @cvar size: The number of bytes.

    @cvar chunk: The number of bytes in one write.
    """

    transport: ITransport
    size = MANY
    chunk = 1 << 20

    def connectionMade(self) -> None:
        """
        Write all, and close.
        """
        for data in poured(self.size, self.chunk):
            self.transport.write(data)
        self.transport.loseConnection()


class PouringLess(Pouring):
    """
    Writes less, but still more than a socket takes.
    """

    size = FEW


class PouringWhenAsked(Pouring):
    """
    Writes with a pull producer: Twisted's L{FileSender}.
    """

    size = 4 * FEW
    chunk = FileSender.CHUNK_SIZE

    def connectionMade(self) -> None:
        """
        Register the producer.
        """
        file = _File(poured(self.size, self.chunk))
        sending = FileSender().beginFileTransfer(file, self.transport)
        # It fails when the connection is lost before all has been written.
        sending.addCallbacks(lambda _: self.transport.loseConnection(), lambda _: None)


class _File:
    """
    As much of a file as a L{FileSender} uses.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, size: int) -> bytes:
        """
        Return the next piece, or nothing at the end.
        """
        return next(self._chunks, b"")


class PouringUntilPaused(Pouring):
    """
    Writes as a push producer, which goes on until it is paused.
    """

    transport: Any
    size = 4 * FEW
    chunk = FileSender.CHUNK_SIZE
    _isPaused = False

    def connectionMade(self) -> None:
        """
        Register as a producer, and begin to write.
        """
        self._left = poured(self.size, self.chunk)
        self.transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        """
        See C{IPushProducer}.
        """
        self._isPaused = False
        for data in self._left:
            self.transport.write(data)
            if self._isPaused:
                return
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def pauseProducing(self) -> None:
        """
        See C{IPushProducer}.
        """
        self._isPaused = True

    def stopProducing(self) -> None:
        """
        See C{IPushProducer}.
        """
        self._isPaused = True


class Page(Resource):
    """
    A page that names the client's address, and says whether the request is secure. At C{/pour} it
    is a page that is larger than what a socket takes.
    """

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        """
        Return the page.
        """
        if request.path == b"/pour":
            return b"".join(poured(FEW, Pouring.chunk))
        host = getattr(request.getClientAddress(), "host", "unix")
        return f"{host} {'secure' if request.isSecure() else 'plain'}\n".encode()


def site() -> Site:
    """
    Return a factory for Twisted's HTTP server.
    """
    return Site(Page())
