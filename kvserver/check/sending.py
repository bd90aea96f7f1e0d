"""
What a connection sends: its lines, one after the other, as far as it is told to.
"""

from collections import deque
from collections.abc import Callable

from kvserver.check.compare import Comparison
from kvserver.check.stream import PIECE, ISource
from kvserver.check.transport import Transport

TURN = 1 << 20
"""
How much one connection sends at a time, in bytes.
"""


class Sending:
    """
    The output of a connection.

    @ivar source: Its lines.

    @ivar comparison: What came back, against what was sent.

    @ivar transport: Its bytes.

    @ivar isOpen: Can it be sent on?

    @ivar ending: How it ended, one of the names in L{kvserver.check.run}; None: it has not.
    """

    comparison: Comparison
    transport: Transport

    def __init__(self, clock: Callable[[], float], source: ISource) -> None:
        """
        @param clock: The monotonic clock, in seconds.
        """
        self._clock = clock
        self.source = source
        self.isOpen = False
        self.ending: str | None = None
        self._progress = clock()
        self._goal = 0
        self._lineAtGoal = 0
        self._line = self._pieceNumber = self._generated = 0
        self._partial: bytes | None = None
        self._ready: deque[float] = deque()
        self._unsent: deque[tuple[int, float]] = deque()
        self._flight: deque[tuple[float, float]] = deque()
        self._buffer = memoryview(b"")
        self._endsOutput = self._outputEnded = False

    @property
    def owes(self) -> bool:
        """
        Is a whole line owed, or the other side's close?
        """
        return self.comparison.line < self.comparison.sentLines or self._outputEnded

    def send(self, size: int) -> None:
        """
        Send so many bytes more of the stream.
        """
        self._goal += size
        self.pump()

    def sendLines(self, count: int) -> None:
        """
        Send so many lines more.
        """
        line = self._lineAtGoal
        self._lineAtGoal += count
        self.send(sum(map(self.source.size, range(line, line + count))))

    def give(self, count: int, due: float) -> None:
        """
        So many lines more are due at that time. L{pump} sends them.
        """
        self._ready.extend([due] * count)
        size = self.source.size
        for line in range(self._lineAtGoal, self._lineAtGoal + count):
            self._goal += size(line)
        self._lineAtGoal += count

    def takeBack(self) -> list[float]:
        """
        Of the lines that were given, those that have not been sent: when they were due.
        """
        return [due for _, due in self._unsent] + list(self._ready)

    @property
    def inFlight(self) -> int:
        """
        How many of the lines that were given are not behind us.
        """
        return self._lineAtGoal - self.comparison.line

    def pump(self) -> None:
        """
        Send what is to be sent.
        """
        if not self.isOpen or self.ending is not None:
            return
        comparison = self.comparison
        limit = comparison.sent + TURN
        while True:
            if comparison.sent > limit:
                # The others have their turn.
                self.transport.askForTurn()
                return
            if not self._buffer:
                self._generate()
                if not self._buffer:
                    break
            now = self._clock()
            wasOwed = self.owes
            sent = self.transport.send(self._buffer)
            if not sent:
                return
            self._buffer = self._buffer[sent:]
            total = comparison.sent + sent
            lines = 0
            while self._unsent and self._unsent[0][0] <= total:
                self._flight.append((self._unsent.popleft()[1], now))
                lines += 1
            comparison.wrote(sent, lines)
            if not wasOwed:
                self._progress = now
            if self._buffer:
                return
        if self._endsOutput and not self._outputEnded:
            self._outputEnded = True
            self._progress = self._clock()
            self.transport.sendEnd()

    def _generate(self) -> None:
        """
        Generate about a L{PIECE} of what is to be sent.
        """
        room = self._goal - self._generated
        if room <= 0:
            return
        source, ready, unsent = self.source, self._ready, self._unsent
        parts = []
        size = 0
        while size < PIECE and size < room:
            piece = self._partial
            if piece is None:
                piece = source.piece(self._line, self._pieceNumber)
            self._partial = None
            if len(piece) > room - size:
                self._partial = piece[room - size :]
                piece = piece[: room - size]
                size += len(piece)
                parts.append(piece)
                break
            parts.append(piece)
            size += len(piece)
            if (self._pieceNumber + 1) * PIECE < source.size(self._line):
                self._pieceNumber += 1
            else:
                self._line += 1
                self._pieceNumber = 0
                due = ready.popleft() if ready else 0.0
                unsent.append((self._generated + size, due))
        self._generated += size
        self._buffer = memoryview(b"".join(parts) if len(parts) > 1 else parts[0])

    def sendNoMore(self) -> None:
        """
        End with the line that has been begun.
        """
        begun = self.source.size(self._line) - self._pieceNumber * PIECE
        if self._partial is not None:
            begun = len(self._partial) + max(0, begun - PIECE)
        elif not self._pieceNumber:
            begun = 0
        self._goal = self._generated + begun
        self._lineAtGoal = self._line + (begun > 0)
        self.pump()

    def sendUrgent(self) -> None:
        """
        Send the next byte of the stream as urgent. All before it has been sent.
        """
        piece = self._partial or self.source.piece(self._line, self._pieceNumber)
        self.transport.sendUrgent(piece[:1])
        self._partial = piece[1:]
        self._goal += 1
        self._generated += 1
        self.comparison.wrote(1, 0)

    def sendEnd(self) -> None:
        """
        When all is sent, say so: FIN, or close_notify.
        """
        self._endsOutput = True
        self.pump()
