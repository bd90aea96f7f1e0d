"""
What others can see of us over HTTP: metrics, and whether we are well.
"""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from kvserver.connections.limits import Limits
from kvserver.operations.metrics import Collector

REQUEST_TIMEOUT = 10
"""
How long a client of the site may be silent, in seconds.
"""

LIMITS = Limits(
    maxConnections=16,
    idleTimeout=REQUEST_TIMEOUT,
    writeTimeout=REQUEST_TIMEOUT,
    drainTimeout=1,
)
"""
The limits of the site's own connections: they must not take the file descriptors of what is served.
"""

MAX_BODY_SIZE = 64 * 1024
"""
The most bytes that the body of a request may have. Nothing reads it.
"""

TEXT = "text/plain; charset=utf-8"


class Page(Resource):
    """
    One page, rendered when somebody asks for it, for GET and HEAD.
    """

    def __init__(self, make: Callable[[Request], bytes], kind: str) -> None:
        """
        @param make: Makes the page.

        @param kind: The content type.
        """
        super().__init__()
        self._make = make
        self._kind = kind

    def render(self, request: Request) -> bytes:
        """
        Render for GET and HEAD, 405 otherwise.
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
        All other pages are missing.
        """
        return Page(_missing, TEXT)


def _missing(request: Request) -> bytes:
    request.setResponseCode(404)
    return b"not found\n"


class BriefRequest(Request):
    """
    A request whose body nobody needs, and the last one of its connection.
    """

    _bodySize = 0

    def gotLength(self, length: int | None) -> None:
        """
        The head has come.
        """
        super().gotLength(length)
        self.channel.persistent = False
        self.setHeader("Connection", "close")

    def handleContentChunk(self, data: bytes) -> None:
        """
        Drop a part of the body. Without an end, it would keep one of the L{LIMITS} for ever.
        """
        self._bodySize += len(data)
        if self._bodySize > MAX_BODY_SIZE:
            self.channel.forceAbortClient()


class QuietSite(Site):
    """
    A site that does not log requests: it is asked all the time.
    """

    noisy = False

    def log(self, request: Any) -> None:
        """
        Requests are not logged.
        """


def site(reactor: Any, collector: Collector, notReadyReason: Callable[[], str | None]) -> Any:
    """
    C{/metrics}, C{/healthz} and C{/readyz}.

    @param reactor: Provides C{IReactorTime}.

    @param notReadyReason: Why we are not ready; None: we are.

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
    root.putChild(b"metrics", Page(lambda request: generate_latest(registry), CONTENT_TYPE_LATEST))
    root.putChild(b"healthz", Page(lambda request: b"alive\n", TEXT))
    root.putChild(b"readyz", Page(readiness, TEXT))
    return QuietSite(root, requestFactory=BriefRequest, timeout=REQUEST_TIMEOUT, reactor=reactor)
