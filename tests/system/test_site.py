"""
The operations site, over real sockets, as any client of HTTP may ask it.
"""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, manyDescriptors, program, received
from tests.support.daemon import PATIENCE, TWISTD, Daemon, quietPort, waitFor


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
