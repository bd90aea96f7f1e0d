"""
The protocol of the echo contract, and nothing else.
"""

from twisted.internet.interfaces import IHalfCloseableProtocol, ITransport
from twisted.protocols.basic import LineReceiver
from zope.interface import implementer

from kvserver.interfaces import ICountsWork, IDrainable

LF = b"\n"
"""
The byte that ends a line.
"""

_BARE = LF * (64 * 1024)


def _count(data: bytes) -> int:
    """
    Return how many lines end in C{data}.

    C{bytes.count} examines every byte by itself. That takes longer than everything else that is
    done with the data, and longest if every byte is an LF. One comparison recognizes that case.
    """
    return len(data) if _BARE.startswith(data) else data.count(LF)


@implementer(IHalfCloseableProtocol, IDrainable, ICountsWork)
class EchoProtocol(LineReceiver):
    """
    Sends each line back when it is complete, byte for byte.

    A line ends with LF. A CR before it is part of the line, and no other byte has a meaning. A line
    longer than L{MAX_LENGTH} comes back in pieces of that length, as with the option C{packet:
    :line} of Erlang's C{gen_tcp}. The echo depends on the bytes alone, never on how the network cut
    them.

    If a peer does not read its echo, the transport does not read from the peer. So a connection
    never holds more than one line buffer and one write buffer.

    @cvar MAX_LENGTH: The size of the line buffer, in bytes.

    @ivar count: How many lines have been received, and so have been sent back.
    """

    transport: ITransport
    delimiter = LF
    MAX_LENGTH = 64 * 1024
    unit = "lines"
    count = 0

    def __init__(self) -> None:
        # The beginning of an incomplete line, always shorter than MAX_LENGTH. A bytearray grows in
        # place, so a line that arrives byte by byte costs no more than one that arrives whole.
        self._unfinished = bytearray()

    def dataReceived(self, data: bytes) -> None:
        """
        Send back everything that C{data} completes, in one write, and keep the rest.

        L{LineReceiver} would split off the lines one by one, in quadratic time. The echo of many
        lines consists of the same bytes, so it is enough to find the end of the last line.

        @param data: The next bytes, cut anywhere.
        """
        size = len(data)
        unfinished = self._unfinished
        first = data.find(LF) + 1
        if 0 < first == size and not unfinished:
            # The most frequent case: exactly one line.
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
            # Neither a line nor a piece of one is complete yet.
            unfinished += data
        elif cut == size and not unfinished:
            self.transport.write(data)
        else:
            self.transport.write(b"".join((unfinished, memoryview(data)[:cut])))
            unfinished[:] = data[cut:]

    def isIdle(self) -> bool:
        """
        Return whether no line has begun.
        """
        return not self._unfinished

    def close(self) -> None:
        """
        Close the connection.
        """
        self.transport.loseConnection()

    def clearLineBuffer(self) -> bytes:
        """
        Forget the beginning of an incomplete line.

        @return: The forgotten bytes.
        """
        unfinished = bytes(self._unfinished)
        self._unfinished.clear()
        return unfinished

    def readConnectionLost(self) -> None:
        """
        The peer has sent its last byte (FIN): send back the incomplete last line, if there is one,
        and close.

        Without this half of L{IHalfCloseableProtocol}, the transport would drop what it has not
        sent yet. Without the close, a peer that waits for our FIN would wait forever.
        """
        if self._unfinished:
            self.transport.write(self.clearLineBuffer())
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """
        Only our own half was closed. That never happens: we close both halves together.
        """
