"""
A fault, and the list of them.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

DAMAGED = "damaged"
LOST = "lost"
DUPLICATED = "duplicated"
INSERTED = "inserted"
REORDERED = "reordered"
CROSSED = "crossed"
EARLY = "early"

SHOWN = 32
"""
How many bytes are shown of what was expected, and of what came.
"""

LISTED = 1000
"""
How many faults, and how many ends, are listed; all are counted.
"""


@dataclass
class Fault:
    """
    One event on one connection.

    @ivar kind: One of the names above.

    @ivar offset: The first byte of the sent stream that is not what came, from 0.

    @ivar line: The line that holds this byte, from 0.

    @ivar length: How many bytes are concerned; what that means depends on the kind.

    @ivar time: When it was seen, by the monotonic clock, in seconds.

    @ivar expected: The bytes from there on in what was sent, at most L{SHOWN}.

    @ivar received: The bytes that came at that point, at most L{SHOWN}.

    @ivar connection: The number of the connection.

    @ivar local: Our end of it.
    """

    kind: str
    line: int
    offset: int
    length: int
    time: float
    expected: bytes
    received: bytes
    connection: int = 0
    local: str | None = None


class Faults:
    """
    The faults of a run, in the order in which they were seen.

    @ivar listed: The first of them.

    @ivar counts: How many there are of each kind.

    @ivar onFault: Called with each one, when it is known what it is.
    """

    def __init__(self) -> None:
        self.listed: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.onFault: Callable[[Fault], None] = lambda fault: None

    def add(self, fault: Fault, isKnown: bool = True) -> None:
        """
        One more.

        @param isKnown: Is it known what it is? If not, L{settle} is to follow.
        """
        self.counts[fault.kind] += 1
        if len(self.listed) < LISTED:
            self.listed.append(fault)
        if isKnown:
            self.onFault(fault)

    def settle(self, fault: Fault) -> None:
        """
        Now it is known what it is.
        """
        self.onFault(fault)

    def amend(self, fault: Fault, kind: str, length: int) -> None:
        """
        What came later shows that it was something else.
        """
        self.counts[fault.kind] -= 1
        self.counts[kind] += 1
        fault.kind, fault.length = kind, length
