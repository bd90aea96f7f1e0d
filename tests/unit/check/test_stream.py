"""
What is sent can be generated again, told apart, and not be compressed.
"""

import lzma
import zlib

import pytest
from zope.interface.verify import verifyObject

from kvserver.check.stream import (
    HEADER,
    PIECE,
    SUMMED,
    FixedLines,
    ISource,
    Pool,
    Stream,
    wholeLine,
)


def test_itCanBeGeneratedAgain() -> None:
    """
    It can be generated again.
    """
    one, other = (Stream(Pool(7), 3, (10, 100_000)) for _ in range(2))
    lines = [wholeLine(one, line) for line in range(50)]
    assert lines == [wholeLine(other, line) for line in range(50)]
    assert wholeLine(Stream(Pool(8), 3, (10, 100_000)), 5) != lines[5]
    verifyObject(ISource, one)
    verifyObject(ISource, FixedLines([b"\n"]))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("size", [1, 2, 9, 10, 33, 64, PIECE, PIECE + 1, PIECE + 2, 3 * PIECE])
def test_aLineIsAsLongAsItSaysAndHasOneLF(size: int, binary: bool) -> None:
    """
    A line is as long as it says and has one LF.
    """
    stream = Stream(Pool(1, binary), 70_000, (size, size))
    for number in (0, 1, 1 << 30):
        line = wholeLine(stream, number)
        assert len(line) == stream.size(number) == size
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1


def test_sizesAreBetweenTheirBounds() -> None:
    """
    Sizes are between their bounds.
    """
    stream = Stream(Pool(1), 0, (10, 20))
    assert {stream.size(line) for line in range(1000)} == set(range(10, 21))


@pytest.mark.parametrize("size", [64, 1000, 3 * PIECE])
def test_theHeaderNamesTheLine(size: int) -> None:
    """
    The header names the line.
    """
    line = wholeLine(Stream(Pool(1), 0x2A, (size, size)), 0x1F)
    match = HEADER.match(line)
    assert match
    assert (match[1], match[2]) == (b"1f", b"2a")
    body = line[match.end() :].removesuffix(b"\n")[:SUMMED]
    assert match[0][-9:-1] == b"%08x" % zlib.crc32(body)


def test_neighboursDifferFromTheirFirstByteOn() -> None:
    """
    Neighbours differ from their first byte on.
    """
    pool = Pool(1)
    streams = [Stream(pool, connection, (64, 64)) for connection in range(30)]
    for line in range(100):
        assert streams[0].piece(line, 0)[0] != streams[0].piece(line + 1, 0)[0]
        assert len({stream.piece(line, 0)[0] for stream in streams}) == 30


@pytest.mark.parametrize(("size", "count"), [(64, 10_000), (PIECE, 24)])
def test_itCanNotBeCompressed(size: int, count: int) -> None:
    """
    It cannot be compressed.
    """
    stream = Stream(Pool(1, binary=True), 0, (size, size))
    data = b"".join(wholeLine(stream, line) for line in range(count))
    # The headers of short lines are text.
    assert len(lzma.compress(data, preset=1)) > len(data) * (0.75 if size == 64 else 0.97)
