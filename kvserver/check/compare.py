"""
What came against what was sent, byte for byte. It does no I/O.

As long as both are the same it only compares. At the first difference it keeps what comes until a
later line is in its place again, and then says what the difference was.
"""

from collections import deque
from collections.abc import Callable

from kvserver.check.classify import Classifier, Difference, commonPrefix
from kvserver.check.faults import (
    DAMAGED,
    DUPLICATED,
    EARLY,
    INSERTED,
    LOST,
    REORDERED,
    SHOWN,
    Fault,
    Faults,
)
from kvserver.check.stream import HEADER, HEADER_ROOM, PIECE, ISource, wholeLine

KEPT = 1 << 20
"""
How much is kept of what comes after a difference, in bytes, besides two of the longest lines.
"""

ENOUGH = 4096
"""
A line is in its place again when it has come whole, or so many bytes of it.
"""

_FEW = 16

_TRIED = 256
"""
How many of the next lines are looked for, where lines are too short for a header.
"""


class Missing:
    """
    Whole lines that did not come in their place. If they come later, they were reordered.
    """

    def __init__(self, fault: Fault, lines: range) -> None:
        self.fault = fault
        self.lines = lines
        self.came = 0


class Comparison:
    """
    Compares what comes on a connection with what was sent on it.

    @ivar sent: How many bytes have been sent. Whoever sends says so by L{wrote}.

    @ivar line: The line that is being received, from 0.

    @ivar returnedLines: How many lines have come back in their place, byte for byte.

    @ivar returnedBytes: How many bytes have.

    @ivar holdsBack: Lines are sent in parts, and no byte of a line may come before its end is sent.

    @ivar difference: The bytes that came since the first difference, until a line is in its place
        again; None: there is none.
    """

    def __init__(
        self,
        source: ISource,
        faults: Faults,
        connection: int = 0,
        foreign: Callable[[int], ISource] | None = None,
        passed: Callable[[int, bool], None] = lambda count, inPlace: None,
    ) -> None:
        """
        @param faults: What is found.

        @param connection: The number of the connection.

        @param foreign: Generates the lines of the connection of that number.

        @param passed: Called with how many lines are behind us, and whether they came in their
            place.
        """
        self._source = source
        self._faults = faults
        self._connection = connection
        self._passed = passed
        self._classifier = Classifier(connection, source, foreign, self._slice, self._startOf)
        self._hasHeaders = foreign is not None and source.longest >= HEADER_ROOM
        self._hasShort = foreign is None or source.shortest < HEADER_ROOM
        self._limit = KEPT + 2 * source.longest
        self.local: str | None = None
        self.sent = 0
        self.sentLines = 0
        self.line = 0
        self.returnedLines = 0
        self.returnedBytes = 0
        self.holdsBack = False
        self.difference: bytearray | None = None
        self._lineStart = 0
        self._pieceNumber = 0
        self._piece: bytes | None = None
        self._pieceAt = 0
        self._seenAt = 0.0
        self._trimmed = 0
        self._searched = 0
        self._early: Fault | None = None
        self._missing: deque[Missing] = deque(maxlen=16)

    @property
    def position(self) -> int:
        """
        How far the sent stream has been dealt with, in bytes.
        """
        return self._lineStart + self._pieceNumber * PIECE + self._pieceAt

    @property
    def isMidLine(self) -> bool:
        """
        Has the line that is being received begun to come?
        """
        if self.difference is not None:
            return bool(self.difference) and self.difference[-1:] != b"\n"
        return self.position > self._lineStart

    def wrote(self, size: int, lines: int) -> None:
        """
        So many bytes more have been sent, and with them the ends of so many lines.
        """
        self.sent += size
        self.sentLines += lines

    def received(self, data: bytes, now: float) -> None:
        """
        Something came.

        @param now: The time, by the monotonic clock, in seconds.
        """
        while True:
            if self.difference is None:
                data = self._advance(data)
                if self.holdsBack:
                    self._checkEarly(now)
                if not data:
                    return
                self.difference = bytearray()
                self._seenAt, self._searched, self._trimmed = now, 0, 0
            self.difference += data
            place = self._findPlace()
            if place is None:
                if len(self.difference) > self._limit:
                    self._trim()
                return
            data = self._settle(*place)

    def finish(self, inOrder: bool, now: float) -> None:
        """
        Nothing more will come.

        @param inOrder: The other side has said so when it had got all: then what is owed is lost.
        """
        if self.difference is not None:
            end = self.sent if inOrder else self._likelyEnd()
            self._settle(self._lineOf(end), end, len(self.difference))
        if inOrder and self.position < self.sent:
            at = self.position
            self._report(LOST, at, self.sent - at, now, self._slice(at, at + SHOWN), b"")
            line = self._lineOf(self.sent)
            if line > self.line:
                self._passed(line - self.line, False)
            self._moveTo(line, self.sent)

    def _advance(self, data: bytes) -> bytes:
        """
        Compare, as far as nothing differs.

        @return: What came from the first difference on.
        """
        piece, at, line = self._piece, self._pieceAt, self.line
        source = self._source
        begin = 0
        # More than was sent can't be in its place.
        end = min(len(data), self.sent - self.position)
        done = 0
        while begin < end:
            if piece is None:
                piece = source.piece(line, self._pieceNumber)
            size = len(piece)
            if end - begin >= size - at:
                if not data.startswith(piece[at:] if at else piece, begin):
                    break
                begin += size - at
                at = 0
                if size == PIECE and (self._pieceNumber + 1) * PIECE < source.size(line):
                    self._pieceNumber += 1
                else:
                    self._lineStart += self._pieceNumber * PIECE + size
                    self._pieceNumber = 0
                    line += 1
                    done += 1
                piece = None
            elif piece.startswith(data[begin:end], at):
                at += end - begin
                begin = end
            else:
                break
        if begin < end and piece is not None:
            same = commonPrefix(data[begin : begin + len(piece) - at], piece[at:])
            begin += same
            at += same
        self._piece, self._pieceAt, self.line = piece, at, line
        self.returnedBytes += begin
        if done:
            self.returnedLines += done
            self._passed(done, True)
        return data[begin:] if begin < len(data) else b""

    def _checkEarly(self, now: float) -> None:
        """
        Has something come of the line whose end is not sent yet?
        """
        position = self.position
        if self._early is not None and self._early.line == self.line:
            if self.line >= self.sentLines:
                self._early.length = position - self._early.offset
        elif self.line >= self.sentLines and position > self._lineStart:
            begin = self._lineStart
            came = self._slice(begin, min(position, begin + SHOWN))
            sent = self._slice(begin, min(self.sent, begin + SHOWN))
            self._early = self._report(EARLY, begin, position - begin, now, sent, came)

    def _findPlace(self) -> tuple[int, int, int] | None:
        """
        Look for the next line that is in its place again.

        @return: Its number, its offset in the sent stream, and where it begins in what came; None:
            not yet.
        """
        assert self.difference is not None
        place = self._findBegun()
        if place is not None:
            return place
        best: tuple[int, int] | None = None
        waits = len(self.difference)
        if self._hasHeaders:
            for match in HEADER.finditer(self.difference, self._searched):
                line = int(match[1], 16)
                if int(match[2], 16) == self._connection and self.line <= line < self.sentLines:
                    isThere = self._isThere(line, match.start())
                    if isThere:
                        best = line, match.start()
                    if isThere is None:
                        waits = match.start()
                    if isThere is not False:
                        break
        if self._hasShort:
            for line in range(self.line, min(self.line + _TRIED, self.sentLines)):
                begin = self._findShort(line, len(self.difference) if best is None else best[1])
                if begin is not None:
                    best = line, begin
        if best is not None and best[1] <= waits:
            return best[0], self._startOf(best[0]), best[1]
        # A header may have come in part.
        self._searched = max(self._searched, min(waits, len(self.difference) - HEADER_ROOM), 0)
        return None

    def _findBegun(self) -> tuple[int, int, int] | None:
        """
        Is it another line of this connection that came, with the same first bytes?
        """
        assert self.difference is not None
        begun = self.position - self._lineStart
        if not 0 < begun < HEADER_ROOM or not self._hasHeaders or self._trimmed:
            return None
        head = self._slice(self._lineStart, self.position)
        match = HEADER.match(head + self.difference[:HEADER_ROOM])
        if not match or int(match[2], 16) != self._connection:
            return None
        line = int(match[1], 16)
        if not self.line < line < self.sentLines:
            return None
        expected = self._source.piece(line, 0)[: min(self._source.size(line), ENOUGH)]
        if head + self.difference[: len(expected) - begun] != expected:
            return None
        return line, self._startOf(line) + begun, 0

    def _isThere(self, line: int, begin: int) -> bool | None:
        """
        Has this line come there? None: what has come of it is right.
        """
        assert self.difference is not None
        need = min(self._source.size(line), ENOUGH)
        expected = self._source.piece(line, 0)[:need]
        came = bytes(self.difference[begin : begin + need])
        if came == expected:
            return True
        return None if expected.startswith(came) else False

    def _findShort(self, line: int, before: int) -> int | None:
        """
        Where has this line come that is too short for a header? It must be followed by the next
        ones, until that is no coincidence.
        """
        assert self.difference is not None
        if self._source.size(line) >= HEADER_ROOM and self._hasHeaders:
            return None
        expected = b""
        following = line
        while len(expected) < _FEW and following < self.sentLines:
            expected += wholeLine(self._source, following)
            following += 1
        if len(expected) < _FEW:
            return None
        expected = expected[: max(_FEW, self._source.size(line))]
        found = self.difference.find(expected, 0, before + len(expected) - 1)
        return None if found < 0 else found

    def _settle(self, line: int, start: int, begin: int) -> bytes:
        """
        From there on all is in its place again: say what it was before.

        @param line: The number of the line.

        @param start: Its offset in the sent stream.

        @param begin: Where it begins in what came since the difference.

        @return: What came from there on.
        """
        assert self.difference is not None
        offset, came, self.difference = self.position, bytes(self.difference), None
        trimmed, self._trimmed = self._trimmed, 0
        begin += trimmed
        at = offset - self._lineStart
        sent = self._slice(offset, start) if start > offset else b""
        extra = begin - (start - offset)
        expected = self._slice(offset, min(self.sent, offset + SHOWN))
        if begin or extra:
            found = self._wholeLines(came[:begin]) if at == 0 else None
            if not (found and extra == begin and self._cameLate(found, extra, start)):
                difference = Difference(offset, sent, came, begin, extra)
                if trimmed:
                    kind, length = (INSERTED, extra) if extra > 0 else (DAMAGED, len(sent))
                else:
                    kind, length = self._classifier.classify(difference)
                fault = self._report(kind, offset, length, self._seenAt, expected, came[:SHOWN])
                if kind == LOST and not begin and start - self._startOf(line) == at:
                    self._missing.append(Missing(fault, range(self.line, line)))
                self.returnedBytes += max(0, start - offset)
                if kind not in (INSERTED, DUPLICATED):
                    self.returnedBytes -= min(length, max(0, start - offset))
        if start < offset:
            # The line comes whole again.
            self.returnedBytes -= offset - start
        if line > self.line:
            self._passed(line - self.line, False)
        self._moveTo(line, start)
        return came[begin - trimmed :]

    def _wholeLines(self, came: bytes) -> list[int] | None:
        """
        The numbers of the lines of this connection that C{came} consists of; None: of others, too.
        """
        lines = []
        begin = 0
        while begin < len(came):
            line = self._lineAt(came, begin)
            if line is None:
                return None
            lines.append(line)
            begin += self._source.size(line)
        return lines

    def _lineAt(self, came: bytes, begin: int) -> int | None:
        match = HEADER.match(came, begin) if self._hasHeaders else None
        if match:
            candidates = [int(match[1], 16)]
        else:
            candidates = [line for missing in self._missing for line in missing.lines[:_TRIED]]
        for line in candidates:
            if line < self.sentLines and came.startswith(wholeLine(self._source, line), begin):
                return line
        return None

    def _cameLate(self, found: list[int], extra: int, start: int) -> bool:
        """
        Are these lines that were missing before? Then that was no loss.
        """
        for missing in self._missing:
            late = [line for line in set(found) if line in missing.lines]
            if late:
                missing.came += len(late)
                size = sum(self._source.size(line) for line in late)
                fault = missing.fault
                if missing.came < len(missing.lines):
                    self._faults.amend(fault, LOST, fault.length - size)
                elif extra > size:
                    self._faults.amend(fault, DUPLICATED, extra - size)
                else:
                    self._faults.amend(fault, REORDERED, start - fault.offset)
                if missing.came >= len(missing.lines):
                    self._missing.remove(missing)
                return True
        return False

    def _likelyEnd(self) -> int:
        """
        Up to where of the sent stream has something come, when the connection broke off after a
        difference?
        """
        assert self.difference is not None
        position = self.position
        sent = self._slice(position, min(self.sent, position + KEPT + 2 * len(self.difference)))
        tail = bytes(self.difference[-32:])
        found = sent.find(tail) if len(tail) > 3 else -1
        if found < 0:
            return position + min(len(sent), len(self.difference) + self._trimmed)
        return position + found + len(tail)

    def _trim(self) -> None:
        """
        Too much has come since the difference: keep its beginning, for the report, and its end.
        """
        assert self.difference is not None
        keep = max(self._source.longest, PIECE)
        cut = len(self.difference) - keep
        self._trimmed += cut - SHOWN
        del self.difference[SHOWN:cut]
        self._searched = SHOWN

    def _report(
        self, kind: str, offset: int, length: int, time: float, expected: bytes, came: bytes
    ) -> Fault:
        line = self._lineOf(offset)
        fault = Fault(kind, line, offset, length, time, expected, came, self._connection)
        fault.local = self.local
        self._faults.add(fault)
        return fault

    def _moveTo(self, line: int, offset: int) -> None:
        self.line, self._lineStart = line, self._startOf(line)
        self._pieceNumber, self._pieceAt = divmod(offset - self._lineStart, PIECE)
        self._piece = None

    def _startOf(self, line: int) -> int:
        """
        The offset of a line.
        """
        source = self._source
        if source.shortest == source.longest:
            size: int = source.longest
            return self._lineStart + (line - self.line) * size
        if line >= self.line:
            return self._lineStart + sum(map(source.size, range(self.line, line)))
        return self._lineStart - sum(map(source.size, range(line, self.line)))

    def _lineOf(self, offset: int) -> int:
        """
        The line that holds the byte at this offset, or is the next to come there.
        """
        source = self._source
        if source.shortest == source.longest:
            size: int = source.longest
            return self.line + (offset - self._lineStart) // size
        line, start = self.line, self._lineStart
        while start > offset:
            line -= 1
            start -= source.size(line)
        while line < self.sentLines and start + source.size(line) <= offset:
            start += source.size(line)
            line += 1
        return line

    def _slice(self, begin: int, end: int) -> bytes:
        """
        The bytes of the sent stream between two offsets.
        """
        end = min(end, self.sent)
        if begin >= end:
            return b""
        line = self._lineOf(begin)
        start = at = self._startOf(line)
        data = []
        while at < end:
            size = self._source.size(line)
            for number in range(max(0, begin - start) // PIECE, (size + PIECE - 1) // PIECE):
                if start + number * PIECE >= end:
                    break
                piece = self._source.piece(line, number)
                at = start + number * PIECE
                data.append(piece[max(0, begin - at) : end - at])
            start += size
            at = start
            line += 1
        return b"".join(data)
