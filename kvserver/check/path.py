"""
A path that is tried: the connections of a rule, and what is said of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from kvserver.check import faults as kinds
from kvserver.check import run as runs
from kvserver.check.connection import CheckedConnection
from kvserver.check.faults import Fault
from kvserver.check.run import Run
from kvserver.check.serverlog import ServerLog
from kvserver.check.stream import ISource

OK = "ok"
FAILS = "FAILS"
UNKNOWN = "cannot be told"


class Fails(Exception):
    """
    The path breaks the rule. Says how.
    """


class CannotBeTold(Exception):
    """
    Whether the path keeps the rule can't be told. Says why.
    """


@dataclass(frozen=True)
class Check:
    """
    What became of a rule.

    @ivar outcome: L{OK}, L{FAILS} or L{UNKNOWN}.

    @ivar detail: What that means, in a sentence.
    """

    rule: str
    outcome: str
    detail: str


@dataclass
class Path:
    """
    What a rule is tried with.

    @ivar serverLog: The server's access log, if it is at hand.

    @ivar idle: How long a connection is to be silent, in seconds.
    """

    run: Run
    serverLog: ServerLog | None = None
    idle: float | None = None

    def __post_init__(self) -> None:
        self._used: list[CheckedConnection] = []

    @property
    def isTLS(self) -> bool:
        """
        Is there TLS?
        """
        return "tls" in self.run.settings.target.layers

    def begin(
        self, source: ISource | None = None, sizes: tuple[int, int] | None = None
    ) -> CheckedConnection:
        """
        Begin one more connection.
        """
        connection = CheckedConnection(self.run, source, sizes)
        self._used.append(connection)
        connection.begin()
        return connection

    async def open(
        self, source: ISource | None = None, sizes: tuple[int, int] | None = None
    ) -> CheckedConnection:
        """
        One more connection.

        @raise Fails: It did not come about.
        """
        connection = self.begin(source, sizes)
        if not await connection.until(lambda: connection.isOpen):
            raise Fails(f"no connection: {connection.failure or connection.ending}")
        return connection

    def sleep(self, seconds: float) -> "Deferred[None]":
        """
        Do nothing for so long.
        """
        return deferLater(self.run.reactor, seconds, _nothing)

    def leave(self) -> None:
        """
        The rule has been tried: close what is left.
        """
        for connection in self._used:
            connection.close()
        self._used.clear()

    def allBack(self, connection: CheckedConnection) -> "Deferred[bool]":
        """
        Wait until all that was sent is back.

        @return: Fires with whether it is.
        """

        def isBack() -> bool:
            if connection.isQuiet():
                # What came instead of it has come.
                self.run.reactor.callLater(0, connection.close)
            return connection.isAllBack()

        return connection.until(isBack)

    async def requireBack(self, connection: CheckedConnection) -> None:
        """
        All that was sent comes back, and nothing else.

        @raise Fails: It does not.
        """
        isBack = await self.allBack(connection)
        self.requireClean(connection)
        if not isBack:
            raise Fails(self.troubleOf(connection))

    def requireClean(self, connection: CheckedConnection) -> None:
        """
        Nothing wrong has come.

        @raise Fails: It has.
        """
        fault = self.faultOf(connection)
        if fault is not None:
            raise Fails(describe(fault))

    async def requireClosed(self, connection: CheckedConnection) -> None:
        """
        After our end all comes back, and then the other side closes.

        @raise Fails: It does not.
        """
        await connection.until(lambda: False)
        self.requireClean(connection)
        if connection.ending != runs.CLOSED:
            raise Fails(self.troubleOf(connection))

    def faultOf(self, connection: CheckedConnection) -> Fault | None:
        """
        The first fault of a connection.
        """
        number = connection.number
        return next((f for f in self.run.faults.listed if f.connection == number), None)

    def troubleOf(self, connection: CheckedConnection) -> str:
        """
        How a connection ended, in words.
        """
        owed = connection.bytesSent - connection.comparison.position
        said = {
            runs.DROPPED: "the other side closed (FIN)",
            runs.CUT: "the other side closed (FIN) in the middle of a line",
            runs.RESET: "the connection was reset (RST)",
            runs.TIMEOUT: f"nothing came for {self.run.settings.timeout:g} s",
            runs.ALERT: "TLS ended with an alert",
            runs.REFUSED: f"no connection: {connection.failure}",
        }.get(connection.ending or "", "what was sent did not come back")
        if owed:
            return f"{said}; {owed:,} of {connection.bytesSent:,} bytes had not come back"
        if connection.ending == runs.TIMEOUT:
            return f"{said}: all was back, but the other side did not close"
        return said


def _nothing() -> None:
    pass


_WORDS = {
    kinds.LOST: "lost",
    kinds.DAMAGED: "changed",
    kinds.DUPLICATED: "sent back a second time",
    kinds.INSERTED: "inserted that nobody sent",
    kinds.REORDERED: "sent back in another order",
    kinds.CROSSED: "another connection's",
    kinds.EARLY: "sent back before their line was complete",
}


def describe(fault: Fault) -> str:
    """
    A fault in words.
    """
    size = "1 byte was" if fault.length == 1 else f"{fault.length:,} bytes were"
    return (
        f"{size} {_WORDS[fault.kind]}: connection {fault.connection}, line {fault.line}, from "
        f"offset {fault.offset} on"
    )


def count(endings: Iterable[Any]) -> str:
    """
    How many there are of each, in words.
    """
    found: dict[str, int] = {}
    for ending in endings:
        found[str(ending)] = found.get(str(ending), 0) + 1
    return ", ".join(f"{number:,} {ending}" for ending, number in found.items())
