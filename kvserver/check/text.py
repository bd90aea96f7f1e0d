"""
What people see, as plain lines.
"""

import sys
from typing import Any

from kvserver.check.faults import Fault
from kvserver.check.latency import PERCENTILES, Interval
from kvserver.check.path import Check, describe
from kvserver.check.run import End, Run


def ruleLine(check: Check) -> str:
    """
    What became of a rule.
    """
    return f"{check.rule:<15} {check.outcome:<15} {check.detail}".replace(
        f" {check.outcome}", f"  {check.outcome}  ", 1
    )


def faultLine(run: Run, fault: Fault) -> str:
    """
    A fault.
    """
    return (
        f"fault: {fault.kind}: {describe(fault)}; at {run.time(fault.time):.3f} s; expected "
        f"{fault.expected.hex() or 'nothing'}, received {fault.received.hex() or 'nothing'}"
    )


def endLine(run: Run, end: End) -> str:
    """
    How a connection ended.
    """
    local = end.local or "not established"
    return (
        f"end: {end.ending}: connection {end.connection} ({local}) at offset {end.offset}, "
        f"{end.outstanding:,} bytes outstanding, at {run.time(end.time):.3f} s"
    )


def intervalLine(interval: Interval, faults: int) -> str:
    """
    What an interval of a load was like.
    """
    rate = interval.count / max(interval.duration, 1e-9)
    return (
        f"{interval.begin + interval.duration:8.1f} s  {rate:10,.0f} lines/s  "
        f"p50 {duration(interval.p50)}  p99 {duration(interval.p99)}  "
        f"max {duration(interval.longest)}  faults {faults:,}"
    )


def duration(seconds: float | None) -> str:
    """
    A time with its unit.
    """
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3f} s"


def summary(result: dict[str, Any]) -> list[str]:
    """
    The report in words, of what the document says.
    """
    lines: list[str] = []
    endings = result["connections"]["endings"]
    said = ", ".join(f"{count:,} {ending}" for ending, count in endings.items())
    lines.append(
        f"{result['lines_returned']:,} of {result['lines_sent']:,} lines came back "
        f"({result['bytes_returned']:,} of {result['bytes_sent']:,} bytes) in "
        f"{result['duration']:.1f} s"
    )
    lines.append(f"connections: {result['connections']['opened']:,} opened; {said or 'none ended'}")
    counts = result["fault_counts"]
    found = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    lines.append(f"faults: {found or 'none'}")
    if result["latency"] is not None:
        lines += _lateness(result)
    return lines


def latencyTable(result: dict[str, Any]) -> list[list[str]]:
    """
    The latencies, as rows of a table; the first one has the names of the columns.
    """
    names = ("count", "min", *PERCENTILES, "max")
    rows = [["latency", *names]]
    for kind, table in (result["latency"] or {}).items():
        if table is not None and table["count"]:
            cells = [f"{table['count']:,}", *(duration(table[name]) for name in names[1:])]
            rows.append([kind, *cells])
    return rows


def _lateness(result: dict[str, Any]) -> list[str]:
    lines = []
    late = result["lateness"]
    lines.append(
        f"lateness: kvcheck itself was late by {duration(late['p99'])} (p99), "
        f"{duration(late['max'])} (max); {late['lines']:,} lines are left out for that"
    )
    lines += [
        f"gap: {gap['duration']:.3f} s without an echo from {gap['time']:.3f} s on, "
        f"{gap['connections_lost']:,} connections lost"
        for gap in result["gaps"]
    ]
    return lines


def complain(message: str) -> None:
    """
    Say in one line what is wrong.
    """
    line = " ".join(message.split())
    print(f"kvcheck: {line}", file=sys.stderr, flush=True)
