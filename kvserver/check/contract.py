"""
The echo contract: what each rule tries.
"""

import resource
from collections.abc import Awaitable, Callable

from twisted.internet.defer import gatherResults

from kvserver.check.connection import CheckedConnection
from kvserver.check.path import CannotBeTold, Fails, Path, count
from kvserver.check.stream import FixedLines
from kvserver.check.target import SIGNATURE

CONNECTIONS = 1000

DESCRIPTORS = 50
"""
How many file descriptors the checker needs besides those of its connections.
"""

UNREAD = 256 << 20
"""
How much is sent to a path while nothing is read, in bytes.
"""

_TRIES = 20
"""
How many connections are closed by halves. Whoever drops the rest often does so only when it sees
the FIN before the answer: nginx's C{stream} loses something on every third connection.
"""

_PAUSE = 0.5

_STALLED = 1.0

_BYTES = [
    bytes(range(11)),
    bytes(range(11, 256)) + b"\n",
    b"\0NUL\0\0\n",
    b"CR\rwithout LF\r\r\n",
    b"\r\n",
    # Telnet: IAC DO ECHO, IAC WILL SUPPRESS-GO-AHEAD, IAC IP, IAC DM, IAC IAC, a subnegotiation.
    b"\xff\xfd\x01\xff\xfb\x03\xff\xf4\xff\xf2\xff\xff\xff\xfa\x18\x01\xff\xf0\n",
    b"\xc3\x28 no UTF-8 \xfe\n",
    b"\x03\x04\x11\x13\x1a\x1b[2J terminal control\n",
]


async def lines(path: Path) -> str:
    """
    Whole lines come back, one by one and many at once.
    """
    connection = await path.open()
    try:
        for _ in range(10):
            connection.sendLines(1)
            await path.requireBack(connection)
        connection.sendLines(1000)
        await path.requireBack(connection)
    except Fails as failure:
        raise Fails(whatCame(connection) or str(failure)) from None
    return "whole lines come back, one by one and 1,000 at once"


def whatCame(connection: CheckedConnection) -> str | None:
    """
    What an echo that is none said.
    """
    came = connection.beginnings
    line = connection.source.piece(0, 0)
    if connection.banner.text == line:
        return "no banner came before the echo (--banner)"
    if connection.linesReturned > 0 and came.startswith(line):
        return None
    if not came:
        return None
    if came.startswith(b"HTTP/") or b"<html" in came.lower() or b"<!doctype" in came.lower():
        return f"this is no echo: a web server (HTTP) answers: {_shown(came)}"
    if connection.announced is not None and came.startswith((SIGNATURE, b"PROXY ")):
        return "our own PROXY header came back: this port expects none"
    begin = came.find(line)
    if begin > 0:
        return f"this is no plain echo: before the line came {_shown(came[:begin])} (--banner?)"
    return f"this is no echo: instead of {_shown(line)} came {_shown(came)}"


def _shown(data: bytes) -> str:
    first = data.split(b"\n")[0][:48]
    return repr(first.decode("ascii", "backslashreplace")) + ("..." if len(data) > 49 else "")


async def early(path: Path) -> str:
    """
    A line in two parts: nothing comes after the first.
    """
    connection = await path.open()
    connection.comparison.holdsBack = True
    half = connection.source.size(0) // 2
    connection.send(half)
    await path.sleep(_PAUSE)
    path.requireClean(connection)
    connection.send(connection.source.size(0) - half)
    await path.requireBack(connection)
    return f"nothing of a line comes in the {_PAUSE:g} s before its end is sent"


async def halfClose(path: Path) -> str:
    """
    After our FIN everything comes back, and then the other side closes.
    """
    for _ in range(_TRIES):
        connection = await path.open()
        connection.sendLines(1000)
        connection.sendEnd()
        await path.requireClosed(connection)
    end = "close_notify" if path.isTLS else "FIN"
    return f"after our {end} everything comes back, then the other side closes"


async def tail(path: Path) -> str:
    """
    An unterminated last line comes back.
    """
    for _ in range(_TRIES):
        connection = await path.open()
        connection.sendLines(1)
        connection.send(connection.source.size(1) - 1)
        connection.sendEnd()
        await path.requireClosed(connection)
    return "an unterminated last line comes back"


