"""
What a run says of itself, in memory: the document, the latencies, the words, the pictures.
"""

from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from kvserver.check import canvas, text
from kvserver.check.faults import LISTED, Fault
from kvserver.check.latency import Latency, MissingExtra, Pauses, Times
from kvserver.check.path import Check
from kvserver.check.plot import plot
from kvserver.check.report import document
from kvserver.check.run import End, IChecked, Run, Settings
from kvserver.check.screen import IScreen, Plain, Rich, curve, screenFor
from kvserver.check.serverlog import ServerLog
from kvserver.check.target import parseTarget


class Connection:
    """
    A connection that has sent and received something.
    """

    linesSent, linesReturned, bytesSent, bytesReturned = 10, 9, 640, 600

    def look(self, now: float) -> None:
        """
        See C{IChecked}.
        """

    def close(self) -> None:
        """
        See C{IChecked}.
        """


def newRun(latency: Latency | None = None) -> tuple[Run, Clock]:
    """
    A run with one connection.
    """
    clock = Clock()
    clock.advance(100)
    settings = Settings(
        parseTarget("tcp:a:1"), None, None, 2, None, (64, 64), binary=False, timeout=10.0
    )
    run = Run(clock, clock.seconds, settings, [], 1, latency)
    run.start()
    return run, clock


FAULT = Fault("lost", 3, 200, 5, 102.5, b"abc", b"", 0, "127.0.0.1:5")


def test_theDocument() -> None:
    """
    The document.
    """
    run, _ = newRun(Latency())
    connection: Any = Connection()
    assert run.begins(connection) == 0
    verifyObject(IChecked, connection, tentative=True)
    run.opened = 1
    run.faults.add(FAULT)
    run.noteEnd(connection, End(0, "127.0.0.1:5", "cut", 600, 40, 103.0))
    said = document(run, None, None)
    assert said["faults"] == [
        {
            "kind": "lost",
            "connection": 0,
            "local": "127.0.0.1:5",
            "line": 3,
            "offset": 200,
            "length": 5,
            "time": 2.5,
            "expected": "616263",
            "received": "",
        }
    ]
    assert said["ends"] == [
        {
            "connection": 0,
            "local": "127.0.0.1:5",
            "ending": "cut",
            "offset": 600,
            "outstanding": 40,
            "time": 3.0,
        }
    ]
    assert (said["mode"], said["result"], said["status"], said["checks"]) == (
        *("load", "broken"),
        *(1, None),
    )
    assert (said["lines_sent"], said["lines_returned"]) == (10, 9)
    assert (said["bytes_sent"], said["bytes_returned"], said["duration"]) == (640, 600, 3.0)
    assert said["connections"] == {"opened": 1, "endings": {"cut": 1}}
    assert said["latency"]["intended"]["count"] == 0
    assert said["latency"]["intended"]["p99.99"] is None
    assert said["latency"]["handshake"] is None


def test_results() -> None:
    """
    Results.
    """
    run, _ = newRun(Latency())
    assert run.latency is not None
    run.latency.intended.record(0.01)
    assert document(run, None, None)["status"] == 0
    assert document(run, None, 0.02)["status"] == 0
    assert document(run, None, 0.005)["result"] == "exceeded"
    assert document(run, [Check("tail", "cannot be told", "")], None)["status"] == 0
    assert document(run, [Check("tail", "FAILS", "")], None)["status"] == 1
    run.faults.add(FAULT)
    assert document(run, None, 0.005)["status"] == 1


def test_manyFaultsAreCountedAndTheFirstListed() -> None:
    """
    Many faults are counted and the first listed.
    """
    run, _ = newRun()
    for _ in range(LISTED + 5):
        run.faults.add(FAULT)
    said = document(run, [], None)
    assert said["fault_counts"] == {"lost": LISTED + 5}
    assert len(said["faults"]) == LISTED
    assert said["latency"] is said["lateness"] is said["gaps"] is None


def test_percentiles() -> None:
    """
    Percentiles.
    """
    times = Times()
    for number in range(1, 10_001):
        times.record(number / 1000)
    table = times.table()
    assert table["count"] == 10_000
    for name, expected in (("min", 0.001), ("p50", 5.0), ("p99", 9.9), ("p99.99", 9.999)):
        assert table[name] == pytest.approx(expected, rel=0.002)
    assert table["max"] == 10.0


def test_intervalsAreBounded() -> None:
    """
    Intervals are bounded.
    """
    latency = Latency()
    for number in range(5000):
        latency.intended.record(0.001 * (number % 7 + 1))
        latency.tick(float(number), 1.0)
    assert len(latency.intervals) <= 1201
    assert sum(interval.count for interval in latency.intervals) > 4900
    assert max(interval.longest for interval in latency.intervals) == pytest.approx(0.007)


