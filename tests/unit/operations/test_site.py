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
from kvserver.operations.site import MAX_BODY_SIZE, site
from tests.support.house import PLENTY
from tests.support.house import House as Connected

PEER = IPv4Address("TCP", "192.0.2.1", 1024)


class House(Connected):
    """
    A house with a site that shows it.

    @ivar notReadyReason: Why we are not ready.

    @ivar expiry: When the validity of the certificate ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.restarts = {"tcp:0": 0}
        self.notReadyReason: str | None = None
        self.expiry: float | None = None
        collector = Collector(self.connections, lambda: self.restarts, lambda: self.expiry)
        self.site = site(self.clock, collector, lambda: self.notReadyReason)

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
        guest = self.enter()
        self.clock.advance(seconds)
        guest.record.closeWith(ending)
        guest.transport.connectionLost(connectionDone)


@pytest.fixture
def house() -> House:
    """
    A house.
    """
    return House()


def test_pages(house: House) -> None:
    """
    There are three pages, for GET and HEAD, and no other.
    """
    for path, kind in ("/metrics", "text/plain; version="), ("/healthz", "text/plain; charset"):
        status, head, body = house.ask(path)
        assert (status, bool(body)) == (200, True)
        assert re.search(rf"^content-type: {re.escape(kind)}", head, re.IGNORECASE | re.MULTILINE)
        status, _, body = house.ask(path, "HEAD")
        assert (status, body) == (200, "")
        for method in "POST", "PUT", "DELETE", "OPTIONS", "BREW":
            status, head, body = house.ask(path, method)
            assert (status, body) == (405, "")
            assert "Allow: GET, HEAD" in head
    for path in "/", "/metrics/", "/metrics/x", "/metric", "/healthz?x/y/../..//":
        assert house.ask(path)[0] == (200 if "?" in path else 404), path


def test_ready(house: House) -> None:
    """
    C{/readyz} says why, if we are not.
    """
    assert house.ask("/readyz")[::2] == (200, "ready\n")
    house.notReadyReason = "draining"
    assert house.ask("/readyz")[::2] == (503, "draining\n")
    assert house.ask("/healthz")[0] == 200


def test_counts(house: House) -> None:
    """
    What has happened is counted.
    """
    assert house.metrics()["kvserver_connections_ended_totalreset"] == 0
    house.visit(0.5, CloseReason.RESET)
    house.visit(2.0, CloseReason.REFUSED)
    house.enter()
    house.connections.counters.acceptPauses = 7
    house.restarts["tcp:0"] = 2
    found = house.metrics()
    assert found["kvserver_connections"] == 1
    assert found["kvserver_connections_accepted_total"] == 3
    assert found["kvserver_connections_ended_totalreset"] == 1
    assert found["kvserver_connections_ended_totalrefused"] == 1
    assert found["kvserver_connections_ended_totalclient_closed"] == 0
    assert found["kvserver_connections_refused_total"] == 1
    assert found["kvserver_listener_restarts_totaltcp:0"] == 2
    assert found["kvserver_accept_pauses_total"] == 7
    assert found["kvserver_draining"] == 0
    assert found["kvserver_build_info" + "".join(sorted(house_labels(house)))] == 1
    assert __version__ in house_labels(house)
    assert found["process_resident_memory_bytes"] > 0


def test_bytes(house: House) -> None:
    """
    Lines and bytes are counted as they come and go, and what waits to be sent is not counted as
    sent; those who have left count, too.
    """
    guest = house.enter()
    for number in range(1, 3):
        guest.peer.sendall(b"1\n2\n3")
        house.turn()
        found = house.metrics()
        assert found["kvserver_lines_total"] == 2 * number
        assert found["kvserver_received_bytes_total"] == 5 * number
        assert found["kvserver_sent_bytes_total"] == (4, 9)[number - 1]
    guest.transport.write(PLENTY)
    assert house.metrics()["kvserver_sent_bytes_total"] == guest.record.sent < 9 + len(PLENTY)
    before = house.metrics()
    guest.reset()
    house.turn()
    after = house.metrics()
    for name in "lines", "received_bytes", "sent_bytes":
        assert after[f"kvserver_{name}_total"] == before[f"kvserver_{name}_total"]


def test_draining(house: House) -> None:
    """
    It is seen that the end has begun.
    """
    house.connections.startService()
    assert house.metrics()["kvserver_draining"] == 0
    house.connections.stopService()
    assert house.metrics()["kvserver_draining"] == 1


def test_expiry(house: House) -> None:
    """
    If there is TLS it is seen when the certificate's validity ends, as of now.
    """
    name = "kvserver_tls_certificate_expiry_timestamp_seconds"
    assert name not in house.metrics()
    for expiry in 1.5e9, 2e9:
        house.expiry = expiry
        assert house.metrics()[name] == expiry


def house_labels(house: House) -> list[str]:
    """
    The labels of the build.
    """
    (labels,) = re.findall(r"^kvserver_build_info\{(.*)\}", house.ask("/metrics")[2], re.MULTILINE)
    return re.findall(r'"(.*?)"', labels)


def test_durations(house: House) -> None:
    """
    Durations are counted up to each bound, which itself is counted in.
    """
    for seconds in 0.01, 0.05, 1.0, 5.0, 100000.0:
        house.visit(seconds, CloseReason.CLIENT_CLOSED)
    found = house.metrics()
    name = "kvserver_connection_duration_seconds"
    bounds = [*map(str, DURATION_BUCKETS), "+Inf"]
    assert [found[f"{name}_bucket{bound}"] for bound in bounds] == [1, 2, 3, 4, 4, 4, 4, 4, 5]
    assert found[f"{name}_count"] == 5
    assert found[f"{name}_sum"] == pytest.approx(100006.06)


def test_brief(house: House) -> None:
    """
    A connection ends with its answer.
    """
    for head in "", "Connection: keep-alive\r\n":
        status, answered, _ = house.ask("/healthz", "GET", f"HTTP/1.1\r\nHost: x\r\n{head}")
        assert status == 200
        assert "connection: close" in answered.lower()
        assert house.transport.disconnecting


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("Content-Length: 5\r\nExpect: 100-continue", "hello"),
    ],
)
def test_body(house: House, method: str, head: str, body: str) -> None:
    """
    A request with a body is answered, and its body dropped.
    """
    rest = f"HTTP/1.1\r\nHost: x\r\n{head}\r\n"
    _, answer, _ = house.ask("/healthz", method, rest, body)
    if "Expect" in head:
        assert answer.startswith("HTTP/1.1 100 Continue")
        _, _, answer = house.transport.value().decode().partition("\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200" if method == "GET" else "HTTP/1.1 405")
    assert house.transport.disconnecting


def test_bodyWithoutEnd(house: House) -> None:
    """
    A client that sends without an end is cut off.
    """
    rest = "HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n"
    house.ask("/healthz", "POST", rest, "x" * MAX_BODY_SIZE)
    assert not house.transport.disconnected
    house.ask("/healthz", "POST", rest, "x" * (MAX_BODY_SIZE + 1))
    assert house.transport.disconnected
