"""
The stream that was sent on a connection, by offsets: which line holds a byte, where a line begins.
"""

from kvserver.check.stream import PIECE, ISource


class Sent:
    """
    The stream that was sent. A place in it is known, from which others are counted.

    @ivar source: Its lines.

    @ivar size: How many bytes have been sent.

    @ivar lines: How many whole lines.

    @ivar line: The line whose beginning is known.

    @ivar start: Its offset.
    """

    def __init__(self, source: ISource) -> None:
        self.source = source
        self.size = self.lines = self.line = self.start = 0

    def startOf(self, line: int) -> int:
        """
        The offset of a line.
        """
        source = self.source
        if source.shortest == source.longest:
            size: int = source.longest
            return self.start + (line - self.line) * size
        if line >= self.line:
            return self.start + sum(map(source.size, range(self.line, line)))
        return self.start - sum(map(source.size, range(line, self.line)))

    def lineOf(self, offset: int) -> int:
        """
        The line that holds the byte at this offset, or is the next to come there.
        """
        source = self.source
        if source.shortest == source.longest:
            size: int = source.longest
            return self.line + (offset - self.start) // size
        line, start = self.line, self.start
        while start > offset:
            line -= 1
            start -= source.size(line)
        while line < self.lines and start + source.size(line) <= offset:
            start += source.size(line)
            line += 1
        return line

    def slice(self, begin: int, end: int) -> bytes:
        """
        The bytes of the sent stream between two offsets.
        """
        end = min(end, self.size)
        if begin >= end:
            return b""
        line = self.lineOf(begin)
        start = at = self.startOf(line)
        data = []
        while at < end:
            size = self.source.size(line)
            for number in range(max(0, begin - start) // PIECE, (size + PIECE - 1) // PIECE):
                if start + number * PIECE >= end:
                    break
                piece = self.source.piece(line, number)
                at = start + number * PIECE
                data.append(piece[max(0, begin - at) : end - at])
            start += size
            at = start
            line += 1
        return b"".join(data)
