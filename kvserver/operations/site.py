"""
The operations site: an overview, metrics and health over HTTP.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from kvserver.connections.limits import Limits
from kvserver.operations import page
from kvserver.operations.metrics import Collector
from kvserver.operations.overview import Overview

REQUEST_TIMEOUT = 10
"""
How long a client of the site may be silent, and how long the body of its request may take, in
seconds.
"""

LIMITS = Limits(
    maxConnections=16,
    idleTimeout=REQUEST_TIMEOUT,
    writeTimeout=REQUEST_TIMEOUT,
    drainTimeout=1,
)
"""
The limits on the site's own connections. They must not use up the file descriptors that the served
protocol needs.
"""

TEXT = "text/plain; charset=utf-8"

HTML = "text/html; charset=utf-8"

JSON = "application/json"

HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""
The headers of every page: it is what it says it is, and true for this moment only.
"""


class Page(Resource):
    """
    One page, rendered for each GET or HEAD request.
    """

    def __init__(
        self,
        make: Callable[[Request], bytes],
        kind: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """
        @param make: Renders the page.

        @param kind: The content type.

        @param headers: More headers.
        """
        super().__init__()
        self._make = make
        self._headers = {"Content-Type": kind, **HEADERS, **(headers or {})}

    def render(self, request: Request) -> bytes:
        """
        Render the page for GET and HEAD; answer 405 to other methods.
        """
        for name, value in self._headers.items():
            request.setHeader(name, value)
        if request.method not in (b"GET", b"HEAD"):
            request.setResponseCode(405)
            request.setHeader("Allow", "GET, HEAD")
            return b""
        content = self._make(request)
        request.setHeader("Content-Length", str(len(content)))
        return b"" if request.method == b"HEAD" else content

    def getChild(self, path: bytes, request: Request) -> "Page":
        """
        Answer 404 for every page below this one.
        """
        return Page(_missing, TEXT)


def _missing(request: Request) -> bytes:
    request.setResponseCode(404)
    return b"not found\n"


class BriefRequest(Request):
    """
    A request whose body is dropped, and which is the last one of its connection.
    """

    _deadline: IDelayedCall | None = None

    def gotLength(self, length: int | None) -> None:
        """
        The headers are complete: close the connection after this request. Limit the time of the
        body: an endless one would hold one of the few connections in L{LIMITS} forever.
        """
        super().gotLength(length)
        self.channel.persistent = False
        self.setHeader("Connection", "close")
        if length != 0:
            abort = self.channel.forceAbortClient
            self._deadline = self.channel.callLater(REQUEST_TIMEOUT, abort)

    def handleContentChunk(self, data: bytes) -> None:
        """
        Drop a part of the body.
        """

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """
        The request is complete: answer it.
        """
        self._stopDeadline()
        super().requestReceived(command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        """
        The client has gone.
        """
        self._stopDeadline()
        super().connectionLost(reason)

    def _stopDeadline(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()


class QuietSite(Site):
    """
    A site that does not log its requests: monitoring sends them all the time.
    """

    noisy = False

    def log(self, request: Any) -> None:
        """
        Requests are not logged.
        """


def _address(request: Request) -> str:
    """
    Return the address that a request asks for.
    """
    arguments: Any = request.args
    (*_, address) = arguments.get(b"address", [b""])
    return str(address.decode("utf-8", "replace")).strip()


def site(
    reactor: Any,
    collector: Collector,
    overview: Overview,
    notReadyReason: Callable[[], str | None],
) -> Any:
    """
    Build the operations site: C{/}, C{/connections}, C{/metrics}, C{/healthz} and C{/readyz}.

    @param reactor: Provides C{IReactorTime}.

    @param collector: Collects the metrics.

    @param overview: Describes the daemon.

    @param notReadyReason: Returns why the daemon is not ready. None: it is ready.

    @return: A factory.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)

    def readiness(request: Request) -> bytes:
        reason = notReadyReason()
        if reason is None:
            return b"ready\n"
        request.setResponseCode(503)
        return f"{reason}\n".encode()

    root = Page(_missing, TEXT)
    root.putChild(
        b"",
        Page(lambda request: page.render(overview.describe(_address(request))), HTML, page.HEADERS),
    )
    root.putChild(
        b"connections",
        Page(lambda request: json.dumps(overview.describe(_address(request))).encode(), JSON),
    )
    root.putChild(b"metrics", Page(lambda request: generate_latest(registry), CONTENT_TYPE_LATEST))
    root.putChild(b"healthz", Page(lambda request: b"alive\n", TEXT))
    root.putChild(b"readyz", Page(readiness, TEXT))
    return QuietSite(root, requestFactory=BriefRequest, timeout=REQUEST_TIMEOUT, reactor=reactor)
