"""
The echo contract, and nothing else.
"""

from twisted.internet.interfaces import IHalfCloseableProtocol, ITransport
from twisted.protocols.basic import LineReceiver
from zope.interface import implementer

from kvserver.interfaces import ICountsWork, IDrainable

LF = b"\n"
"""
What ends a line.
"""

_BARE = LF * (64 * 1024)


def _count(data: bytes) -> int:
    """
    How many lines end in C{data}.

    C{bytes.count} looks at each byte by itself, which takes longer than all else that is done with
    it, and longest when all of them count: that is seen at a glance.
    """
    return len(data) if _BARE.startswith(data) else data.count(LF)


@implementer(IHalfCloseableProtocol, IDrainable, ICountsWork)
class EchoProtocol(LineReceiver):
    """
    Sends each line back when it is complete, byte for byte.

    A line ends with LF; a CR before it is part of the line, and no other byte has a meaning. A line
    that is longer than L{MAX_LENGTH} comes back in pieces of that length, as with the C{packet:
    :line} of Erlang's C{gen_tcp}. What is sent back depends on the bytes alone, never on how the
    network cut them.

    A peer that does not read its echo is not read from: that is the transport's business, so that
    a connection never holds more than one line buffer and one write buffer.

    @cvar MAX_LENGTH: The size of the line buffer, in bytes.

    @ivar count: How many lines have come in, and so have been sent back.
    """

    transport: ITransport
    delimiter = LF
    MAX_LENGTH = 64 * 1024
    unit = "lines"
    count = 0

    def __init__(self) -> None:
        # The beginning of a line that is not complete, always shorter than MAX_LENGTH. A bytearray
        # grows in place, so a line that arrives byte by byte costs no more than one that arrives
        # whole.
        self._unfinished = bytearray()

    def dataReceived(self, data: bytes) -> None:
        """
        Send back what C{data} completes, in one write, and keep the rest.

        L{LineReceiver} would take the lines apart one by one, in quadratic time. The echo of many
        lines is the same bytes, so it is enough to find the end of the last one.

        @param data: The next bytes, cut anywhere.
        """
        size = len(data)
        unfinished = self._unfinished
        first = data.find(LF) + 1
        if 0 < first == size and not unfinished:
            # One line and nothing else, as most often.
            self.count += 1
            self.transport.write(data)
            return
        last = data.rfind(LF) + 1
        if last:
            self.count += 1 if first == last else _count(data)
            keep = size - last
        else:
            keep = size + len(unfinished)
        keep %= self.MAX_LENGTH
        cut = size - keep
        if cut <= 0:
            # Nothing is complete yet, neither a line nor a piece of one.
            unfinished += data
        elif cut == size and not unfinished:
            self.transport.write(data)
        else:
            self.transport.write(b"".join((unfinished, memoryview(data)[:cut])))
            unfinished[:] = data[cut:]

    def isIdle(self) -> bool:
        """
        Is no line begun?
        """
        return not self._unfinished

    def close(self) -> None:
        """
        Close the connection.
        """
        self.transport.loseConnection()

    def clearLineBuffer(self) -> bytes:
        """
        Forget the beginning of a line that is not complete.

        @return: That beginning.
        """
        unfinished = bytes(self._unfinished)
        self._unfinished.clear()
        return unfinished

    def readConnectionLost(self) -> None:
        """
        The peer has sent its last byte (FIN): send back what is left, be it a whole line or not,
        and close.

        Without this half of L{IHalfCloseableProtocol} the transport would drop what it has not sent
        yet; without the close, a peer that waits for our FIN would wait for ever.
        """
        if self._unfinished:
            self.transport.write(self.clearLineBuffer())
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """
        Our own half was closed alone. That never happens: we close both halves together.
        """