def test_aPauseOfOurOwn() -> None:
    """
    A pause of our own.
    """
    pauses = Pauses(0.0, 0.02)
    for moment in (0.01, 0.03, 0.05):
        pauses.look(moment)
    assert pauses.lastEnd == 0.0
    pauses.look(0.35)
    assert pauses.lastEnd == 0.35
    assert pauses.total == pytest.approx(0.3)
    assert pauses.table()["max"] == pytest.approx(0.28)


def test_aGapIsWhenLinesWereDue() -> None:
    """
    A gap is when lines were due.
    """
    run, clock = newRun(Latency())
    run.echoed(101.0)
    clock.advance(1)
    run.echoed(102.0)
    assert run.gaps == []
    run.owedSince = 101.5
    for _ in range(30):
        clock.advance(0.02)
    connection: Any = Connection()
    run.noteEnd(connection, End(0, "127.0.0.1:5", "reset", 0, 0, 102.1))
    run.echoed(102.5)
    (gap,) = run.gaps
    assert (gap.time, gap.duration, gap.lost) == (102.0, 0.5, 1)
    run.owedSince = 102.95
    run.echoed(103.0)
    assert len(run.gaps) == 1
    run.stop()


def test_words() -> None:
    """
    Words.
    """
    run, _ = newRun()
    line = text.faultLine(run, FAULT)
    for part in ("lost", "connection 0", "line 3", "offset 200"):
        assert part in line
    assert "tail" in text.ruleLine(Check("tail", "FAILS", "it is lost"))
    assert [text.duration(t) for t in (None, 5e-6, 0.0123, 2.5)] == [
        *("-", "5 us"),
        *("12.3 ms", "2.500 s"),
    ]


class Terminal(StringIO):
    """
    A terminal that keeps what is written.
    """

    def isatty(self) -> bool:
        """
        It is one.
        """
        return True


def shown(screen: IScreen) -> None:
    """
    A run, from its first rule to its report.
    """
    verifyObject(IScreen, screen)
    run, _ = newRun(Latency())
    assert run.latency is not None
    run.latency.intended.record(0.005)
    interval = run.latency.tick(0.0, 1.0)
    screen.check(Check("tail", "FAILS", "it is [lost]"))
    screen.trouble("end: [reset]")
    screen.interval(run, interval, 0.5)
    screen.interval(run, interval, None)
    screen.report(run, document(run, None, None))
    run.stop()


def test_screens() -> None:
    """
    A terminal and a file show the same.
    """
    for file in (Terminal(), StringIO()):
        screen = screenFor(file, isSilent=False)
        assert isinstance(screen, Rich) == file.isatty()
        shown(screen)
        for words in ("FAILS", "[lost]", "[reset]", "p99.99", "5 ms", "result: ok"):
            assert words in file.getvalue()
    file = StringIO()
    shown(screenFor(file, isSilent=True))
    assert file.getvalue() == ""


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures(ending: str, tmp_path: Path) -> None:
    """
    Pictures.
    """
    run, _ = newRun(Latency())
    assert run.latency is not None
    for number in range(50):
        run.latency.intended.record(0.001 * (number + 1))
        run.latency.tick(float(number), 1.0)
    run.lastEnd = run.begin + 50
    run.faults.add(FAULT)
    path = tmp_path / f"plot.{ending}"
    plot(str(path), run)
    assert path.read_bytes().startswith(b"<svg" if ending == "svg" else b"\x89PNG")
    assert "0 to 50 ms" in curve(run)
    verifyObject(canvas.ICanvas, canvas.canvasFor(str(path), 10, 10))


def test_whatIsNotInstalledIsSaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What is not installed is said.
    """
    missing: dict[str, ModuleType | None] = {"PIL": None, "rich.console": None}
    for name, module in missing.items():
        monkeypatch.setitem(__import__("sys").modules, name, module)
    with pytest.raises(MissingExtra, match="pip install"):
        canvas.canvasFor("a.png", 1, 1)

    assert isinstance(screenFor(Terminal(), isSilent=False), Plain)


def test_theServerLog(tmp_path: Path) -> None:
    """
    The server log.
    """
    path = tmp_path / "access.log"
    path.write_text('{"bytes_in": 5, "reason": "old"}\n')
    log = ServerLog(str(path))
    assert log.find(5) is None
    with path.open("a") as file:
        file.write('{"bytes_in": 5, "rea')
        file.flush()
        assert log.find(5) is None
        file.write('son": "reset"}\nno json\n[1]\n')
    found = log.find(5)
    assert found is not None
    assert found["reason"] == "reset"
    path.unlink()
    assert log.find(5) is None
    path.write_text('2026 [log] {"bytes_in": 5, "reason": "rotated"}\n')
    found = log.find(5)
    assert found is not None
    assert found["reason"] == "rotated"
    with pytest.raises(OSError, match="No such file"):
        ServerLog(str(tmp_path / "none"))
