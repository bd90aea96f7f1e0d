"""
What came against what was sent, byte for byte. It does no I/O.

As long as both are the same it only compares. At the first difference it keeps what comes until a
later line is in its place again, and then says what the difference was.
"""

import math
from collections.abc import Callable

from kvserver.check.classify import Classifier, Difference, commonPrefix
from kvserver.check.faults import (
    DAMAGED,
    DUPLICATED,
    EARLY,
    INSERTED,
    LOST,
    SHOWN,
    Fault,
    Faults,
)
from kvserver.check.missing import MissingLines
from kvserver.check.place import PlaceFinder
from kvserver.check.sent import Sent
from kvserver.check.stream import PIECE, ISource

KEPT = 1 << 20
"""
How much is kept of what comes after a difference, in bytes, besides two of the longest lines.
"""


class Comparison:
    """
    Compares what comes on a connection with what was sent on it.

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
        self._sent = Sent(source)
        self._finder = PlaceFinder(self._sent, connection, foreign is not None)
        self._classifier = Classifier(connection, source, foreign, self._sent)
        self._limit = KEPT + 2 * source.longest
        self.local: str | None = None
        self.returnedLines = 0
        self.returnedBytes = 0
        self.holdsBack = False
        self.difference: bytearray | None = None
        self._pieceNumber = 0
        self._piece: bytes | None = None
        self._pieceAt = 0
        self._seenAt = 0.0
        self._trimmed = 0
        self._early: Fault | None = None
        self._unfilled: Fault | None = None
        self._missing = MissingLines(self._sent, self._finder.hasHeaders, faults)

    @property
    def sent(self) -> int:
        """
        How many bytes have been sent. Whoever sends says so by L{wrote}.
        """
        return self._sent.size

    @property
    def sentLines(self) -> int:
        """
        How many whole lines have been sent.
        """
        return self._sent.lines

    @property
    def line(self) -> int:
        """
        The line that is being received, from 0.
        """
        return self._sent.line

    @property
    def _begun(self) -> int:
        return self.position - self._sent.start

    @property
    def position(self) -> int:
        """
        How far the sent stream has been dealt with, in bytes.
        """
        return self._sent.start + self._pieceNumber * PIECE + self._pieceAt

    @property
    def isMidLine(self) -> bool:
        """
        Has the line that is being received begun to come?
        """
        if self.difference is not None:
            return bool(self.difference) and self.difference[-1:] != b"\n"
        return self.position > self._sent.start

    def wrote(self, size: int, lines: int) -> None:
        """
        So many bytes more have been sent, and with them the ends of so many lines.
        """
        self._sent.size += size
        self._sent.lines += lines

    def received(self, data: bytes, now: float) -> None:
        """
        Something came.

        @param now: The time, by the monotonic clock, in seconds.
        """
        self._missing.tell(now)
        if self._unfilled is not None:
            # The place was found before so much had come as is shown.
            self._unfilled.received += data[: SHOWN - len(self._unfilled.received)]
            self._unfilled = None if len(self._unfilled.received) == SHOWN else self._unfilled
        while True:
            if self.difference is None:
                data = self._advance(data)
                if self.holdsBack:
                    self._checkEarly(now)
                if not data:
                    return
                self.difference = bytearray()
                self._seenAt, self._trimmed = now, 0
                self._finder.begin()
            self.difference += data
            place = self._finder.find(self.difference, 0 if self._trimmed else self._begun)
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
            self._settle(self._sent.lineOf(end), end, len(self.difference))
        if inOrder and self.position < self.sent:
            at = self.position
            self._report(LOST, at, self.sent - at, now, self._sent.slice(at, at + SHOWN), b"")
            line = self._sent.lineOf(self.sent)
            if line > self.line:
                self._passed(line - self.line, False)
            self._moveTo(line, self.sent)
        self._missing.tell(math.inf)

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
                    self._sent.start += self._pieceNumber * PIECE + size
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
        self._piece, self._pieceAt, self._sent.line = piece, at, line
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
        elif self.line >= self.sentLines and position > self._sent.start:
            begin = self._sent.start
            came = self._sent.slice(begin, min(position, begin + SHOWN))
            sent = self._sent.slice(begin, min(self.sent, begin + SHOWN))
            self._early = self._report(EARLY, begin, position - begin, now, sent, came)

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
        at = offset - self._sent.start
        sent = self._sent.slice(offset, start) if start > offset else b""
        extra = begin - (start - offset)
        expected = self._sent.slice(offset, min(self.sent, offset + SHOWN))
        if begin or extra:
            isLate = at == 0 and extra == begin and self._missing.came(came[:begin], start)
            if not isLate:
                difference = Difference(offset, sent, came, begin, extra)
                if trimmed:
                    kind, length = (INSERTED, extra) if extra > 0 else (DAMAGED, len(sent))
                else:
                    kind, length = self._classifier.classify(difference)
                isWhole = kind == LOST and not begin and start - self._sent.startOf(line) == at
                fault = self._report(
                    kind, offset, length, self._seenAt, expected, came[:SHOWN], not isWhole
                )
                self._unfilled = fault if len(fault.received) < SHOWN else None
                if isWhole:
                    self._missing.add(fault, range(self.line, line))
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

    def _likelyEnd(self) -> int:
        """
        Up to where of the sent stream has something come, when the connection broke off after a
        difference?
        """
        assert self.difference is not None
        position = self.position
        sent = self._sent.slice(
            position, min(self.sent, position + KEPT + 2 * len(self.difference))
        )
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
        self._finder.begin(SHOWN)

    def _report(
        self,
        kind: str,
        offset: int,
        length: int,
        time: float,
        expected: bytes,
        came: bytes,
        isKnown: bool = True,
    ) -> Fault:
        line = self._sent.lineOf(offset)
        fault = Fault(kind, line, offset, length, time, expected, came, self._connection)
        fault.local = self.local
        self._faults.add(fault, isKnown)
        return fault

    def _moveTo(self, line: int, offset: int) -> None:
        self._sent.start, self._sent.line = self._sent.startOf(line), line
        self._pieceNumber, self._pieceAt = divmod(offset - self._sent.start, PIECE)
        self._piece = None
