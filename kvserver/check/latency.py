"""
How long it took: histograms of times, and how late the checker itself was.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

INSTALL = "pip install '.[check]'"

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99}

_MICROSECONDS = 1e6

_LONGEST = 24 * 3600 * 1_000_000

_INTERVALS = 1200
"""
How many intervals are kept; then each two become one.
"""


class MissingExtra(Exception):
    """
    What shows results is not installed. Says what to install.
    """


def newHistogram() -> Any:
    """
    A histogram of times in microseconds, three digits exact (HdrHistogram).

    @raise MissingExtra: It is not installed.
    """
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:
        raise MissingExtra(f"a load, such as --soak, needs the extra check: {INSTALL}") from None
    return HdrHistogram(1, _LONGEST, 3)


@dataclass(frozen=True)
class Interval:
    """
    Times of one interval.

    @ivar begin: When it began, in seconds from the beginning of the run.

    @ivar duration: How long it lasted, in seconds.

    @ivar count: How many times there are.

    @ivar p50: Half of them were no longer, in seconds; so with C{p99} and C{longest}.
    """

    begin: float
    duration: float
    count: int
    p50: float
    p99: float
    longest: float


class Times:
    """
    Times of one kind.
    """

    def __init__(self) -> None:
        self._histogram = newHistogram()
        self._new: Counter[int] = Counter()
        self._shortest = float("inf")
        self._longest = 0.0

    def record(self, seconds: float) -> None:
        """
        One more.
        """
        self._new[int(seconds * _MICROSECONDS)] += 1
        if seconds > self._longest:
            self._longest = seconds
        if seconds < self._shortest:
            self._shortest = seconds

    def take(self) -> list[tuple[int, int]]:
        """
        Put into the histogram what came since the last time.

        @return: Those times in microseconds, and how often they came, in order.
        """
        new = sorted(self._new.items())
        self._new.clear()
        for value, count in new:
            self._histogram.record_value(min(max(1, value), _LONGEST), count)
        return new

    def percentile(self, percent: float) -> float:
        """
        So many percent of the times were no longer, in seconds.
        """
        value: float = self._histogram.get_value_at_percentile(percent) / _MICROSECONDS
        # A histogram gives the upper end of a bucket.
        return max(self._shortest, min(value, self._longest))

    def table(self) -> dict[str, float | int | None]:
        """
        What the document says of them.
        """
        self.take()
        count: int = self._histogram.get_total_count()
        if not count:
            return {"count": 0, "min": None, **dict.fromkeys(PERCENTILES), "max": None}
        percentiles = {name: self.percentile(percent) for name, percent in PERCENTILES.items()}
        table = {"count": count, "min": self._shortest, **percentiles, "max": self._longest}
        return {name: rounded(value) for name, value in table.items()}

    def write(self, file: IO[bytes]) -> None:
        """
        HdrHistogram's table of percentiles, in milliseconds.
        """
        self.take()
        self._histogram.output_percentile_distribution(file, 1000.0)


def rounded(value: float) -> float:
    """
    A time without the digits that no clock has.
    """
    return round(value, 9) if isinstance(value, float) else value


class Latency:
    """
    The times of a run.

    @ivar intended: Of lines, from when they were due until they were back.

    @ivar actual: Of lines, from when they were written.

    @ivar connect: Of connections, until they were established.

    @ivar handshake: Of TLS handshakes.

    @ivar intervals: The intended times, interval by interval.
    """

    def __init__(self) -> None:
        self.intended, self.actual = Times(), Times()
        self.connect, self.handshake = Times(), Times()
        self.intervals: list[Interval] = []
        self._step = 1
        self._pending: list[Interval] = []

    def tick(self, begin: float, duration: float) -> Interval:
        """
        An interval is over.
        """
        for times in (self.actual, self.connect, self.handshake):
            times.take()
        interval = Interval(begin, duration, *_summary(self.intended.take()))
        self._pending.append(interval)
        if len(self._pending) == self._step:
            self.intervals.append(merged(self._pending))
            self._pending = []
        if len(self.intervals) > _INTERVALS:
            self._step *= 2
            self.intervals = [merged(pair) for pair in _pairs(self.intervals)]
        return interval


def _pairs(intervals: list[Interval]) -> Iterator[list[Interval]]:
    return (intervals[at : at + 2] for at in range(0, len(intervals), 2))


def merged(parts: list[Interval]) -> Interval:
    """
    Several intervals as one. Its percentiles are the worst of them.
    """
    return Interval(
        parts[0].begin,
        sum(part.duration for part in parts),
        sum(part.count for part in parts),
        *(max(getattr(part, name) for part in parts) for name in ("p50", "p99", "longest")),
    )


def _summary(values: list[tuple[int, int]]) -> tuple[int, float, float, float]:
    """
    How many there are, half of them, 99 % of them, and the longest, in seconds.
    """
    total = sum(count for _, count in values)
    found = []
    for share in (0.5, 0.99, 1.0):
        seen = last = 0
        for value, count in values:
            seen += count
            last = value
            if seen >= share * total:
                break
        found.append(last / _MICROSECONDS)
    return total, found[0], found[1], found[2]


HELD_UP = 0.05
"""
A pause of the checker itself that is longer than this, in seconds, is not blamed on the path.
"""


class Pauses:
    """
    Sees when the checker itself did not come to work.

    @ivar lastEnd: When the last such pause ended, by the monotonic clock.

    @ivar total: How long all such pauses were, in seconds.

    @ivar lines: How many lines were due, or on their way, during a pause.

    """

    def __init__(self, now: float, tick: float) -> None:
        """
        @param tick: The checker comes to work at least so often, in seconds.
        """
        self._last = now
        self._tick = tick
        self.lastEnd = 0.0
        self.total = 0.0
        self.lines = 0
        self.late = Times()

    def look(self, now: float) -> None:
        """
        The checker is at work.
        """
        if now - self._last > HELD_UP + self._tick:
            self.lastEnd = now
            self.total += now - self._last
            self.note(now - self._last - self._tick)
        self._last = now

    def note(self, late: float) -> None:
        """
        Something was done so much too late, in seconds.
        """
        self.late.record(max(0.0, late))

    def table(self) -> dict[str, float | int | None]:
        """
        What the document says of them.
        """
        late = self.late.table()
        return {"p99": late["p99"], "max": late["max"], "lines": self.lines}
