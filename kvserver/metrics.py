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
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from kvserver import __version__
from kvserver.address import Address
from kvserver.connections import DURATIONS, Connections
from kvserver.record import Ending

PATIENCE = 10.0
"""
How long a scraper may be silent, in seconds.
"""

MOST = 16
"""
How many scrapers there may be at a time: they are not to take the file descriptors of the echo.
"""


TEXT = "text/plain; charset=utf-8"


class Collector:
    """
    Sums up, when it is asked, what the connections count anyway.
    """

    def __init__(
        self,
        connections: Connections,
        restarts: Callable[[], Mapping[str, int]],
        expiry: Callable[[], float | None],
    ) -> None:
        """
        @param restarts: How often each listener has been restarted, by its name.

        @param expiry: When the validity of the certificate for TLS ends, in seconds since the
            epoch; None: there is no TLS.
        """
        self._connections = connections
        self._restarts = restarts
        self._expiry = expiry

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
        work, received, sent = connections.counts()
        unit = connections.unit
        if unit is not None:
            yield CounterMetricFamily(f"kvserver_{unit}", f"{unit.capitalize()} served.", work)
        yield CounterMetricFamily("kvserver_received_bytes", "Bytes received.", received)
        yield CounterMetricFamily("kvserver_sent_bytes", "Bytes sent back.", sent)
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
        expiry = self._expiry()
        if expiry is not None:
            yield GaugeMetricFamily(
                "kvserver_tls_certificate_expiry_timestamp_seconds",
                "When the validity of the certificate ends, in seconds since the epoch.",
                expiry,
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

    def render(self, request: Request) -> bytes:
        """
        Make it.
        """
        if request.method not in (b"GET", b"HEAD"):
            request.setResponseCode(405)
            request.setHeader("Allow", "GET, HEAD")
            return b""
        request.setHeader("Content-Type", self._kind)
        page = self._make(request)
        request.setHeader("Content-Length", str(len(page)))
        return b"" if request.method == b"HEAD" else page

    def getChild(self, path: bytes, request: Request) -> "Page":
        """
        All other pages are not there.
        """
        return Page(_missing, TEXT)


def _missing(request: Request) -> bytes:
    request.setResponseCode(404)
    return b"not found\n"


class BriefRequest(Request):
    """
    A request without a body, and the last one of its connection.
    """

    def gotLength(self, length: int | None) -> None:
        """
        The head has come.

        @param length: That of the body; None: nobody knows.
        """
        super().gotLength(0)
        self.channel.persistent = False
        self.setHeader("Connection", "close")
        if length != 0:
            self.channel.loseConnection()


class QuietSite(Site):
    """
    A site that does not log who asks: it is asked all the time.
    """

    noisy = False

    def log(self, request: Any) -> None:
        """
        Do not.
        """


class Few(WrappingFactory):
    """
    Lets L{MOST} connections be at a time.
    """

    noisy = False

    def buildProtocol(self, addr: Any) -> ProtocolWrapper | None:  # type: ignore[override]
        """
        Build the protocol for one connection; None if there are as many already.
        """
        return None if len(self.protocols) >= MOST else super().buildProtocol(addr)


def site(collector: Collector, trouble: Callable[[], str | None]) -> Any:
    """
    C{/metrics}, C{/healthz} and C{/readyz}.

    @param trouble: Why we are not ready; None: we are.

    @return: A factory.
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

    root = Page(_missing, TEXT)
    root.putChild(b"metrics", Page(lambda request: generate_latest(registry), CONTENT_TYPE_LATEST))
    root.putChild(b"healthz", Page(lambda request: b"alive\n", TEXT))
    root.putChild(b"readyz", Page(readiness, TEXT))
    return Few(QuietSite(root, requestFactory=BriefRequest, timeout=PATIENCE))


class MetricsSite(Service):
    """
    Serves a site.
    """

    _log = Logger()

    def __init__(self, reactor: Any, address: Address, site: Any) -> None:
        """
        @param reactor: Provides C{IReactorSocket}.

        @param address: Where.
        """
        self._reactor = reactor
        self._address = address
        self._site = site
        self._port: Any = None

    def privilegedStartService(self) -> None:
        """
        Listen.

        @raise CannotListenError: The address can't be had.
        """
        with self._address.listen() as listening:
            number, family = listening.fileno(), listening.family
            self._port = self._reactor.adoptStreamPort(number, family, self._site)
        self._log.info("Serving metrics on {address}", address=str(self._address))

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
        self._address.release()
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening)
