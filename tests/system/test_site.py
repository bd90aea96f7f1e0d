"""
The operations site, over real sockets, as any client of HTTP may ask it.
"""

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kvserver.operations.overview import Overview
from kvserver.operations.page import HEADERS, render
from kvserver.operations.rates import Rates
from kvserver.operations.site import HTML
from tests.support.clients import ask, connect, get, manyDescriptors, program, received
from tests.support.daemon import PATIENCE, TWISTD, Daemon, quietPort, waitFor
from tests.support.memory import MemoryServer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """
    The port of a site that all tests here may ask.
    """
    metrics = quietPort()
    where = f"--metrics=tcp:{metrics}:interface=127.0.0.1"
    with Daemon(tmp_path_factory.mktemp("site"), "--port=0", where):
        yield metrics


def exchanged(port: int, *parts: bytes) -> bytes:
    """
    Send these, and receive until the site closes: with FIN, not by a reset.
    """
    with connect(port) as client:
        for part in parts:
            client.sendall(part)
        return b"".join(received(client))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
@pytest.mark.parametrize("size", [0, 5, 1_000_000])
def test_otherMethods(site: int, method: str, size: int) -> None:
    """
    Anything but GET and HEAD is 405, whatever body it has; and the client gets to read that.
    """
    head = f"{method} /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    answer = exchanged(site, head.encode(), b"x" * size)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_versions(site: int, version: str) -> None:
    """
    HTTP/1.0 and 1.1 are answered, and the connection then ends, with no Host and any Connection.
    """
    for more in "", "Host: x\r\n", "Connection: keep-alive\r\n", "Connection: close\r\n":
        answer = exchanged(site, f"GET /healthz HTTP/{version}\r\n{more}\r\n".encode())
        assert answer.startswith(f"HTTP/{version} 200 ".encode())
        assert answer.endswith(b"\r\n\r\nalive\n")


