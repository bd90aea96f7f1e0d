"""
What is served over HTTP, without a socket.
"""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from kvserver import __version__
from kvserver.connections import DURATIONS, Connections, Limits
from kvserver.metrics import Collector, MetricsSite, site
from kvserver.record import Ending

PEER = IPv4Address("TCP", "192.0.2.1", 1024)


class House:
    """
    Connections, and a site that shows them.

    @ivar trouble: Why we are not ready.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.connections = Connections(self.clock, Limits())
        self.restarts = {"tcp:0": 0}
        self.trouble: str | None = None
        collector = Collector(self.connections, lambda: self.restarts)
        self.site = site(collector, lambda: self.trouble)

    def ask(self, path: str, method: str = "GET") -> tuple[int, str, str]:
        """
        Ask the site.

        @return: The status, the head and the body.
        """
        transport = StringTransport()
        channel = self.site.buildProtocol(PEER)
        channel.makeConnection(transport)
        channel.dataReceived(f"{method} {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = transport.value().decode().partition("\r\n\r\n")
        channel.connectionLost(None)
        return int(head.split()[1]), head, body

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

    def visit(self, seconds: float, ending: Ending) -> None:
        """
        A connection comes, and goes after a while.
        """
        record = self.connections.begin("tcp:0", PEER)
        self.clock.advance(seconds)
        record.ending = ending
        self.connections.end(record)


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
        status, head, _ = house.ask(path, "POST")
        assert status == 405
    for path in "/", "/metrics/", "/metrics/x", "/metric", "/healthz?x/y/../..//":
        assert house.ask(path)[0] == (200 if "?" in path else 404), path


def test_ready(house: House) -> None:
    """
    C{/readyz} says why, if we are not.
    """
    assert house.ask("/readyz")[::2] == (200, "ready\n")
    house.trouble = "draining"
    assert house.ask("/readyz")[::2] == (503, "draining\n")
    assert house.ask("/healthz")[0] == 200


def test_counts(house: House) -> None:
    """
    What has happened is counted.
    """
    assert house.metrics()["kvserver_connections_ended_totalreset"] == 0
    house.visit(0.5, Ending.RESET)
    house.visit(2.0, Ending.REFUSED)
    house.connections.begin("tcp:0", PEER)
    house.connections.acceptPauses = 7
    house.restarts["tcp:0"] = 2
    found = house.metrics()
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
        house.visit(seconds, Ending.CLIENT_CLOSED)
    found = house.metrics()
    name = "kvserver_connection_duration_seconds"
    bounds = [*map(str, DURATIONS), "+Inf"]
    assert [found[f"{name}_bucket{bound}"] for bound in bounds] == [1, 2, 3, 4, 4, 4, 4, 4, 5]
    assert found[f"{name}_count"] == 5
    assert found[f"{name}_sum"] == pytest.approx(100006.06)


class TestSite:
    """
    The service.
    """

    def test_listens(self, house: House) -> None:
        """
        It listens while it runs, in whichever way it is started.
        """
        for ways in ("startService",), ("privilegedStartService", "startService"):
            reactor = MemoryReactorClock()
            endpoint = serverFromString(reactor, "tcp:9100:interface=127.0.0.1")
            served = MetricsSite(endpoint, "tcp:9100", house.site)
            for way in ways:
                getattr(served, way)()
            ((port, factory, _, interface),) = reactor.tcpServers
            assert (port, factory, interface) == (9100, house.site, "127.0.0.1")
            served.stopService()

    def test_cannot(self, house: House) -> None:
        """
        An address that can't be had is named.
        """

        class Taken:
            def listen(self, factory: object) -> object:
                raise CannotListenError("127.0.0.1", 9100, OSError(98, "Address already in use"))

        served = MetricsSite(Taken(), "tcp:9100", house.site)  # type: ignore[arg-type]
        with pytest.raises(CannotListenError) as caught:
            served.startService()
        assert str(caught.value) == "Cannot listen on tcp:9100: Address already in use"
