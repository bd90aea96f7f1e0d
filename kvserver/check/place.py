"""
Where a stream is in its place again, after a difference.
"""

from kvserver.check.sent import Sent
from kvserver.check.stream import HEADER, HEADER_ROOM, wholeLine

ENOUGH = 4096
"""
A line is in its place again when it has come whole, or so many bytes of it.
"""

_FEW = 16

_TRIED = 256
"""
How many of the next lines are looked for, where lines are too short for a header.
"""


class PlaceFinder:
    """
    Looks for the next line that is in its place again, in what comes since a difference.

    @ivar hasHeaders: Can lines be known by their headers?
    """

    def __init__(self, sent: Sent, connection: int, isStream: bool) -> None:
        """
        @param connection: The number of the connection.

        @param isStream: Are the lines those of a L{kvserver.check.stream.Stream}?
        """
        self._sent = sent
        self._connection = connection
        self.hasHeaders = isStream and sent.source.longest >= HEADER_ROOM
        self._hasShort = not isStream or sent.source.shortest < HEADER_ROOM
        self._searched = 0

    def begin(self, searched: int = 0) -> None:
        """
        Another difference.

        @param searched: How much of what has come since need not be looked at.
        """
        self._searched = searched

    def find(self, came: bytearray, begun: int) -> tuple[int, int, int] | None:
        """
        Look for it.

        @param came: What has come since the difference.

        @param begun: How much of the line that differs had come before, in bytes. 0 also where that
            is not known any more.

        @return: Its number, its offset in the sent stream, and where it begins in what came; None:
            not yet.
        """
        place = self._findBegun(came, begun)
        if place is not None:
            return place
        best: tuple[int, int] | None = None
        waits = len(came)
        if self.hasHeaders:
            for match in HEADER.finditer(came, self._searched):
                line = int(match[1], 16)
                if (
                    int(match[2], 16) == self._connection
                    and self._sent.line <= line < self._sent.lines
                ):
                    isThere = self._isThere(came, line, match.start())
                    if isThere:
                        best = line, match.start()
                    if isThere is None:
                        waits = match.start()
                    if isThere is not False:
                        break
        if self._hasShort:
            for line in range(self._sent.line, min(self._sent.line + _TRIED, self._sent.lines)):
                begin = self._findShort(came, line, len(came) if best is None else best[1])
                if begin is not None:
                    best = line, begin
        if best is not None and best[1] <= waits:
            return best[0], self._sent.startOf(best[0]), best[1]
        # A header may have come in part.
        self._searched = max(self._searched, min(waits, len(came) - HEADER_ROOM), 0)
        return None

    def _findBegun(self, came: bytearray, begun: int) -> tuple[int, int, int] | None:
        """
        Is it another line of this connection that came, with the same first bytes?
        """
        if not 0 < begun < HEADER_ROOM or not self.hasHeaders:
            return None
        head = self._sent.slice(self._sent.start, self._sent.start + begun)
        match = HEADER.match(head + came[:HEADER_ROOM])
        if not match or int(match[2], 16) != self._connection:
            return None
        line = int(match[1], 16)
        if not self._sent.line < line < self._sent.lines:
            return None
        expected = self._sent.source.piece(line, 0)[: min(self._sent.source.size(line), ENOUGH)]
        if head + came[: len(expected) - begun] != expected:
            return None
        return line, self._sent.startOf(line) + begun, 0

    def _isThere(self, came: bytearray, line: int, begin: int) -> bool | None:
        """
        Has this line come there? None: what has come of it is right.
        """
        need = min(self._sent.source.size(line), ENOUGH)
        expected = self._sent.source.piece(line, 0)[:need]
        part = bytes(came[begin : begin + need])
        if part == expected:
            return True
        return None if expected.startswith(part) else False

    def _findShort(self, came: bytearray, line: int, before: int) -> int | None:
        """
        Where has this line come that is too short for a header? It must be followed by the next
        ones, until that is no coincidence.
        """
        if self._sent.source.size(line) >= HEADER_ROOM and self.hasHeaders:
            return None
        expected = b""
        following = line
        while len(expected) < _FEW and following < self._sent.lines:
            expected += wholeLine(self._sent.source, following)
            following += 1
        if len(expected) < _FEW:
            return None
        expected = expected[: max(_FEW, self._sent.source.size(line))]
        found = came.find(expected, 0, before + len(expected) - 1)
        return None if found < 0 else found
