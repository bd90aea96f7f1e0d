"""
Where people see it: plain lines, and on a terminal colours, a progress bar and a table by C{rich}.
"""

import os
from typing import Any, TextIO

from zope.interface import Interface, implementer

from kvserver.check import text
from kvserver.check.latency import Interval
from kvserver.check.path import Check
from kvserver.check.report import BROKEN
from kvserver.check.run import Run

_STYLES = {"ok": "green", "FAILS": "bold red", "cannot be told": "yellow"}

_BARS = "▁▂▃▄▅▆▇█"

_CURVE = 60


class IScreen(Interface):
    """
    Shows a run.
    """

    def check(check: Check) -> None:
        """
        A rule has been tried.
        """

    def trouble(line: str) -> None:
        """
        A fault, or the end of a connection.
        """

    def interval(run: Run, interval: Interval, share: float | None) -> None:
        """
        One more interval of a load is over, and with it this share of all; None: it has no end.
        """

    def report(run: Run, result: dict[str, Any]) -> None:
        """
        All is over.
        """


@implementer(IScreen)
class Silence:
    """
    Shows nothing: the document is alone on standard output.
    """

    def check(self, check: Check) -> None:
        """
        See L{IScreen}.
        """

    def trouble(self, line: str) -> None:
        """
        See L{IScreen}.
        """

    def interval(self, run: Run, interval: Interval, share: float | None) -> None:
        """
        See L{IScreen}.
        """

    def report(self, run: Run, result: dict[str, Any]) -> None:
        """
        See L{IScreen}.
        """


@implementer(IScreen)
class Plain:
    """
    Plain lines.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def _line(self, line: str) -> None:
        say(line, self._file)

    def check(self, check: Check) -> None:
        """
        See L{IScreen}.
        """
        self._line(text.ruleLine(check))

    def trouble(self, line: str) -> None:
        """
        See L{IScreen}.
        """
        self._line(line)

    def interval(self, run: Run, interval: Interval, share: float | None) -> None:
        """
        See L{IScreen}.
        """
        self._line(text.intervalLine(interval, sum(run.faults.counts.values())))

    def report(self, run: Run, result: dict[str, Any]) -> None:
        """
        See L{IScreen}.
        """
        for line in text.summary(result):
            self._line(line)
        rows = text.latencyTable(result)
        for row in rows if len(rows) > 1 else ():
            self._line(f"{row[0]:<10}" + "".join(f"{cell:>11}" for cell in row[1:]))
        self._line(f"result: {result['result']}")


@implementer(IScreen)
class Rich:
    """
    A terminal.
    """

    def __init__(self, file: TextIO) -> None:
        """
        @raise ImportError: C{rich} is not installed.
        """
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=file, highlight=False)
        self._progress = Progress(
            BarColumn(20),
            TextColumn("{task.description}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._task: Any = None

    def check(self, check: Check) -> None:
        """
        See L{IScreen}.
        """
        from rich.text import Text

        line = Text(text.ruleLine(check))
        line.highlight_words([f"  {check.outcome}"], _STYLES[check.outcome])
        self._console.print(line, soft_wrap=True)

    def trouble(self, line: str) -> None:
        """
        See L{IScreen}.
        """
        self._console.print(line, style="red", markup=False, soft_wrap=True)

    def interval(self, run: Run, interval: Interval, share: float | None) -> None:
        """
        See L{IScreen}.
        """
        line = text.intervalLine(interval, sum(run.faults.counts.values())).strip()
        if self._task is None:
            self._task = self._progress.add_task(line, total=1.0)
            self._progress.start()
        total = None if share is None else 1.0
        self._progress.update(self._task, description=line, completed=share or 0.0, total=total)
        self._progress.refresh()

    def report(self, run: Run, result: dict[str, Any]) -> None:
        """
        See L{IScreen}.
        """
        from rich import box
        from rich.table import Table

        self._progress.stop()
        for line in text.summary(result):
            self._console.print(line, markup=False, soft_wrap=True)
        rows = text.latencyTable(result)
        if len(rows) > 1:
            table = Table(box=box.SIMPLE_HEAD)
            # Upright, since a terminal may have no more than 80 columns.
            names, *columns = zip(*rows, strict=True)
            for number, name in enumerate(names):
                table.add_column(name, justify="right" if number else "left")
            for cells in columns:
                table.add_row(*cells)
            self._console.print(table)
            self._console.print(f"p99 over time  {curve(run)}", soft_wrap=True)
        style = "bold red" if result["result"] == BROKEN else "bold"
        self._console.print(f"result: {result['result']}", style=style)


def say(line: str, file: TextIO) -> None:
    """
    Write a line. If nobody reads what is written, that is no reason to end.
    """
    try:
        print(line, file=file, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def curve(run: Run) -> str:
    """
    The intended latency's 99th percentile over time, as a small curve.
    """
    assert run.latency is not None
    found = [interval.p99 for interval in run.latency.intervals if interval.count]
    if not found:
        return ""
    step = -(-len(found) // _CURVE)
    values = [max(found[at : at + step]) for at in range(0, len(found), step)]
    highest = max(values) or 1.0
    bars = (_BARS[round(value / highest * (len(_BARS) - 1))] for value in values)
    return f"{''.join(bars)}  0 to {text.duration(highest)}"


def screenFor(file: TextIO, isSilent: bool) -> IScreen:
    """
    What shows a run on this file.
    """
    if isSilent:
        return Silence()
    if file.isatty():
        try:
            return Rich(file)
        except ImportError:
            pass
    return Plain(file)
