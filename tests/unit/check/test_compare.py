"""
What came, against what was sent: each difference is one fault, of the right kind and place.
"""

import random
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.check.compare import KEPT, Comparison
from kvserver.check.faults import Fault, Faults
from kvserver.check.stream import FixedLines, Pool, Stream, wholeLine

POOL = Pool(15)

LINES = 40

SIZES = st.sampled_from([(64, 64), (33, 33), (40, 300), (1000, 1000), (5000, 9000), (10, 200)])


class Echo:
    """
    A stream that was sent, and what is to come back.

    @ivar sent: All of it.

    @ivar starts: Where each line begins, and the end.
    """

    def __init__(self, sizes: tuple[int, int], lines: int = LINES) -> None:
        self.source = Stream(POOL, 0, sizes)
        self.foreign = partial(Stream, POOL, sizes=sizes)
        self.lines = [wholeLine(self.source, line) for line in range(lines)]
        self.sent = b"".join(self.lines)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.faults = Faults()
        self.passed: list[tuple[int, bool]] = []
        self.comparison = Comparison(
            self.source, self.faults, 0, self.foreign, lambda *what: self.passed.append(what)
        )
        self.comparison.wrote(len(self.sent), lines)

    def lineOf(self, offset: int) -> int:
        """
        The line that holds this byte.
        """
        return sum(start <= offset for start in self.starts) - 1

    def feed(self, received: bytes, seed: int = 0, inOrder: bool = True) -> list[Fault]:
        """
        All this comes, in random pieces, and then the end.
        """
        chance = random.Random(seed)
        at = 0
        while at < len(received):
            size = chance.choice([1, 7, 64, 1000, 100_000])
            self.comparison.received(received[at : at + size], 1.0)
            at += size
        self.comparison.finish(inOrder, 2.0)
        return self.faults.listed


def cmp(sent: bytes, received: bytes) -> int:
    """
    The first byte that differs.
    """
    return next(
        (at for at, (one, other) in enumerate(zip(sent, received, strict=False)) if one != other),
        min(len(sent), len(received)),
    )


def one(
    echo: Echo, received: bytes, kind: str, length: int, seed: int = 0, offset: int | None = None
) -> Fault:
    """
    There is one fault, this one, and all else came back.
    """
    faults = echo.feed(received, seed)
    assert [fault.kind for fault in faults] == [kind]
    (fault,) = faults
    at = cmp(echo.sent, received)
    assert fault.offset == at
    assert fault.length == length
    assert fault.line == echo.lineOf(at)
    assert fault.expected == echo.sent[at : at + 32]
    assert fault.received == received[at : at + 32][: len(fault.received)]
    assert len(fault.received) == min(32, len(received) - at)
    assert echo.comparison.position == len(echo.sent)
    assert sum(count for count, _ in echo.passed) == len(echo.lines)
    assert sum(count for count, inPlace in echo.passed if inPlace) == echo.comparison.returnedLines
    return fault


Seeds = st.integers(0, 1 << 30)


@given(SIZES, Seeds)
def test_whatIsTheSameIsNoFault(sizes: tuple[int, int], seed: int) -> None:
    """
    What is the same is no fault.
    """
    echo = Echo(sizes)
    assert echo.feed(echo.sent, seed) == []
    assert echo.comparison.returnedBytes == len(echo.sent)
    assert echo.comparison.returnedLines == LINES


