"""
The page of the operations site: an overview as HTML, which needs nothing from elsewhere.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from kvserver.operations.rates import SAMPLES

_STYLE = """\
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --dim: #767c86; --ink: #2f6feb;
  --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --dim: #9aa2ad; --ink: #79a8ff; --good: #4ac26b;
  --bad: #ff7b72; } }
* { box-sizing: border-box }
body { font: 14px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 20px 24px 40px;
  max-width: 1240px }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px }
h1 { font-size: 22px; margin: 0 }
h2 { font-size: 15px; margin: 26px 0 8px }
nav { margin-left: auto; display: flex; gap: 14px }
a { color: var(--ink); text-decoration: none }
a:hover { text-decoration: underline }
.dim, th, dt, figcaption, text { color: var(--dim); fill: var(--dim) }
.good { color: var(--good) } .bad { color: var(--bad) }
#gone { background: var(--bad); color: #fff; padding: 6px 12px; border-radius: 6px }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 12px;
  margin: 16px 0 }
figure { margin: 0; padding: 10px 14px 12px; border: 1px solid var(--line); border-radius: 8px }
figcaption { white-space: nowrap }
.axis { display: flex; justify-content: space-between; font-size: 11px; margin-top: 3px }
figure strong { display: block; font-size: 24px; font-weight: 600; line-height: 1.25 }
svg { display: block; width: 100%; height: 56px; margin-top: 6px }
polyline { fill: none; stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke }
polygon { fill: var(--ink); opacity: .13 }
.base { stroke: var(--line); vector-effect: non-scaling-stroke }
.columns { display: grid; grid-template-columns: minmax(0, 3fr) minmax(200px, 1fr); gap: 0 36px }
@media (max-width: 800px) { .columns { grid-template-columns: 1fr } }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500 }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); white-space: nowrap }
th:last-child, td:last-child { padding-right: 0 }
tbody tr:hover { background: var(--soft) }
.number { text-align: right }
.gap { text-align: center; color: var(--dim); padding: 10px }
dl { display: grid; grid-template-columns: auto auto; margin: 0;
  font-variant-numeric: tabular-nums }
dt, dd { margin: 0; padding: 4px 0; border-bottom: 1px solid var(--line) }
dd { text-align: right }
form { display: flex; gap: 8px; align-items: center; margin: 0 0 8px }
input { font: inherit; padding: 4px 9px; border: 1px solid var(--line); border-radius: 6px;
  width: 260px; background: transparent; color: inherit }
button { font: inherit; padding: 4px 12px; border: 1px solid var(--line); border-radius: 6px;
  background: var(--soft); color: inherit }
"""

_SCRIPT = """\
setInterval(async () => {
  if (document.hidden) return
  try {
    const answer = await fetch(location.href)
    if (!answer.ok) throw answer
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html')
    for (const part of document.querySelectorAll('.live'))
      part.replaceWith(page.getElementById(part.id))
    document.getElementById('gone').hidden = true
  } catch { document.getElementById('gone').hidden = false }
}, 5000)
"""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_hash(_STYLE)}'; script-src "
        f"'sha256-{_hash(_SCRIPT)}'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
"""
The headers of this page. Only its own style and script are allowed, by their hashes (Content
Security Policy Level 3).
"""

_LIMITS = {
    "max_connections": ("connections", "{:,}"),
    "max_connections_per_source": ("per source", "{:,}"),
    "idle_timeout": ("idle time-out", "{:,} s"),
    "write_timeout": ("write time-out", "{:,} s"),
    "drain_timeout": ("drain time-out", "{:,} s"),
    "drain_delay": ("drain delay", "{:,} s"),
}

_RIGHT = frozenset(("connections", "accepted", "restarts", "in", "out", "age", "CPU"))


def render(overview: dict[str, Any]) -> bytes:
    """
    Render the page.

    @param overview: What C{Overview.describe} returns.
    """
    unit, ready = overview["unit"], overview["ready"]
    host, address = escape(overview["host"]), escape(overview["address"])
    mood = "good" if ready == "ready" else "bad"
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>kvserver on {host}</title>
<style>{_STYLE}</style>
<header>
<h1>kvserver</h1>
<span>{host}</span>
<span class="dim">{escape(overview["version"])}</span>
<nav><a href="/metrics">metrics</a> <a href="/healthz">healthz</a> <a href="/readyz">readyz</a>
<a href="/connections">connections</a></nav>
</header>
<p id="gone" hidden>No answer: this is how it was.</p>
<main>
<div class="live" id="state">
<p><b class="{mood}">{escape(ready)}</b>
<span class="dim">· up {_duration(overview["uptime"])}</span></p>
{_cards(overview)}
<div class="columns">
<section><h2>Listeners</h2>{_listeners(overview["listeners"])}</section>
<section><h2>Limits</h2>{_limits(overview["limits"])}</section>
</div>
{_workers(overview["workers"])}
</div>
<h2>Connections</h2>
<form><input name="address" type="search" value="{address}" placeholder="address, or a part of it"
aria-label="address"> <button>Show</button></form>
<div class="live" id="connections">{_connections(overview, unit)}</div>
</main>
<script>{_SCRIPT}</script>
</html>
""".encode("utf-8", "replace")


