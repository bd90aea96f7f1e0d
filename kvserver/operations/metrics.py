"""
Metrics for Prometheus.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import twisted
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from kvserver import __version__
from kvserver.connections.counters import DURATION_BUCKETS
from kvserver.connections.record import CloseReason
from kvserver.connections.registry import Connections
from kvserver.workers.pool import Pool


class Collector:
    """
    Collects the metrics on each scrape, from counts that the daemon keeps anyway.
    """

    def __init__(
        self,
        connections: Connections,
        restarts: Callable[[], Mapping[str, int]],
        expiry: Callable[[], float | None],
        pool: Pool | None = None,
    ) -> None:
        """
        @param connections: The connections to count.

        @param restarts: Returns how often each listener has been restarted, by its name.

        @param expiry: Returns when the certificate for TLS expires, in seconds since the epoch.
            None: there is no TLS.
        """
        self._connections = connections
        self._restarts = restarts
        self._expiry = expiry
        self._pool = pool

    def collect(self) -> Iterator[Any]:
        """
        Yield each metric. The C{prometheus_client} registry calls this on each scrape.
        """
        connections, counters = self._connections, self._connections.counters
        yield GaugeMetricFamily("kvserver_connections", "Connections now.", len(connections))
        yield GaugeMetricFamily(
            "kvserver_connections_limit",
            "Connections at which no more are accepted.",
            connections.maxConnections,
        )
        yield GaugeMetricFamily(
            "kvserver_draining", "1 while the daemon drains.", int(connections.isDraining)
        )
        yield CounterMetricFamily(
            "kvserver_connections_accepted", "Connections accepted.", counters.accepted
        )
        ended = CounterMetricFamily(
            "kvserver_connections_ended", "Connections ended, by reason.", labels=["reason"]
        )
        for ending, count in counters.ended.items():
            ended.add_metric([ending.value], count)
        yield ended
        yield CounterMetricFamily(
            "kvserver_connections_refused",
            "Connections closed at once: their source was at its limit.",
            counters.ended[CloseReason.REFUSED],
        )
        work, received, sent = connections.counts()
        unit = connections.unit
        if unit is not None:
            yield CounterMetricFamily(f"kvserver_{unit}", f"{unit.capitalize()} served.", work)
        yield CounterMetricFamily("kvserver_received_bytes", "Bytes received.", received)
        yield CounterMetricFamily("kvserver_sent_bytes", "Bytes sent back.", sent)
        restarts = CounterMetricFamily(
            "kvserver_listener_restarts", "Restarts of a listener.", labels=["listener"]
        )
        live = GaugeMetricFamily(
            "kvserver_listener_connections",
            "Connections of a listener now.",
            labels=["listener"],
        )
        accepted = CounterMetricFamily(
            "kvserver_listener_connections_accepted",
            "Connections accepted by a listener.",
            labels=["listener"],
        )
        for listener, count in self._restarts().items():
            restarts.add_metric([listener], count)
            live.add_metric([listener], counters.live(listener))
            accepted.add_metric([listener], counters.acceptedBy[listener])
        yield from (restarts, live, accepted)
        yield CounterMetricFamily(
            "kvserver_accept_pauses",
            "Pauses of a listener because accept(2) failed.",
            counters.acceptPauses,
        )
        expiry = self._expiry()
        if expiry is not None:
            yield GaugeMetricFamily(
                "kvserver_tls_certificate_expiry_timestamp_seconds",
                "When the validity of the certificate ends, in seconds since the epoch.",
                expiry,
            )
        if self._pool is not None:
            yield from self._workers(self._pool)
        count = 0
        buckets = []
        for bound, some in zip(
            (*map(str, DURATION_BUCKETS), "+Inf"), counters.durations, strict=True
        ):
            count += some
            buckets.append((bound, count))
        yield HistogramMetricFamily(
            "kvserver_connection_duration_seconds",
            "Durations of connections that have ended.",
            buckets=buckets,
            sum_value=counters.duration,
        )
        yield InfoMetricFamily(
            "kvserver_build",
            "Versions of kvserver, Twisted and Python.",
            {
                "version": __version__,
                "twisted": twisted.__version__,
                "python": platform.python_version(),
            },
        )

    def _workers(self, pool: Pool) -> Iterator[Any]:
        ready = sum(process.isServing for process in pool.current.values())
        yield GaugeMetricFamily("kvserver_workers", "Workers that take connections.", ready)
        for name, text, values, kind in (
            ("restarts", "Restarts of a worker.", pool.restarts, CounterMetricFamily),
            ("connections", "Connections of a worker now.", pool.loads(), GaugeMetricFamily),
            ("cpu_seconds", "CPU time of a worker.", pool.cpu(), CounterMetricFamily),
        ):
            family = kind(f"kvserver_worker_{name}", text, labels=["worker"])
            for number, value in values.items():
                family.add_metric([str(number)], max(0, value))
            yield family
