"""
What is served over HTTP, without a socket.
"""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import StringTransport

from kvserver import __version__
from kvserver.connections.counters import DURATION_BUCKETS
from kvserver.connections.record import CloseReason
from kvserver.operations.metrics import Collector
from kvserver.operations.overview import Overview
from kvserver.operations.rates import Rates
from kvserver.operations.site import REQUEST_TIMEOUT, site
from tests.support.memory import PLENTY, MemoryServer

PEER = IPv4Address("TCP", "192.0.2.1", 1024)


class ServerWithSite(MemoryServer):
    """
    A server with a site that shows it.

    @ivar notReadyReason: Why we are not ready.

    @ivar expiry: When the validity of the certificate ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.restarts = {"tcp:0": 0}
        self.notReadyReason: str | None = None
        self.expiry: float | None = None
        collector = Collector(self.connections, lambda: self.restarts, lambda: self.expiry)
        self.rates = Rates(self.clock, self.connections)
        overview = Overview(
            self.clock,
            self.connections,
            self.rates,
            list,
            lambda: self.restarts,
            lambda: self.notReadyReason,
        )
        self.site = site(self.clock, collector, overview, lambda: self.notReadyReason)

    def ask(
        self, path: str, method: str = "GET", rest: str = "HTTP/1.0\r\n", body: str = ""
    ) -> tuple[int, str, str]:
        """
        Ask the site.

        @param rest: The rest of the head.

        @param body: What follows the head.

        @return: The status, 0 if there is none, the head and the body.
        """
        self.transport = StringTransport()
        channel = self.site.buildProtocol(PEER)
        channel.makeConnection(self.transport)
        channel.dataReceived(f"{method} {path} {rest}\r\n{body}".encode())
        head, _, answer = self.transport.value().decode().partition("\r\n\r\n")
        channel.connectionLost(connectionDone)
        return int(head.split()[1]) if head else 0, head, answer

    def metrics(self) -> dict[str, float]:
        """
        The samples, by name and labels.
        """
        _, _, body = self.ask("/metrics")
        return {
            f"{sample.name}{''.join(sorted(sample.labels.values()))}": sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }

    def visit(self, seconds: float, ending: CloseReason) -> None:
        """
        A connection comes, and goes after a while.
        """
        pair = self.enter()
        self.clock.advance(seconds)
        pair.record.closeWith(ending)
        pair.transport.connectionLost(connectionDone)


@pytest.fixture
def server() -> ServerWithSite:
    """
    A server.
    """
    return ServerWithSite()


def test_pages(server: ServerWithSite) -> None:
    """
    There are five pages, for GET and HEAD, and no other.
    """
    for path, kind in (
        ("/", "text/html; charset=utf-8"),
        ("/connections", "application/json"),
        ("/metrics", "text/plain; version="),
        ("/healthz", "text/plain; charset"),
    ):
        status, head, body = server.ask(path)
        assert (status, bool(body)) == (200, True)
        assert re.search(rf"^content-type: {re.escape(kind)}", head, re.IGNORECASE | re.MULTILINE)
        status, _, body = server.ask(path, "HEAD")
        assert (status, body) == (200, "")
        for method in "POST", "PUT", "DELETE", "OPTIONS", "BREW":
            status, head, body = server.ask(path, method)
            assert (status, body) == (405, "")
            assert "Allow: GET, HEAD" in head
    for path in "//", "/connections/", "/metrics/", "/metrics/x", "/metric", "/healthz?x/y/../..//":
        assert server.ask(path)[0] == (200 if "?" in path else 404), path


@pytest.mark.parametrize("path", ["", "connections", "metrics", "healthz", "readyz", "nothing"])
def test_momentary(server: ServerWithSite, path: str) -> None:
    """
    No cache keeps a page, and no browser guesses its type.
    """
    for method in "GET", "HEAD", "POST":
        _, head, _ = server.ask(f"/{path}", method)
        lines = head.lower().split("\r\n")
        assert {"cache-control: no-store", "x-content-type-options: nosniff"} <= {*lines}


def test_ready(server: ServerWithSite) -> None:
    """
    C{/readyz} says why, if we are not.
    """
    assert server.ask("/readyz")[::2] == (200, "ready\n")
    server.notReadyReason = "draining"
    assert server.ask("/readyz")[::2] == (503, "draining\n")
    assert server.ask("/healthz")[0] == 200


def test_counts(server: ServerWithSite) -> None:
    """
    What has happened is counted.
    """
    assert server.metrics()["kvserver_connections_ended_totalreset"] == 0
    server.visit(0.5, CloseReason.RESET)
    server.visit(2.0, CloseReason.REFUSED)
    server.enter()
    server.connections.counters.acceptPauses = 7
    server.connections.maxConnections = 11
    server.restarts["tcp:0"] = 2
    found = server.metrics()
    assert found["kvserver_connections"] == 1
    assert found["kvserver_connections_accepted_total"] == 3
    assert found["kvserver_connections_ended_totalreset"] == 1
    assert found["kvserver_connections_ended_totalrefused"] == 1
    assert found["kvserver_connections_ended_totalclient_closed"] == 0
    assert found["kvserver_connections_refused_total"] == 1
    assert found["kvserver_listener_restarts_totaltcp:0"] == 2
    assert found["kvserver_accept_pauses_total"] == 7
    assert found["kvserver_connections_limit"] == 11
    assert found["kvserver_listener_connectionstcp:0"] == 1
    assert found["kvserver_listener_connections_accepted_totaltcp:0"] == 3
    assert found["kvserver_draining"] == 0
    assert found["kvserver_build_info" + "".join(sorted(buildLabels(server)))] == 1
    assert __version__ in buildLabels(server)
    assert found["process_resident_memory_bytes"] > 0


def test_bytes(server: ServerWithSite) -> None:
    """
    Lines and bytes are counted as they come and go, and what waits to be sent is not counted as
    sent; those who have left count, too.
    """
    pair = server.enter()
    for number in range(1, 3):
        pair.peer.sendall(b"1\n2\n3")
        server.turn()
        found = server.metrics()
        assert found["kvserver_lines_total"] == 2 * number
        assert found["kvserver_received_bytes_total"] == 5 * number
        assert found["kvserver_sent_bytes_total"] == (4, 9)[number - 1]
    pair.transport.write(PLENTY)
    assert server.metrics()["kvserver_sent_bytes_total"] == pair.record.sent < 9 + len(PLENTY)
    before = server.metrics()
    pair.reset()
    server.turn()
    after = server.metrics()
    for name in "lines", "received_bytes", "sent_bytes":
        assert after[f"kvserver_{name}_total"] == before[f"kvserver_{name}_total"]


def test_draining(server: ServerWithSite) -> None:
    """
    It is seen that the end has begun.
    """
    server.connections.startService()
    assert server.metrics()["kvserver_draining"] == 0
    server.connections.stopService()
    assert server.metrics()["kvserver_draining"] == 1


def test_expiry(server: ServerWithSite) -> None:
    """
    If there is TLS it is seen when the certificate's validity ends, as of now.
    """
    name = "kvserver_tls_certificate_expiry_timestamp_seconds"
    assert name not in server.metrics()
    for expiry in 1.5e9, 2e9:
        server.expiry = expiry
        assert server.metrics()[name] == expiry


def buildLabels(server: ServerWithSite) -> list[str]:
    """
    The labels of the build.
    """
    (labels,) = re.findall(r"^kvserver_build_info\{(.*)\}", server.ask("/metrics")[2], re.MULTILINE)
    return re.findall(r'"(.*?)"', labels)


def test_durations(server: ServerWithSite) -> None:
    """
    Durations are counted up to each bound, which itself is counted in.
    """
    for seconds in 0.01, 0.05, 1.0, 5.0, 100000.0:
        server.visit(seconds, CloseReason.CLIENT_CLOSED)
    found = server.metrics()
    name = "kvserver_connection_duration_seconds"
    bounds = [*map(str, DURATION_BUCKETS), "+Inf"]
    assert [found[f"{name}_bucket{bound}"] for bound in bounds] == [1, 2, 3, 4, 4, 4, 4, 4, 5]
    assert found[f"{name}_count"] == 5
    assert found[f"{name}_sum"] == pytest.approx(100006.06)


def test_brief(server: ServerWithSite) -> None:
    """
    A connection ends with its answer.
    """
    for head in "", "Connection: keep-alive\r\n":
        status, answered, _ = server.ask("/healthz", "GET", f"HTTP/1.1\r\nHost: x\r\n{head}")
        assert status == 200
        assert "connection: close" in answered.lower()
        assert server.transport.disconnecting


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("Content-Length: 5\r\nExpect: 100-continue", "hello"),
    ],
)
def test_body(server: ServerWithSite, method: str, head: str, body: str) -> None:
    """
    A request with a body is answered, and its body dropped.
    """
    rest = f"HTTP/1.1\r\nHost: x\r\n{head}\r\n"
    _, answer, _ = server.ask("/healthz", method, rest, body)
    if "Expect" in head:
        assert answer.startswith("HTTP/1.1 100 Continue")
        _, _, answer = server.transport.value().decode().partition("\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200" if method == "GET" else "HTTP/1.1 405")
    assert server.transport.disconnecting


def test_longBody(server: ServerWithSite) -> None:
    """
    However long the body is, there is an answer.
    """
    size = 1 << 20
    rest = f"HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
    assert server.ask("/healthz", "POST", rest, "x" * size)[0] == 405


@pytest.mark.parametrize("head", ["Content-Length: 99999999999", "Transfer-Encoding: chunked"])
def test_bodyWithoutEnd(server: ServerWithSite, head: str) -> None:
    """
    A client that sends without an end is cut off.
    """
    transport = StringTransport()
    channel = server.site.buildProtocol(PEER)
    channel.makeConnection(transport)
    channel.dataReceived(f"POST /healthz HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
    for _ in range(REQUEST_TIMEOUT):
        assert not transport.disconnected
        channel.dataReceived(b"5\r\nhello\r\n")
        server.clock.advance(1)
    assert transport.disconnected
    channel.connectionLost(connectionDone)
    assert server.clock.getDelayedCalls() == []


def test_timersEnd(server: ServerWithSite) -> None:
    """
    A request that is answered, or whose client has gone, leaves no timer.
    """
    rest = "HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    for body in "hello", "hel":
        server.ask("/healthz", "POST", rest, body)
        assert server.clock.getDelayedCalls() == []


def test_pipelined(server: ServerWithSite) -> None:
    """
    Of two requests that come together the first is answered, and then the connection ends.
    """
    for version in "1.0", "1.1":
        transport = StringTransport()
        channel = server.site.buildProtocol(PEER)
        channel.makeConnection(transport)
        channel.dataReceived(f"GET /healthz HTTP/{version}\r\nHost: x\r\n\r\n".encode() * 2)
        assert transport.value().count(b"HTTP/") == transport.value().count(b"alive\n") == 1
        assert transport.disconnecting
        channel.connectionLost(connectionDone)