def _cards(overview: dict[str, Any]) -> str:
    totals, rates, unit = overview["totals"], overview["rates"], overview["unit"]
    cards = [
        _card(
            "connections now",
            f"{totals['connections']:,}",
            f"of {overview['limits']['max_connections']:,}",
            rates["connections"],
            _count,
        )
    ]
    names = {"accepted": "accepted", unit: unit, "bytes_in": "received", "bytes_out": "sent"}
    for name, text in names.items():
        if name is not None:
            show = _size if name.startswith("bytes") else _count
            now = rates[name][-1] if rates[name] else 0
            total = f"{show(totals[name])} in all"
            cards.append(_card(f"{text} a second", show(now), total, rates[name], show))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(
    name: str, now: str, more: str, values: Sequence[float], show: Callable[[float], str]
) -> str:
    peak = show(max(values, default=0))
    return (
        f"<figure><figcaption>{escape(name)}</figcaption><strong>{now}</strong>"
        f'<span class="dim">{more}</span>{_chart(values, name)}<div class="axis dim">'
        f"<span>10 min ago</span><span>peak {peak}</span><span>now</span></div></figure>"
    )


def _chart(values: Sequence[float], name: str) -> str:
    """
    Draw values as a line; the last one is at the right edge.
    """
    width, height = SAMPLES - 1, 40
    top = max(values, default=0) or 1
    # The first value is drawn twice, so that it is seen also if it is the only one.
    values = [*values[:1], *values]
    begin = width - len(values) + 1
    points = " ".join(
        f"{begin + place},{height - 2 - (height - 4) * value / top:.1f}"
        for place, value in enumerate(values)
    )
    drawn = ""
    if values:
        drawn = (
            f'<polygon points="{begin},{height} {points} {width},{height}"/>'
            f'<polyline points="{points}"/>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(name)}, the last 10 minutes"><line class="base" x2="{width}" '
        f'y1="{height}" y2="{height}"/>{drawn}</svg>'
    )


def _listeners(listeners: Iterable[dict[str, Any]]) -> str:
    return _table(
        ("listener", "on", "state", "connections", "accepted", "restarts"),
        (
            (
                *(one["listener"], one["address"], _yes("listening", one["listening"])),
                *(f"{one[name]:,}" for name in ("connections", "accepted", "restarts")),
            )
            for one in listeners
        ),
    )


def _workers(workers: Sequence[dict[str, Any]]) -> str:
    if not workers:
        return ""
    rows = (
        (
            *(str(one["worker"]), _yes("ready", one["ready"]), str(one["pid"] or "")),
            *(f"{one['connections']:,}", f"{one['cpu_seconds']:,.1f} s", str(one["restarts"])),
        )
        for one in workers
    )
    columns = "worker", "state", "pid", "connections", "CPU", "restarts"
    return f"<h2>Workers</h2>{_table(columns, rows)}"


def _yes(word: str, isSo: bool) -> str:
    return word if isSo else f"not {word}"


def _limits(limits: dict[str, int]) -> str:
    lines = (
        f"<dt>{text}</dt><dd>{form.format(limits[name]) if limits[name] else 'none'}</dd>"
        for name, (text, form) in _LIMITS.items()
    )
    return f"<dl>{''.join(lines)}</dl>"


def _connections(overview: dict[str, Any], unit: str | None) -> str:
    oldest, newest = overview["oldest"], overview["newest"]
    if not oldest and not newest:
        return '<p class="dim">none</p>'
    hasWorkers = bool(overview["workers"])
    columns = [
        *("id", "peer", "client", "listener", *(["worker"] if hasWorkers else []), "TLS"),
        *([unit] if unit else []),
        *("in", "out", "age"),
    ]

    def row(one: dict[str, Any]) -> tuple[str, ...]:
        return (
            *(str(one["id"]), one["peer"], one["client"] or "", one["listener"]),
            *([str(one["worker"] or "")] if hasWorkers else []),
            " ".join(filter(None, (one["tls"], one["subject"]))),
            *([f"{one[unit]:,}"] if unit else []),
            *(_size(one["bytes_in"]), _size(one["bytes_out"]), _duration(one["seconds"])),
        )

    left = overview["totals"]["connections"] - len(oldest) - len(newest)
    gap = f"{left:,} more between these" if not overview["address"] else "between these, maybe more"
    hasGap = bool(newest) and left > 0
    return _table(columns, map(row, oldest), gap if hasGap else None, map(row, newest), unit)


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    gap: str | None = None,
    more: Iterable[Sequence[str]] = (),
    unit: str | None = None,
) -> str:
    """
    A table. All cells are plain text.

    @param gap: What is between the C{rows} and C{more}.
    """
    right = [' class="number"' if name in _RIGHT or name == unit else "" for name in columns]
    head = "".join(f"<th{a}>{escape(name)}</th>" for a, name in zip(right, columns, strict=True))

    def body(rows: Iterable[Sequence[str]]) -> str:
        return "".join(
            "<tr>"
            + "".join(f"<td{a}>{escape(cell)}</td>" for a, cell in zip(right, row, strict=True))
            + "</tr>\n"
            for row in rows
        )

    between = gap and f'<tr><td class="gap" colspan="{len(columns)}">{escape(gap)}</td></tr>\n'
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body(rows)}{between or ''}{body(more)}</tbody></table></div>"
    )


def _count(value: float) -> str:
    return f"{value:,.1f}" if 0 < value < 10 and value != int(value) else f"{value:,.0f}"


def _size(value: float) -> str:
    """
    Format a number of bytes.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _duration(seconds: float) -> str:
    """
    Format a time in its two largest units.
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"
