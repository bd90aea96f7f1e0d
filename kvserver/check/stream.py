"""
What is sent: pseudo-random lines that can be generated again, so that nothing sent is kept.
"""

import random
import re
import zlib

from zope.interface import Attribute, Interface, implementer

PIECE = 1 << 16
"""
The most of a line that is generated at a time, in bytes.
"""

SUMMED = 4096
"""
How much of a line's body its checksum is of, in bytes: it is for people who read a dump of packets;
the checker compares all bytes.
"""

_REMEMBERED = 64
"""
How many of the last lines of a connection are remembered, if they are no longer than L{SUMMED}:
most come back before they would have to be generated again. A power of two.
"""

LONGEST = 1 << 30
"""
The longest line that is sent, in bytes.
"""

_BLOCK = 1 << 20

_TABLES = 256

_MARKS = b"GHIJKLMNOPQRSTUVWXYZghijklmnopqrstuvwxyz"
"""
No hexadecimal digit: so the header of a line is found also where the LF before it was lost.
"""

_MASK = (1 << 64) - 1

_SPREAD = 0x9E3779B97F4A7C15
"""
An odd number close to 2**64 divided by the golden ratio: the high bits of its multiples are spread
evenly (Knuth, The Art of Computer Programming, volume 3, section 6.4).
"""

HEADER = re.compile(rb"[G-Zg-z]([0-9a-f]{1,12})\.([0-9a-f]{1,8})\.[0-9a-f]{8} ")
"""
The header of a line: a mark, the line, the connection, a checksum, a space. The mark tells a line
from its neighbours, so that two lines differ from their first byte on.
"""

HEADER_ROOM = 33
"""
A line of so many bytes has its whole header, whatever its number.
"""


class ISource(Interface):
    """
    The lines of one connection, by number.
    """

    shortest = Attribute("The length of the shortest line, in bytes.")

    longest = Attribute("The length of the longest line, in bytes.")

    def size(line: int) -> int:
        """
        How long is that line, its LF included? In bytes.
        """

    def piece(line: int, number: int) -> bytes:
        """
        L{PIECE} bytes of the line, from C{number * PIECE} on; fewer at its end.
        """

    def forget() -> None:
        """
        The connection has ended: give back what was remembered for it.
        """


class Pool:
    """
    The random bytes that all lines of a run are made of. What is cut from it is put through one of
    many permutations, so that a piece that is cut twice does not look the same to a compressor.
    """

    def __init__(self, seed: int, binary: bool = False) -> None:
        """
        @param binary: Use all byte values but LF, and not only those that can be printed.
        """
        generator = random.Random(seed)
        letters = bytearray(value for value in range(256) if value != 10)
        if not binary:
            letters = bytearray(range(33, 127))
        self._tables = []
        for _ in range(_TABLES):
            generator.shuffle(letters)
            self._tables.append((bytes(letters) * 3)[:256])
        self._block = generator.randbytes(_BLOCK + PIECE)

    def cut(self, key: int, length: int) -> bytes:
        """
        C{length} bytes without LF, at most L{PIECE}: always the same for the same key of 64 bits.
        """
        begin = key >> 44
        return self._block[begin : begin + length].translate(self._tables[key >> 36 & 0xFF])


@implementer(ISource)
class Stream:
    """
    The lines of one connection. A line has a header (L{HEADER}) and a body; the checksum is the
    CRC-32 of the body's first L{SUMMED} bytes, its LF not included. A line that is too short for it
    has as much of the header as there is room for.
    """

    def __init__(self, pool: Pool, connection: int, sizes: tuple[int, int]) -> None:
        """
        @param sizes: The length of the shortest and of the longest line, in bytes.
        """
        self.shortest, self.longest = sizes
        self.connection = connection
        self._pool = pool
        self._span = self.longest - self.shortest + 1
        self._base = (connection + 1) * 0xBF58476D1CE4E5B9 & _MASK
        self._recent: list[tuple[int, bytes]] = [(-1, b"")] * _REMEMBERED

    def size(self, line: int) -> int:
        """
        See L{ISource}.
        """
        if self._span == 1:
            return self.longest
        return self.shortest + ((line * 0x94D049BB133111EB + self._base & _MASK) >> 32) % self._span

    def piece(self, line: int, number: int) -> bytes:
        """
        See L{ISource}.
        """
        slot = line & _REMEMBERED - 1
        remembered, data = self._recent[slot]
        if remembered == line and not number:
            return data
        data = self._generate(line, number)
        if len(data) <= SUMMED and not number:
            self._recent[slot] = line, data
        return data

    def forget(self) -> None:
        """
        See L{ISource}.
        """
        self._recent = [(-1, b"")] * _REMEMBERED

    def _generate(self, line: int, number: int) -> bytes:
        size = self.longest if self._span == 1 else self.size(line)
        key = line * _SPREAD + self._base & _MASK
        if number:
            key = key + number * 0xD6E8FEB86659FD93 & _MASK
            begin = number * PIECE
            if size - begin > PIECE:
                return self._pool.cut(key, PIECE)
            return self._pool.cut(key, size - begin - 1) + b"\n"
        names = b"%c%x.%x." % (
            _MARKS[(line + 7 * self.connection) % len(_MARKS)],
            line,
            self.connection,
        )
        room = min(size, PIECE) - len(names) - 9
        if size > PIECE:
            body = self._pool.cut(key, room)
            return b"%b%08x %b" % (names, zlib.crc32(body[:SUMMED]), body)
        if room < 1:
            return (b"%b%08x " % (names, key >> 32))[: size - 1] + b"\n"
        body = self._pool.cut(key, room - 1)
        return b"%b%08x %b\n" % (names, zlib.crc32(body[:SUMMED]), body)


@implementer(ISource)
class FixedLines:
    """
    Lines that are given.
    """

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines
        self.shortest = min(map(len, lines))
        self.longest = max(map(len, lines))

    def size(self, line: int) -> int:
        """
        See L{ISource}.
        """
        return len(self._lines[line])

    def piece(self, line: int, number: int) -> bytes:
        """
        See L{ISource}.
        """
        return self._lines[line][number * PIECE : (number + 1) * PIECE]

    def forget(self) -> None:
        """
        See L{ISource}.
        """


def wholeLine(source: ISource, line: int) -> bytes:
    """
    All bytes of a line.
    """
    size = source.size(line)
    if size <= PIECE:
        return source.piece(line, 0)
    return b"".join(source.piece(line, number) for number in range((size + PIECE - 1) // PIECE))
