"""
A picture of a run: the latencies over time with the faults marked, and the percentiles.
"""

import math
from collections.abc import Callable

from kvserver.check.canvas import ICanvas, canvasFor
from kvserver.check.latency import PERCENTILES
from kvserver.check.run import Run

WIDTH, HEIGHT = 900, 620

_LEFT, _RIGHT = 80, 880

_CURVES = (("p50", "#3366cc"), ("p99", "#ff9900"), ("longest", "#999999"))

_FAULT = "#dd0000"

Scale = Callable[[float], float]


def requireFor(path: str) -> None:
    """
    @raise MissingExtra: What draws such a file is not installed.
    """
    canvasFor(path, 1, 1)


def plot(path: str, run: Run) -> None:
    """
    Draw the run.

    @raise OSError: The file can't be written.
    """
    canvas = canvasFor(path, WIDTH, HEIGHT)
    _overTime(canvas, run, 50, 300)
    _percentiles(canvas, run, 380, 580)
    canvas.save(path)


def _logarithmic(values: list[float], top: float, bottom: float) -> tuple[Scale, list[float]]:
    """
    A scale from the smallest of these times to the longest, by powers of ten, and those powers.
    """
    some = [value for value in values if value > 0] or [1e-3]
    low, high = math.floor(math.log10(min(some))), math.ceil(math.log10(max(some)))
    high = max(high, low + 1)

    def scale(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return bottom - share * (bottom - top)

    return scale, [10.0**power for power in range(low, high + 1)]


def _axis(canvas: ICanvas, scale: Scale, marks: list[float]) -> None:
    for mark in marks:
        y = scale(mark)
        canvas.line([(_LEFT, y), (_RIGHT, y)], "#dddddd", 1)
        words = f"{mark:g} s" if mark >= 1 else f"{mark * 1e3:g} ms"
        canvas.text((_LEFT - 6, y), words if mark >= 1e-4 else f"{mark * 1e6:g} us", "end")


def _overTime(canvas: ICanvas, run: Run, top: float, bottom: float) -> None:
    assert run.latency is not None
    canvas.text(
        (_LEFT, top - 28), f"{run.settings.target.name}: latency from the intended time", "start"
    )
    x = _LEFT + 0.0
    for words, colour in (
        ("median", _CURVES[0][1]),
        ("p99", _CURVES[1][1]),
        ("max", _CURVES[2][1]),
    ):
        canvas.line([(x, top - 10), (x + 20, top - 10)], colour, 2)
        canvas.text((x + 25, top - 10), words, "start")
        x += 90
    found = len(run.faults.listed) + len(run.ends)
    canvas.line([(x + 10, top - 16), (x + 10, top - 4)], _FAULT, 2)
    canvas.text((x + 20, top - 10), f"fault, or end of a connection ({found:,})", "start")
    intervals = [interval for interval in run.latency.intervals if interval.count]
    end = max(run.time(run.lastEnd), 1e-3)
    values = [getattr(each, name) for each in intervals for name, _ in _CURVES]
    scale, marks = _logarithmic(values, top, bottom)
    _axis(canvas, scale, marks)

    def across(time: float) -> float:
        return _LEFT + min(time / end, 1.0) * (_RIGHT - _LEFT)

    for moment in [run.time(fault.time) for fault in run.faults.listed] + [
        run.time(each.time) for each in run.ends
    ]:
        canvas.line([(across(moment), top), (across(moment), bottom)], _FAULT, 1)
    for name, colour in _CURVES:
        points = []
        for each in intervals:
            y = scale(getattr(each, name))
            points += [(across(each.begin), y), (across(each.begin + each.duration), y)]
        if points:
            canvas.line(points, colour, 2)
    for part in range(5):
        canvas.text((across(end * part / 4), bottom + 14), f"{end * part / 4:.4g} s", "middle")


def _percentiles(canvas: ICanvas, run: Run, top: float, bottom: float) -> None:
    assert run.latency is not None
    canvas.text((_LEFT, top - 20), "percentiles: intended (blue), actual (orange)", "start")
    tables = [run.latency.intended.table(), run.latency.actual.table()]
    names = ["min", *PERCENTILES, "max"]
    values = [float(table[name] or 0.0) for table in tables for name in names]
    scale, marks = _logarithmic(values, top, bottom)
    _axis(canvas, scale, marks)
    step = (_RIGHT - _LEFT) / (len(names) - 1)
    for number, name in enumerate(names):
        canvas.text((_LEFT + number * step, bottom + 14), name, "middle")
    for table, (_, colour) in zip(tables, _CURVES, strict=False):
        if table["count"]:
            points = [
                (_LEFT + number * step, scale(float(table[name] or 0.0)))
                for number, name in enumerate(names)
            ]
            canvas.line(points, colour, 2)
