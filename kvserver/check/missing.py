"""
Lines that did not come in their place, and may come later.
"""

from collections import deque

from kvserver.check.faults import DUPLICATED, LOST, REORDERED, Fault, Faults
from kvserver.check.sent import Sent
from kvserver.check.stream import HEADER, wholeLine

_KEPT = 16
"""
How many losses of a connection may turn out to be none.
"""

_TRIED = 256

_LATEST = 1.0
"""
When lines have not come for so long, in seconds, their loss is told. If they come after all, that
is told then.
"""


class Missing:
    """
    Whole lines that did not come in their place. If they come later, they were reordered.
    """

    isTold = False

    def __init__(self, fault: Fault, lines: range) -> None:
        self.fault = fault
        self.lines = lines
        self.came = 0


class MissingLines:
    """
    The lines of a connection that are missing.
    """

    def __init__(self, sent: Sent, hasHeaders: bool, faults: Faults) -> None:
        """
        @param hasHeaders: Can lines be known by their headers?

        @param faults: Where their loss stands.
        """
        self._sent = sent
        self._hasHeaders = hasHeaders
        self._faults = faults
        self._missing: deque[Missing] = deque(maxlen=_KEPT)

    def add(self, fault: Fault, lines: range) -> None:
        """
        These lines did not come.
        """
        if len(self._missing) == _KEPT:
            self._tell(self._missing[0])
        self._missing.append(Missing(fault, lines))

    def tell(self, now: float) -> None:
        """
        Tell the losses that have stayed losses.

        @param now: The time, by the monotonic clock, in seconds; at the end infinity.
        """
        for missing in self._missing:
            if now - missing.fault.time > _LATEST:
                self._tell(missing)

    def _tell(self, missing: Missing) -> None:
        if not missing.isTold:
            missing.isTold = True
            self._faults.settle(missing.fault)

    def came(self, data: bytes, start: int) -> bool:
        """
        Are these lines that were missing before? Then that was no loss.

        @param data: What came between two lines that are in their place.

        @param start: The offset of the second of them.
        """
        found = self._wholeLines(data) if self._missing else None
        extra = len(data)
        for missing in self._missing:
            late = [line for line in set(found or ()) if line in missing.lines]
            if late:
                missing.came += len(late)
                size = sum(self._sent.source.size(line) for line in late)
                fault = missing.fault
                if missing.came < len(missing.lines):
                    self._faults.amend(fault, LOST, fault.length - size)
                elif extra > size:
                    self._faults.amend(fault, DUPLICATED, extra - size)
                else:
                    self._faults.amend(fault, REORDERED, start - fault.offset)
                if missing.came >= len(missing.lines):
                    self._missing.remove(missing)
                    self._faults.settle(fault)
                return True
        return False

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
            begin += self._sent.source.size(line)
        return lines

    def _lineAt(self, came: bytes, begin: int) -> int | None:
        match = HEADER.match(came, begin) if self._hasHeaders else None
        if match:
            candidates = [int(match[1], 16)]
        else:
            candidates = [line for missing in self._missing for line in missing.lines[:_TRIED]]
        for line in candidates:
            if line < self._sent.lines and came.startswith(
                wholeLine(self._sent.source, line), begin
            ):
                return line
        return None