@given(SIZES, Seeds, st.data())
def test_damaged(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Damaged.
    """
    echo = Echo(sizes)
    at = data.draw(st.integers(0, len(echo.sent) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != echo.sent[at]))
    received = echo.sent[:at] + bytes([byte]) + echo.sent[at + 1 :]
    one(echo, received, "damaged", 1, seed)
    assert echo.comparison.returnedBytes == len(echo.sent) - 1


@given(SIZES, Seeds, st.data())
def test_damagedInARow(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Damaged in a row.
    """
    echo = Echo(sizes)
    begin = data.draw(st.integers(0, len(echo.sent) - 2))
    end = data.draw(st.integers(begin + 2, min(len(echo.sent), begin + 3000)))
    inverted = bytes(255 - byte for byte in echo.sent[begin:end])
    one(echo, echo.sent[:begin] + inverted + echo.sent[end:], "damaged", end - begin, seed)


@given(SIZES, Seeds, st.data())
def test_lost(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Lost.
    """
    echo = Echo(sizes)
    begin = data.draw(st.integers(0, len(echo.sent) - 1))
    end = data.draw(st.integers(begin + 1, len(echo.sent)))
    one(echo, echo.sent[:begin] + echo.sent[end:], "lost", end - begin, seed)
    assert echo.comparison.returnedBytes == len(echo.sent) - (end - begin)


@given(SIZES, Seeds, st.integers(0, LINES - 1), st.integers(1, LINES))
def test_wholeLinesLost(sizes: tuple[int, int], seed: int, first: int, count: int) -> None:
    """
    Whole lines lost.
    """
    echo = Echo(sizes)
    begin, end = echo.starts[first], echo.starts[min(LINES, first + count)]
    one(echo, echo.sent[:begin] + echo.sent[end:], "lost", end - begin, seed)


@given(SIZES, Seeds, st.data())
def test_duplicated(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Duplicated.
    """
    echo = Echo(sizes)
    begin = data.draw(st.integers(0, len(echo.sent) - 1))
    end = data.draw(st.integers(begin + 1, len(echo.sent)))
    one(echo, echo.sent[:end] + echo.sent[begin:], "duplicated", end - begin, seed)
    assert echo.comparison.returnedBytes == len(echo.sent)


@given(st.sampled_from([(64, 64), (40, 300)]), Seeds, st.data())
def test_duplicatedLater(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Duplicated later.
    """
    echo = Echo(sizes)
    begin = data.draw(st.integers(0, len(echo.sent) - 20))
    end = data.draw(st.integers(begin + 20, len(echo.sent)))
    at = data.draw(st.integers(end, len(echo.sent)))
    received = echo.sent[:at] + echo.sent[begin:end] + echo.sent[at:]
    one(echo, received, "duplicated", end - begin, seed)


@given(SIZES, Seeds, st.data())
def test_inserted(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Inserted.
    """
    echo = Echo(sizes)
    at = data.draw(st.integers(0, len(echo.sent)))
    # None of these bytes is sent.
    foreign = data.draw(
        st.text("\x00\r\xff\x80", min_size=1, max_size=500).map(lambda text: text.encode("latin1"))
    )
    one(echo, echo.sent[:at] + foreign + echo.sent[at:], "inserted", len(foreign), seed)


@given(st.sampled_from([(64, 64), (40, 300), (5000, 9000)]), Seeds, st.data())
def test_twoLinesSwapped(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Two lines swapped.
    """
    echo = Echo(sizes)
    first = data.draw(st.integers(0, LINES - 2))
    lines = list(echo.lines)
    lines[first : first + 2] = lines[first + 1], lines[first]
    one(echo, b"".join(lines), "reordered", echo.starts[first + 2] - echo.starts[first], seed)


@given(st.sampled_from([(64, 64), (40, 300)]), Seeds, st.data())
def test_linesComeLater(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Lines come later.
    """
    echo = Echo(sizes)
    first = data.draw(st.integers(0, LINES - 3))
    end = data.draw(st.integers(first + 1, LINES - 1))
    to = data.draw(st.integers(end + 1, LINES))
    lines = echo.lines[:first] + echo.lines[end:to] + echo.lines[first:end] + echo.lines[to:]
    one(echo, b"".join(lines), "reordered", echo.starts[to] - echo.starts[first], seed)


@given(st.sampled_from([(64, 64), (40, 300), (5000, 9000)]), Seeds, st.data())
def test_crossedInPlace(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Crossed in place.
    """
    echo = Echo((64, 64))
    line = data.draw(st.integers(0, LINES - 1))
    other = wholeLine(echo.foreign(data.draw(st.integers(1, 500))), line)
    received = echo.sent[: echo.starts[line]] + other + echo.sent[echo.starts[line + 1] :]
    at = cmp(echo.sent, received)
    one(echo, received, "crossed", echo.starts[line + 1] - at, seed)


@given(st.sampled_from([(64, 64), (40, 300), (5000, 9000)]), Seeds, st.data())
def test_crossedBesides(sizes: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """
    Crossed besides.
    """
    echo = Echo(sizes)
    at = data.draw(st.integers(0, len(echo.sent)))
    other = wholeLine(echo.foreign(data.draw(st.integers(1, 500))), data.draw(st.integers(0, 99)))
    one(echo, echo.sent[:at] + other + echo.sent[at:], "crossed", len(other), seed)


@pytest.mark.parametrize("count", [1, 3])
def test_twoEventsAreTwoFaults(count: int) -> None:
    """
    Two events are two faults.
    """
    echo = Echo((64, 64))
    received = bytearray(echo.sent)
    for line in range(0, 10 * count, 10):
        received[line * 64 + 63] ^= 1
    del received[2000:2005]
    faults = echo.feed(bytes(received))
    assert [fault.kind for fault in faults] == ["damaged"] * count + ["lost"]
    assert [fault.offset for fault in faults] == [*range(63, 640 * count, 640), 2000]


def test_whatIsToldIsWhatItTurnsOutToBe() -> None:
    """
    What is told is what it turns out to be.
    """
    told: list[str] = []
    echo = Echo((64, 64))
    echo.faults.onFault = lambda fault: told.append(fault.kind)
    lines = echo.lines
    echo.feed(b"".join([lines[1], lines[0], *lines[2:10], *lines[11:]]))
    assert told == ["reordered", "lost"]
    later = Echo((64, 64))
    later.faults.onFault = lambda fault: told.append(fault.kind)
    later.comparison.received(b"".join(lines[1:5]), 1.0)
    later.comparison.received(lines[5], 3.0)
    later.comparison.received(lines[0], 4.0)
    later.comparison.received(b"".join(lines[6:]), 4.0)
    assert told == ["reordered", "lost", "lost", "reordered"]
    assert later.faults.counts == {"reordered": 1, "lost": 0}


def test_aLongLineIsDamaged() -> None:
    """
    A long line is damaged.
    """
    echo = Echo((3_000_000, 3_000_000), 2)
    received = bytearray(echo.sent)
    received[1_234_567] ^= 0xFF
    received[1_300_000] ^= 0xFF
    one(echo, bytes(received), "damaged", 1_300_001 - 1_234_567)


def test_aMegabyteOfShortLinesIsLost() -> None:
    """
    A megabyte of short lines is lost.
    """
    echo = Echo((64, 64), 20_000)
    one(echo, echo.sent[:100_001] + echo.sent[1_100_001:], "lost", 1_000_000)


def test_linesThatBeginAlike() -> None:
    """
    Lines that begin alike.
    """
    echo = Echo((64, 64), 200)
    # The 40th line from here begins with the same letter.
    one(echo, echo.sent[:640] + echo.sent[640 + 40 * 64 :], "lost", 40 * 64)
    assert echo.comparison.returnedLines == 160


def test_whatDoesNotEndIsBounded() -> None:
    """
    What does not end is bounded.
    """
    echo = Echo((64, 64))
    for _ in range(100):
        echo.comparison.received(b"x" * 100_000, 1.0)
        assert echo.comparison.difference is not None
        assert len(echo.comparison.difference) <= KEPT + 100_200
    echo.comparison.received(echo.sent, 1.0)
    echo.comparison.finish(True, 2.0)
    (fault,) = echo.faults.listed
    assert (fault.kind, fault.offset, fault.length) == ("inserted", 0, 10_000_000)
    assert echo.comparison.position == len(echo.sent)


def test_whatIsOwedWhenItBreaksOffIsNoFault() -> None:
    """
    What is owed when it breaks off is no fault.
    """
    echo = Echo((64, 64))
    assert echo.feed(echo.sent[:1000], inOrder=False) == []
    assert echo.comparison.position == 1000
    assert echo.comparison.isMidLine


def test_whatIsOwedAtTheEndIsLost() -> None:
    """
    What is owed at the end is lost.
    """
    echo = Echo((64, 64))
    (fault,) = echo.feed(echo.sent[:1000])
    assert (fault.kind, fault.offset, fault.length) == ("lost", 1000, len(echo.sent) - 1000)
    assert (fault.line, fault.received, fault.time) == (15, b"", 2.0)


def test_aDifferenceBeforeItBreaksOff() -> None:
    """
    A difference before it breaks off.
    """
    echo = Echo((64, 64))
    (fault,) = echo.feed(echo.sent[:1000] + echo.sent[1010:1020], inOrder=False)
    assert (fault.kind, fault.offset, fault.length) == ("lost", 1000, 10)
    assert echo.comparison.position == 1020


def parted(answer: Callable[[Comparison, bytes], None]) -> list[Fault]:
    """
    A line in two parts; C{answer} says what comes after the first, and after the second.
    """
    faults = Faults()
    source = Stream(POOL, 0, (64, 64))
    comparison = Comparison(source, faults)
    comparison.holdsBack = True
    comparison.wrote(64, 1)
    comparison.received(wholeLine(source, 0), 1.0)
    comparison.wrote(30, 0)
    answer(comparison, wholeLine(source, 1))
    comparison.wrote(34, 1)
    comparison.received(wholeLine(source, 1)[comparison.position - 64 :], 3.0)
    comparison.finish(True, 4.0)
    return faults.listed


def test_early() -> None:
    """
    Early.
    """

    def early(comparison: Comparison, line: bytes) -> None:
        comparison.received(line[:10], 2.0)
        comparison.received(line[10:30], 2.0)

    (fault,) = parted(early)
    assert (fault.kind, fault.line, fault.offset, fault.length) == ("early", 1, 64, 30)
    assert parted(lambda comparison, line: None) == []


def test_linesThatAreGiven() -> None:
    """
    Lines that are given.
    """
    lines = [b"a" * 5 + b"\n", bytes(range(256)), b"\n", b"x\r\n", bytes(range(256))]
    sent = b"".join(lines)
    for at in range(len(sent)):
        faults = Faults()
        comparison = Comparison(FixedLines(lines), faults)
        comparison.wrote(len(sent), len(lines))
        comparison.received(sent[:at] + sent[at + 1 :], 1.0)
        comparison.finish(True, 2.0)
        (fault,) = faults.listed
        assert (fault.kind, fault.length) == ("lost", 1)
        assert fault.offset == cmp(sent, sent[:at] + sent[at + 1 :])
