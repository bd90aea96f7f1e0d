"""
What scripts see: the document of a run.
"""

from typing import Any

from kvserver.check.faults import Fault
from kvserver.check.path import FAILS, Check
from kvserver.check.run import CLOSED, Run

OK = "ok"
BROKEN = "broken"
EXCEEDED = "exceeded"

STATUS = {OK: 0, BROKEN: 1, EXCEEDED: 3}
"""
The exit status for each result. 2 is wrong usage, or that no connection came about.
"""


def resultOf(run: Run, checks: list[Check] | None, maxP99: float | None) -> str:
    """
    What came of a run.

    @param checks: What became of the rules, if they were tried.

    @param maxP99: The bound of the intended latency's 99th percentile, in seconds.
    """
    endings = sum(count for ending, count in run.endings.items() if ending != CLOSED)
    failed = any(check.outcome == FAILS for check in checks or ())
    if sum(run.faults.counts.values()) or endings or failed:
        return BROKEN
    if maxP99 is not None and run.latency is not None:
        p99 = run.latency.intended.table()["p99"]
        if p99 is not None and p99 > maxP99:
            return EXCEEDED
    return OK


def document(run: Run, checks: list[Check] | None, maxP99: float | None) -> dict[str, Any]:
    """
    The document.
    """
    result = resultOf(run, checks, maxP99)
    # A fault is listed when it is known what it is.
    byTime = sorted(run.faults.listed, key=lambda fault: fault.time)
    latency, pauses = run.latency, run.pauses
    isTLS = run.settings.context is not None
    return {
        "target": run.settings.target.name,
        "mode": "load" if checks is None else "rules",
        "result": result,
        "status": STATUS[result],
        "interrupted": run.interrupted,
        "duration": run.time(run.lastEnd),
        "lines_sent": run.total("linesSent"),
        "lines_returned": run.total("linesReturned"),
        "bytes_sent": run.total("bytesSent"),
        "bytes_returned": run.total("bytesReturned"),
        "connections": {"opened": run.opened, "endings": dict(sorted(run.endings.items()))},
        "ends": [
            {
                "connection": end.connection,
                "local": end.local,
                "ending": end.ending,
                "offset": end.offset,
                "outstanding": end.outstanding,
                "time": run.time(end.time),
            }
            for end in run.ends
        ],
        "faults": [faultRecord(run, fault) for fault in byTime],
        "fault_counts": {kind: n for kind, n in sorted(run.faults.counts.items()) if n},
        "latency": None
        if latency is None
        else {
            "intended": latency.intended.table(),
            "actual": latency.actual.table(),
            "connect": latency.connect.table(),
            "handshake": latency.handshake.table() if isTLS else None,
        },
        "lateness": None if pauses is None else pauses.table(),
        "gaps": None
        if latency is None
        else [
            {
                "time": run.time(gap.time),
                "duration": round(gap.duration, 6),
                "connections_lost": gap.lost,
            }
            for gap in run.gaps
        ],
        "checks": None
        if checks is None
        else [
            {"rule": check.rule, "outcome": check.outcome, "detail": check.detail}
            for check in checks
        ],
    }


def faultRecord(run: Run, fault: Fault) -> dict[str, Any]:
    """
    A fault, in the document.
    """
    return {
        "kind": fault.kind,
        "connection": fault.connection,
        "local": fault.local,
        "line": fault.line,
        "offset": fault.offset,
        "length": fault.length,
        "time": run.time(fault.time),
        "expected": fault.expected.hex(),
        "received": fault.received.hex(),
    }