def long(size: int) -> Callable[[Path], Awaitable[str]]:
    """
    A line of that size comes back.
    """

    async def longLine(path: Path) -> str:
        connection = await path.open(sizes=(size, size))
        connection.sendLines(1)
        await path.requireBack(connection)
        return f"a line of {size:,} bytes comes back"

    return longLine


async def allBytes(path: Path) -> str:
    """
    No byte has a meaning.
    """
    connection = await path.open(FixedLines(_BYTES))
    connection.sendLines(len(_BYTES))
    await path.requireBack(connection)
    return "all 256 byte values, NUL, CR without LF and telnet's IAC sequences come back"


async def urgent(path: Path) -> str:
    """
    An urgent byte comes back in its place.
    """
    if path.isTLS or path.run.settings.target.path:
        raise CannotBeTold("only TCP without TLS has urgent data")
    connection = await path.open()
    half = connection.source.size(0) // 2
    connection.send(half)
    if not await connection.until(lambda: connection.bytesSent == half):
        raise Fails(path.troubleOf(connection))
    connection.sendUrgent()
    connection.send(connection.source.size(0) - half - 1 + connection.source.size(1))
    await path.requireBack(connection)
    return "a byte that is sent as urgent comes back in its place"


async def slowReader(path: Path) -> str:
    """
    Whoever does not read is not read from.
    """
    size = 1 << 16
    connection = await path.open(sizes=(size, size))
    connection.pauseReading()
    connection.sendLines(UNREAD // size)
    clock = path.run.clock
    sent, since = 0, clock()
    while connection.ending is None and clock() - since < _STALLED:
        if connection.bytesSent > sent:
            sent, since = connection.bytesSent, clock()
        if sent >= UNREAD:
            raise Fails(f"the path took {UNREAD >> 20} MiB though nothing was read: no bound seen")
        await path.sleep(0.05)
    if connection.ending is None:
        connection.sendNoMore()
        connection.resumeReading()
    await path.requireBack(connection)
    return f"the path stops taking after {sent:,} bytes unread, and all comes back once we read"


async def oneByte(path: Path) -> str:
    """
    A line that is sent one byte a segment comes back.
    """
    connection = await path.open()
    for _ in range(connection.source.size(0)):
        connection.send(1)
        await path.sleep(0.001)
    await path.requireBack(connection)
    return "a line that is sent one byte a segment comes back"


async def manyConnections(path: Path) -> str:
    """
    Many connections at once: each gets its own line.
    """
    limit = raiseDescriptors()
    if limit < CONNECTIONS + DESCRIPTORS:
        raise CannotBeTold(f"this process may have {limit:,} file descriptors (ulimit -n)")
    connections = [path.begin() for _ in range(CONNECTIONS)]
    await gatherResults([each.until(each.canSend) for each in connections])
    for each in connections:
        if each.ending is None:
            each.sendLines(1)
    await gatherResults([path.allBack(each) for each in connections])
    failed = [each for each in connections if each.ending is not None]
    for each in connections:
        path.requireClean(each)
    if failed:
        raise Fails(f"of {CONNECTIONS:,} connections at once: {count(e.ending for e in failed)}")
    return f"{CONNECTIONS:,} connections at once: each gets its own line"


def raiseDescriptors() -> int:
    """
    Let this process have as many file descriptors as it may.

    @return: How many that is.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


async def idle(path: Path) -> str:
    """
    A silent connection still echoes.
    """
    if path.idle is None:
        raise CannotBeTold("only tried with --idle")
    connection = await path.open()
    connection.sendLines(1)
    await path.requireBack(connection)
    begin, deadline = path.run.clock(), path.run.clock() + path.idle
    await connection.until(lambda: path.run.clock() >= deadline)
    if connection.ending is None:
        connection.sendLines(1)
        await path.requireBack(connection)
        return f"a connection that was silent for {path.idle:g} s still echoes"
    silent = path.run.clock() - begin
    raise Fails(f"after {silent:.1f} s of silence: {path.troubleOf(connection)}")
