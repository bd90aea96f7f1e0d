"""
The overview, and the page that shows it, without a socket.
"""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address

from kvserver.operations import overview as overviews
from kvserver.operations.overview import Overview
from kvserver.operations.page import HEADERS, render
from kvserver.operations.rates import INTERVAL, Rates
from tests.support.memory import MemoryServer

EVIL = "<script>alert(1)</script>\"'&\udcff"


class Reader(HTMLParser):
    """
    Reads a page.

    @ivar cells: The text of each cell of each table, row by row.

    @ivar scripts: The scripts; C{styles}: the styles.
    """

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.inputs: list[dict[str, str | None]] = []
        self.attributes: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """
        An element begins.
        """
        self.attributes += [name for name, _ in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "input":
            self.inputs.append(dict(attrs))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """
        An element ends.
        """
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """
        There is text.
        """
        where = self.open[-1] if self.open else ""
        if where == "td":
            self.rows[-1][-1] += data
        if where in ("script", "style"):
            (self.scripts if where == "script" else self.styles).append(data)


class Site:
    """
    A server, and what its site says of it.
    """

    def __init__(self) -> None:
        self.server = MemoryServer()
        clock, connections = self.server.clock, self.server.connections
        self.rates = Rates(clock, connections)
        self.rates.startService()
        self.reason: str | None = None
        self.overview = Overview(clock, connections, self.rates, list, dict, lambda: self.reason)

    def enter(self, count: int, network: str = "192.0.2") -> None:
        """
        So many connect.
        """
        for number in range(count):
            self.server.enter(IPv4Address("TCP", f"{network}.{number % 250}", 1000 + number))

    def ids(self, address: str = "") -> tuple[list[int], list[int]]:
        """
        The oldest and the newest connections.
        """
        said = self.overview.describe(address)
        oldest, newest = ([one["id"] for one in said[name]] for name in ("oldest", "newest"))
        return oldest, newest


@pytest.fixture
def site() -> Any:
    """
    A site.
    """
    site = Site()
    yield site
    site.server.close()


def test_connection(site: Site) -> None:
    """
    A connection is described as in the access log, as of now; sums are those of the last sample.
    """
    pair = site.server.enter()
    pair.transport.setClient(IPv6Address("TCP", "2001:db8::1", 5), None)
    pair.peer.sendall(b"a\nb\nc")
    site.server.turn()
    site.server.clock.advance(INTERVAL)
    said = site.overview.describe()
    assert json.loads(json.dumps(said)) == said
    assert said["oldest"] == [
        {
            "id": 1,
            "listener": "tcp:0",
            "peer": "192.0.2.1:1024",
            "client": "[2001:db8::1]:5",
            "tls": None,
            "subject": None,
            "lines": 2,
            "bytes_in": 5,
            "bytes_out": 4,
            "seconds": INTERVAL,
        }
    ]
    assert said["totals"] == {
        "connections": 1,
        "accepted": 1,
        "lines": 2,
        "bytes_in": 5,
        "bytes_out": 4,
    }
    assert said["rates"]["lines"] == [2 / INTERVAL]
    rows = Reader(render(said)).rows
    row = ["1", "192.0.2.1:1024", "[2001:db8::1]:5", "tcp:0", "", "2", "5 B", "4 B", "5 s"]
    assert row in rows


@pytest.mark.parametrize(
    ("count", "oldest", "newest"),
    [(0, 0, 0), (1, 1, 0), (5, 5, 0), (6, 5, 1), (10, 5, 5), (11, 5, 5), (30, 5, 5)],
)
def test_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch, count: int, oldest: int, newest: int
) -> None:
    """
    The oldest and the newest are shown, each once, by age; the page says how many are not.
    """
    monkeypatch.setattr(overviews, "SHOWN", 5)
    site.enter(count)
    ids = list(range(1, count + 1))
    expected = ids[:oldest], ids[count - newest :]
    assert site.ids() == expected
    # The same, if an address is asked for that all have.
    assert site.ids("192.0.2.") == expected
    page = render(site.overview.describe())
    assert (b"more between these" in page) == (count > 10)
    rows = [row[0] for row in Reader(page).rows if len(row) > 1]
    assert rows == [str(number) for part in expected for number in part]


def test_address(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Those with this in the address of peer or client are shown; it is looked for at both ends, and
    only there.
    """
    monkeypatch.setattr(overviews, "SEARCHED", 10)
    for network in "198.51.100", "192.0.2", "203.0.113":
        site.enter(10, network)
    assert site.ids("198.51.100.") == (list(range(1, 11)), [])
    assert site.ids("203.0.113.7") == ([], [28])
    assert site.ids("192.0.2.") == ([], [])
    assert site.ids("1007") == ([8], [28])
    assert site.ids("x") == ([], [])


def test_escaped(site: Site) -> None:
    """
    Whatever a listener, a certificate or a visitor says: it stays text.
    """
    pair = site.server.enter()
    pair.record.listener = pair.record.subject = EVIL
    site.reason = EVIL
    said = {**site.overview.describe("192"), "address": EVIL, "host": EVIL, "unit": EVIL}
    listener = {"listener": EVIL, "address": EVIL, "listening": True}
    said["listeners"] = [{**listener, "connections": 1, "accepted": 2, "restarts": 0}]
    for part in said["totals"], said["rates"], *said["oldest"]:
        part[EVIL] = part.pop("lines")
    page = render(said)
    reader = Reader(page)
    assert page.count(b"<script") == page.count(b"</script") == 1
    assert EVIL[:-1].encode() not in page
    (field,) = reader.inputs
    assert field["value"] == (shown := EVIL.replace("\udcff", "?"))
    assert sum(cell == shown for row in reader.rows for cell in row) == 4


def test_policy(site: Site) -> None:
    """
    The page's own style and script are allowed, and nothing else; no attribute has one.
    """
    reader = Reader(render(site.overview.describe()))
    policy = HEADERS["Content-Security-Policy"]
    for (text,) in reader.scripts, reader.styles:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not [name for name in reader.attributes if name == "style" or name.startswith("on")]
    # Nothing comes from elsewhere.
    assert not re.search(r"(src|href)=.?(https?:|//)", render(site.overview.describe()).decode())


def test_state(site: Site) -> None:
    """
    It is seen whether the daemon is ready.
    """
    assert b'<b class="good">ready</b>' in render(site.overview.describe())
    site.reason = "not listening: tcp:0"
    assert b'<b class="bad">not listening: tcp:0</b>' in render(site.overview.describe())


def test_noUnit(site: Site) -> None:
    """
    A protocol that counts nothing has no column, and no rate.
    """
    site.server.connections.unit = None
    site.enter(1)
    site.server.clock.advance(INTERVAL)
    said = site.overview.describe()
    assert "lines" not in json.dumps(said)
    assert b"lines" not in render(said)
