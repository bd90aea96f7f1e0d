"""
What a difference was: the bytes that were sent, against those that came in their stead.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kvserver.check.faults import CROSSED, DAMAGED, DUPLICATED, INSERTED, LOST
from kvserver.check.sent import Sent
from kvserver.check.stream import HEADER, ISource, wholeLine

HISTORY = 1 << 16
"""
How far back a copy is looked for that has no whole header, in bytes.
"""

_SUBSEQUENCE = 1 << 20


@dataclass(frozen=True)
class Difference:
    """
    A stretch of the sent stream, and what came in its stead. Both begin at the first byte that
    differs, and end where the next line is in its place.

    @ivar offset: Where it begins in the sent stream, in bytes.

    @ivar sent: What was sent. It is empty where the line that differs came whole later on: then
        C{extra} bytes came before it.

    @ivar received: What came, and a little of what followed it.

    @ivar length: How many bytes of C{received} belong to it.

    @ivar extra: How many more came than were sent.
    """

    offset: int
    sent: bytes
    received: bytes
    length: int
    extra: int


class Classifier:
    """
    Tells what a difference was.
    """

    def __init__(
        self,
        connection: int,
        source: ISource,
        foreign: Callable[[int], ISource] | None,
        sent: Sent,
    ) -> None:
        """
        @param connection: The number of the connection.

        @param foreign: Generates the lines of the connection of that number. None: they can't be.

        @param sent: What was sent.
        """
        self._connection = connection
        self._source = source
        self._foreign = foreign
        self._slice = sent.slice
        self._startOf = sent.startOf

    def classify(self, difference: Difference) -> tuple[str, int]:
        """
        @return: The kind of the fault, and its length.
        """
        sent, came = difference.sent, difference.received[: difference.length]
        extra = difference.extra
        isInsertion = extra > 0 and difference.received[extra : difference.length] == sent
        if self._hasForeignLine(difference.offset, came):
            return CROSSED, extra if isInsertion else max(len(sent), len(came))
        if extra > 0:
            if isInsertion or not sent:
                isCopy = self._isCopy(difference.offset, difference.received[:extra])
                return (DUPLICATED if isCopy else INSERTED), extra
            if isSubsequence(sent, came):
                return INSERTED, extra
        elif extra < 0 and (sent[-extra:] == came or isSubsequence(came, sent)):
            return LOST, -extra
        return DAMAGED, max(len(sent), len(came)) - commonSuffix(sent, came)

    def _hasForeignLine(self, offset: int, came: bytes) -> bool:
        if self._foreign is None:
            return False
        # The beginning of its header may be that of ours.
        before = self._slice(max(0, offset - 16), offset)
        data = before + came
        for match in HEADER.finditer(data):
            line, connection = int(match[1], 16), int(match[2], 16)
            if connection != self._connection and match.end() > len(before):
                source = self._foreign(connection)
                end = match.start() + source.size(line)
                if end <= len(data) and data[match.start() : end] == wholeLine(source, line):
                    return True
        return False

    def _isCopy(self, offset: int, came: bytes) -> bool:
        """
        Has all of this come before, in one piece?
        """
        length = len(came)
        if length <= offset and self._slice(offset - length, offset) == came:
            return True
        # Its last bytes may be those of the line before which it was put.
        for match in HEADER.finditer(came):
            if int(match[2], 16) == self._connection and self._foreign is not None:
                begin = self._startOf(int(match[1], 16)) - match.start()
                if 0 <= begin < offset:
                    return self._agrees(begin, came)
        if length < 8:
            return False
        before = self._slice(max(0, offset - HISTORY - length), offset)
        found = before.find(came[:8])
        return found >= 0 and self._agrees(offset - len(before) + found, came)

    def _agrees(self, begin: int, came: bytes) -> bool:
        piece = self._slice(begin, begin + len(came))
        return commonPrefix(piece, came) >= len(came) - 16 and piece[:1] == came[:1]


def commonPrefix(first: bytes, second: bytes) -> int:
    """
    How many bytes at the beginning are the same?
    """
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def commonSuffix(first: bytes, second: bytes) -> int:
    """
    How many bytes at the end are the same?
    """
    length = min(len(first), len(second))
    if first[len(first) - length :] == second[len(second) - length :]:
        return length
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        if (
            first[len(first) - middle : len(first) - low]
            == second[len(second) - middle : len(second) - low]
        ):
            low = middle
        else:
            high = middle
    return low


def isSubsequence(part: bytes, whole: bytes) -> bool:
    """
    Are the bytes of C{part} in C{whole}, in this order, with others between them? Of long ones that
    is not found out: False.
    """
    if len(whole) > _SUBSEQUENCE:
        return False
    rest = iter(whole)
    return all(byte in rest for byte in part)
