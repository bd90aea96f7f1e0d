"""
What others can see of us over HTTP: metrics for Prometheus, and whether we are well.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import twisted
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from kvserver import __version__
from kvserver.address import listenNow
from kvserver.connections import DURATIONS, Connections
from kvserver.record import Ending

PATIENCE = 10.0
"""
How long a scraper may be silent, in seconds.
"""


class Collector:
    """
    Sums up, when it is asked, what the connections count anyway.
    """

    def __init__(self, connections: Connections, restarts: Callable[[], Mapping[str, int]]) -> None:
        """
        @param restarts: How often each listener has been restarted, by its name.
        """
        self._connections = connections
        self._restarts = restarts

    def collect(self) -> Iterator[Any]:
        """
        See C{prometheus_client.registry.Collector}.
        """
        connections, totals = self._connections, self._connections.totals
        yield GaugeMetricFamily("kvserver_connections", "Connections now.", len(connections))
        yield GaugeMetricFamily(
            "kvserver_draining", "1 while the daemon stops.", int(connections.draining)
        )
        yield CounterMetricFamily(
            "kvserver_connections_accepted", "Connections accepted.", totals.accepted
        )
        ended = CounterMetricFamily(
            "kvserver_connections_ended", "Connections ended, by reason.", labels=["reason"]
        )
        for ending, count in totals.ended.items():
            ended.add_metric([ending.value], count)
        yield ended
        yield CounterMetricFamily(
            "kvserver_connections_refused",
            "Connections refused since there were too many from their source.",
            totals.ended[Ending.REFUSED],
        )
        yield CounterMetricFamily("kvserver_lines", "Lines sent back.", connections.lines())
        yield CounterMetricFamily(
            "kvserver_received_bytes", "Bytes received.", connections.received()
        )
        yield CounterMetricFamily("kvserver_sent_bytes", "Bytes sent back.", connections.sent())
        restarts = CounterMetricFamily(
            "kvserver_listener_restarts", "Restarts of a listener.", labels=["listener"]
        )
        for listener, count in self._restarts().items():
            restarts.add_metric([listener], count)
        yield restarts
        yield CounterMetricFamily(
            "kvserver_accept_pauses",
            "Times that nothing was accepted for a while, since accept(2) could not.",
            connections.acceptPauses,
        )
        count = 0
        buckets = []
        for bound, some in zip((*map(str, DURATIONS), "+Inf"), totals.durations, strict=True):
            count += some
            buckets.append((bound, count))
        yield HistogramMetricFamily(
            "kvserver_connection_duration_seconds",
            "How long connections lasted that have ended.",
            buckets=buckets,
            sum_value=totals.seconds,
        )
        yield InfoMetricFamily(
            "kvserver_build",
            "What the daemon is made of.",
            {
                "version": __version__,
                "twisted": twisted.__version__,
                "python": platform.python_version(),
            },
        )


class Page(Resource):
    """
    One page, that is made when somebody asks for it. GET and HEAD are all there is.
    """

    def __init__(self, make: Callable[[Request], bytes], kind: str) -> None:
        """
        @param make: Makes it.

        @param kind: Its content type.
        """
        super().__init__()
        self._make = make
        self._kind = kind

    def render_GET(self, request: Request) -> bytes:
        """
        Make it.
        """
        request.setHeader("Content-Type", self._kind)
        return self._make(request)


class QuietSite(Site):
    """
    A site that does not log who asks: it is asked all the time.
    """

    noisy = False

    def log(self, request: Request) -> None:
        """
        Do not.
        """


def site(collector: Collector, trouble: Callable[[], str | None]) -> Site:
    """
    C{/metrics}, C{/healthz} and C{/readyz}.

    @param trouble: Why we are not ready; None: we are.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)

    def readiness(request: Request) -> bytes:
        reason = trouble()
        if reason is None:
            return b"ready\n"
        request.setResponseCode(503)
        return f"{reason}\n".encode()

    text = "text/plain; charset=utf-8"
    root = Resource()
    root.putChild(b"metrics", Page(lambda request: generate_latest(registry), CONTENT_TYPE_LATEST))
    root.putChild(b"healthz", Page(lambda request: b"alive\n", text))
    root.putChild(b"readyz", Page(readiness, text))
    return QuietSite(root, timeout=PATIENCE)


class MetricsSite(Service):
    """
    Serves a site at an endpoint.
    """

    _log = Logger()

    def __init__(self, endpoint: IStreamServerEndpoint, description: str, site: Site) -> None:
        """
        @param description: What the endpoint is called in the log.
        """
        self._endpoint = endpoint
        self._description = description
        self._site: Any = site
        self._port: Any = None

    def privilegedStartService(self) -> None:
        """
        Listen.

        @raise CannotListenError: The address can't be had.
        """
        self._port = listenNow(self._endpoint, self._site, self._description)
        self._log.info("Serving metrics on {description}", description=self._description)

    def startService(self) -> None:
        """
        Listen, if we don't yet: C{twist} never calls L{privilegedStartService}.

        @raise CannotListenError: The address can't be had.
        """
        if self._port is None:
            self.privilegedStartService()
        super().startService()

    def stopService(self) -> "Deferred[object]":
        """
        Listen no more.
        """
        super().stopService()
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening)