def test_overview(site: int) -> None:
    """
    The page is HTML that may load nothing, C{/connections} is the same as JSON.
    """
    head, _, page = exchanged(site, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert b"Content-Security-Policy: default-src 'none'; " in head
    assert page.startswith(b"<!DOCTYPE html>")
    status, said = get(site, "/connections?address=127.")
    overview = json.loads(said)
    assert (status, overview["ready"], overview["address"]) == (200, "ready", "127.")
    (listener,) = overview["listeners"]
    assert (listener["listener"], listener["listening"]) == ("tcp:0", True)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Length: 5", b"hello"),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_body(site: int, method: str, head: str, body: bytes) -> None:
    """
    A body is dropped, also one that waits for 100 (Continue).
    """
    start = f"{method} /healthz HTTP/1.1\r\nHost: x\r\n{head}\r\n"
    status = b"HTTP/1.1 200 " if method == "GET" else b"HTTP/1.1 405 "
    assert exchanged(site, start.encode() + b"\r\n", body).startswith(status)
    with connect(site) as client:
        client.sendall(start.encode() + b"Expect: 100-continue\r\n\r\n")
        answer = client.recv(100)
        if answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
            client.sendall(body)
            answer = answer[25:]
        answer += b"".join(received(client))
    assert answer.startswith(status)


def test_pipelined(site: int) -> None:
    """
    Of two requests that come together the first is answered, and the connection ends in order.
    """
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert exchanged(site, request * 2).count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize("request_", [b"\r\n\r\n", b"nonsense\r\n\r\n", b"\x16\x03\x01" + b"x" * 9])
def test_nonsense(site: int, request_: bytes) -> None:
    """
    What is no HTTP harms nobody.
    """
    with connect(site) as client, contextlib.suppress(OSError):
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        b"".join(received(client))
    assert exchanged(site, b"GET /healthz HTTP/1.0\r\n\r\n").endswith(b"alive\n")


@pytest.mark.parametrize("options", [(), ("-0",), ("-X", "POST"), ("-d", "x"), ("-T", "large")])
def test_curl(tmp_path: Path, site: int, options: tuple[str, ...]) -> None:
    """
    curl gets an answer, whatever it sends.
    """
    (tmp_path / "large").write_bytes(b"x" * 5_000_000)
    url = f"http://127.0.0.1:{site}/healthz"
    done = subprocess.run(
        [program("curl"), "-sS", "-o", "answer", "-w", "%{http_code}", *options, url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("200" if options in ((), ("-0",)) else "405", "")


def browse(folder: Path, port: int, path: str, *options: str) -> str:
    """
    Open a page in a real browser. Nothing must be wrong with it.

    @return: What it has made of the page, as HTML.
    """
    done = subprocess.run(
        [
            program("chromium-headless-shell", "chromium"),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={folder}/profile", "--enable-logging=stderr", *options),
            *("--dump-dom", f"http://127.0.0.1:{port}{path}"),
        ],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=True,
    )
    # What the page's policy forbids, and errors of its script, are said there.
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("--workers=2",)], ids=["one", "workers"])
def test_browser(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """
    In a real browser the page shows who is connected, by address; text stays text.
    """
    site = quietPort()
    where = f"--metrics=tcp:{site}:interface=127.0.0.1"
    evil = "unix:x<b title>&"
    with (
        Daemon(tmp_path, "--listen", "tcp:0", "--listen", evil, where, *workers) as daemon,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(3)]
        peers = ["{}:{}".format(*client.getsockname()) for client in clients]
        for client in clients:
            assert ask(client, b"hello\n") == b"hello\n"

        def lines() -> list[int]:
            return [one["lines"] for one in json.loads(get(site, "/connections")[1])["oldest"]]

        waitFor(lambda: lines() == [1, 1, 1], "all lines are counted")
        shown = browse(tmp_path, site, "/")
        assert all(f"<td>{peer}</td>" in shown for peer in peers)
        assert "<td>unix:x&lt;b title&gt;&amp;</td>" in shown
        assert '<b class="good">ready</b>' in shown
        assert shown.count("<svg") == 5
        assert shown.count("<td>ready</td>") == (2 if workers else 0)
        shown = browse(tmp_path, site, f"/?address={peers[1].rpartition(':')[2]}")
        assert [f"<td>{peer}</td>" in shown for peer in peers] == [False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "isGone"), [(7, False), (17, True)])
def test_script(tmp_path: Path, seconds: int, isGone: bool) -> None:
    """
    The page's script brings what is new, and says when nobody answers any more.
    """
    server = MemoryServer()
    rates = Rates(server.clock, server.connections)
    overview = Overview(server.clock, server.connections, rates, list, dict, lambda: None)
    pages = [render(overview.describe())]
    server.enter()
    pages.append(render(overview.describe()))
    server.close()
    assert [b"<td>192.0.2.1:1024</td>" in page for page in pages] == [False, True]

    class Handler(BaseHTTPRequestHandler):
        """
        Serves each page once, and then nothing.
        """

        def do_GET(self) -> None:
            """
            Answer, as the site does.
            """
            if self.path == "/":
                self.send_response(200 if pages else 503)
                for name, value in (HEADERS | {"Content-Type": HTML}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(pages.pop(0) if pages else b"")

        def log_message(self, format: str, *args: object) -> None:
            """
            Log nothing.
            """

    with HTTPServer(("127.0.0.1", 0), Handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        # In virtual time, the script's timer fires at once.
        budget = f"--virtual-time-budget={seconds}000"
        shown = browse(tmp_path, site.server_port, "/", budget)
        site.shutdown()
    assert pages == []
    assert "<td>192.0.2.1:1024</td>" in shown
    assert ('id="gone" hidden' not in shown) == isGone


def test_select(tmp_path: Path) -> None:
    """
    With C{--reactor=select}, which can't watch a descriptor above 1023, the site answers beyond
    that many connections, and so does the echo.
    """
    metrics = quietPort()
    command = (TWISTD, "--reactor=select", "-n", "--pidfile=")
    where = f"--metrics=tcp:{metrics}:interface=127.0.0.1"
    with (
        manyDescriptors(4000),
        Daemon(tmp_path, "--port=0", where, command=command) as daemon,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(1100)]
        assert ask(clients[-1], b"hello\n") == b"hello\n"
        waitFor(lambda: daemon.descriptors() > 1100, "all have been accepted")
        for _ in range(20):
            answer = exchanged(metrics, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"\nkvserver_connections 1100.0\n" in answer
        assert daemon.logs("SelectReactor") == 1
        assert daemon.logs("Traceback") == 0
