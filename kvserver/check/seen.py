"""
What the server has seen of us: the rules that its access log tells.
"""

import random
from collections.abc import Callable
from typing import Any

from kvserver.check.connection import CheckedConnection
from kvserver.check.path import CannotBeTold, Fails, Path


async def reset(path: Path) -> str:
    """
    Our RST reaches the server.
    """
    if path.serverLog is None:
        raise CannotBeTold("only --server-log tells")
    # A UNIX socket knows no RST: closed with something unread, it is a reset for the other end.
    leavesUnread = bool(path.run.settings.target.path)
    record, _ = await recordOf(path, CheckedConnection.reset, leavesUnread)
    if record is None:
        control, _ = await recordOf(path, CheckedConnection.close)
        if control is None:
            raise CannotBeTold("no connection of ours is in the server's log")
        raise Fails("the server's log has no end of a connection that we reset")
    if record.get("reason") != "reset":
        raise Fails(f"we reset a connection, and for the server it ended as {record['reason']}")
    return "our RST reaches the server"


async def clientAddress(path: Path) -> str:
    """
    The server saw our address.
    """
    if path.serverLog is None:
        raise CannotBeTold("only --server-log tells")
    record, connection = await recordOf(path, CheckedConnection.close)
    if record is None:
        raise CannotBeTold("no connection of ours is in the server's log")
    expected, seen = connection.local, record.get("client") or record.get("peer")
    if "proxy" in path.run.settings.target.layers:
        expected = connection.announced
    if seen != expected:
        raise Fails(f"our address is {expected}, and the server saw {seen}")
    return f"the server saw our address, {seen}"


async def recordOf(
    path: Path, end: Callable[[CheckedConnection], None], leavesUnread: bool = False
) -> tuple[dict[str, Any] | None, CheckedConnection]:
    """
    What the server has noted of a connection that we end in this way.

    @param leavesUnread: Is a line to be left unread?

    @return: Its record, if there is one in time, and the connection.
    """
    assert path.serverLog is not None
    size = random.SystemRandom().randrange(2000, 60_000)
    connection = await path.open(sizes=(size, size))
    connection.sendLines(1)
    await path.requireBack(connection)
    if leavesUnread:
        connection.pauseReading()
        connection.sendLines(1)
        begun = path.run.clock()
        while connection.ending is None and not connection.transport.isReadable():
            await path.sleep(0.01)
            if _isLate(path, begun):
                break
    received = connection.bytesSent
    end(connection)
    record = None
    begun = path.run.clock()
    while record is None and not _isLate(path, begun):
        record = path.serverLog.find(received)
        await path.sleep(0.05)
    return record, connection


def _isLate(path: Path, begun: float) -> bool:
    return path.run.interrupted or path.run.clock() - begun > path.run.settings.timeout
