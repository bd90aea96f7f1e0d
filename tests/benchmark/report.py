"""
What the benchmark writes: tables in reStructuredText, and a chart in SVG.
"""

import os
import platform
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log10
from pathlib import Path

import twisted
from cryptography.hazmat.backends.openssl import backend

from tests.benchmark.servers import EMPTY, KVSERVER, LINERECEIVER, UVLOOP, WORKERS, C

Results = Mapping[tuple[str, str], Mapping[str, float]]
"""
For each server and workload the medians, by name.
"""

COLOURS = ("#c0392b", "#2c6fbb", "#7f8c8d", "#b7950b", "#1e8449", "#17202a", "#148f9c", "#7d3c98")


def _release(version: str) -> str:
    """
    A version of OpenSSL without its date.
    """
    return " ".join(version.split()[:2])


def machine() -> str:
    """
    What it was measured on.
    """
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return (
        f"{os.cpu_count()} processors ({model}), Linux {platform.release()}, "
        f"Python {platform.python_version()} ({_release(ssl.OPENSSL_VERSION)}), "
        f"Twisted {twisted.__version__} ({_release(backend.openssl_version_text())})"
    )


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    A simple table.
    """
    everything = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in everything) for column in range(len(head))]
    rule = " ".join("=" * width for width in widths)
    lines = [
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in everything
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule]) + "\n"


def number(value: float) -> str:
    """
    Three significant digits, and no exponent.
    """
    if value == 0:
        return "0"
    digits = 2 - int(log10(abs(value)) // 1)
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def _ratio(results: Results, workload: str, name: str, peer: str) -> str:
    try:
        own, other = results[KVSERVER, workload][name], results[peer, workload][name]
    except KeyError:
        return "-"
    return f"{own / other:.2f}" if other else "-"


SUMMARY = (
    ("ping-pong 50", "cpu", "ping-pong, 50 clients: CPU a line"),
    ("pipelined", "lines", "pipelined, 16 clients, depth 100: lines a second"),
    ("bulk", "bytes", "bulk, lines of 64 KiB: bytes a second"),
    ("connect", "lines", "connect, echo, close: a second"),
    ("connect 1", "cpu", "connect, echo, close, 1 client: CPU a connection"),
    ("held", "memory", "memory of a connection that is held"),
    ("TLS ping-pong 50", "cpu", "TLS ping-pong, 50 clients: CPU a line"),
    ("TLS pipelined", "lines", "TLS pipelined, 16 clients, depth 100: lines a second"),
    ("TLS bulk", "cpu", "TLS bulk, lines of 64 KiB: CPU a line"),
    ("TLS connect", "cpu", "TLS connect, echo, close: CPU a connection"),
    ("TLS connect", "lines", "TLS connect, echo, close: a second"),
    ("TLS held", "memory", "memory of a TLS connection that is held"),
)


def summary(results: Results, names: Sequence[str]) -> str:
    """
    The daemon's figures as ratios to those of each peer.
    """
    peers = [name for name in names if name not in (KVSERVER, EMPTY, *WORKERS)]
    return grid(
        ["kvserver's figure : that of", *peers],
        [
            [text, *(_ratio(results, workload, name, peer) for peer in peers)]
            for workload, name, text in SUMMARY
        ],
    )


def at(results: Results, names: Sequence[str], workload: str) -> str:
    """
    One workload: all servers, all figures.
    """
    head = [
        *("server", "CPU a line, us", "lines a second", "MB a second", "p50, us", "p99, us"),
        *("server busy, %", "load busy, %"),
    ]
    rows = []
    for name in names:
        if (name, workload) in results:
            values = results[name, workload]
            figures = [values["cpu"], values["lines"], values["bytes"] / 1e6]
            cells = map(number, [*figures, values["p50"], values["p99"]])
            busy = (f"{values[part] * 100:.0f}" for part in ("busy", "load"))
            rows.append([name, *cells, *busy, _ratio(results, workload, "cpu", name)])
    text = grid([*head, "kvserver's CPU : its"], rows)
    masters = [
        f"{name}: {number(results[name, workload]['own'])} us"
        for name in WORKERS
        if (name, workload) in results
    ]
    return text + (f"\nThe master's part of it: {', '.join(masters)}.\n" if masters else "")


def processes(results: Results, names: Sequence[str]) -> str:
    """
    What a server takes before anybody is connected, and for who is connected and silent.
    """

    def cell(name: str, what: str, figure: str, unit: float = 1.0) -> str:
        values = results.get((name, what))
        return number(values[figure] / unit) if values else "-"

    head = [
        *("server", "start to ready, ms", "memory at rest, MB", "bytes a held connection"),
        *("TLS: start to ready, ms", "memory at rest, MB", "bytes a held connection"),
    ]
    rows = [
        [
            name,
            *(
                cell(name, f"{wire}{what}", figure, unit)
                for wire in ("", "TLS ")
                for what, figure, unit in (
                    ("start", "seconds", 1e-3),
                    ("rest", "memory", 1e6),
                    ("held", "memory", 1),
                )
            ),
        ]
        for name in names
    ]
    return grid(head, rows)


def table(results: Results, names: Sequence[str], workloads: Sequence[str], versions: str) -> str:
    """
    All that has been measured.

    @param versions: Those of the peers.
    """
    measured = {workload for _, workload in results}
    parts = [
        f"Measured by ``python -m tests.benchmark`` on {machine()}, {versions}. Medians.",
        "Where the load is busy to about 100 %, the server would have done more: its lines and\n"
        "bytes a second are then those of the load, and only the CPU time can be compared.",
        summary(results, names),
    ]
    if "start" in measured:
        parts.append(processes(results, names))
    for workload in workloads:
        if workload in measured:
            parts.append(f"{workload}\n{'-' * len(workload)}\n\n{at(results, names, workload)}")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _bars(costs: Mapping[str, float], colours: Mapping[str, str]) -> Iterator[str]:
    most = max(costs.values())
    yield '<text x="10" y="20" font-weight="bold">CPU a line, ping-pong, 50 clients (us)</text>'
    for row, (name, cost) in enumerate(sorted(costs.items(), key=lambda item: item[1])):
        top, width = 40 + 33 * row, 230 * cost / most
        yield f'<text x="150" y="{top + 14}" text-anchor="end">{name}</text>'
        yield f'<rect x="158" y="{top}" width="{width:.0f}" height="20" fill="{colours[name]}"/>'
        yield f'<text x="{164 + width:.0f}" y="{top + 14}">{cost:.1f}</text>'


def _curves(costs: Mapping[str, Mapping[int, float]], colours: Mapping[str, str]) -> Iterator[str]:
    most = max(max(curve.values()) for curve in costs.values())
    clients = sorted({n for curve in costs.values() for n in curve})

    def x(n: int) -> str:
        return f"{500 + 260 * log10(n) / (log10(clients[-1]) or 1):.0f}"

    def y(cost: float) -> str:
        return f"{290 - 240 * cost / most:.0f}"

    yield '<text x="480" y="20" font-weight="bold">CPU a line (us), by number of clients</text>'
    for tick in range(0, int(most) + 1, 10):
        yield f'<line x1="500" x2="760" y1="{y(tick)}" y2="{y(tick)}" stroke="#ccc"/>'
        yield f'<text x="494" y="{y(tick)}" dy="4" text-anchor="end">{tick}</text>'
    for n in clients:
        if log10(n).is_integer():
            yield f'<text x="{x(n)}" y="310" text-anchor="middle">{n:,}</text>'
    for row, (name, curve) in enumerate(costs.items()):
        points = " ".join(f"{x(n)},{y(cost)}" for n, cost in sorted(curve.items()))
        colour = colours[name]
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield f'<text x="770" y="{60 + 18 * row}" fill="{colour}">{name}</text>'


def chart(results: Results, growth: Sequence[int]) -> str:
    """
    What a line costs, next to the peers, and how that grows with the clients.
    """
    costs = {
        name: figures["cpu"]
        for (name, workload), figures in results.items()
        if workload == "ping-pong 50" and name not in WORKERS
    }
    colours = dict(zip(costs, COLOURS, strict=False))
    curves = {
        name: {
            n: results[name, f"ping-pong {n}"]["cpu"]
            for n in growth
            if (name, f"ping-pong {n}") in results
        }
        for name in (KVSERVER, LINERECEIVER, UVLOOP, C)
        if name in costs
    }
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="330" '
            'font-family="sans-serif" font-size="12">',
            '<rect width="900" height="330" fill="white"/>',
            *_bars(costs, colours),
            *_curves(curves, colours),
            "</svg>\n",
        ]
    )
