"""
HAProxy in front of two daemons, one of which is killed and comes back.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.clients import LINES, Stream, ask, connect, exchange, program
from tests.support.daemon import PATIENCE, Daemon, quietPort, waitFor
from tests.support.wires import Authority, TLSClient

WAYS = {
    "plain": ("tcp", "check"),
    "send-proxy": ("proxy:tcp", "check send-proxy"),
    "send-proxy-v2": ("proxy:tcp", "check send-proxy-v2"),
    "tls": ("proxy:tls:tcp", "check send-proxy-v2"),
    "to tls": ("tls:tcp", "check ssl verify required verifyhost localhost ca-file {authority}"),
}
"""
What HAProxy is told of its servers in each set-up, and what these have to listen on for it.
"""


class Site:
    """
    HAProxy, and two daemons behind it.

    @ivar ports: Where HAProxy listens, for each set-up.

    @ivar daemons: The daemons.
    """

    def __init__(self, folder: Path, authority: Authority, stack: ExitStack) -> None:
        haproxy = program("haproxy")
        self._folder = folder
        self._stack = stack
        self._identity = authority.issue("localhost")
        self._servers = [{way: quietPort() for way in WAYS} for _ in range(2)]
        self._plain = [quietPort() for _ in range(2)]
        self.ports = {way: quietPort() for way in WAYS}
        self.daemons = [self._start(number) for number in range(2)]
        lines = [
            "defaults",
            "  mode tcp",
            "  timeout connect 1s",
            "  timeout client 20s",
            "  timeout server 20s",
            "  option redispatch 1",
            "  retries 3",
        ]
        for way, (_, settings) in WAYS.items():
            lines += [f"listen {way.replace(' ', '-')}", f"  bind 127.0.0.1:{self.ports[way]}"]
            for number, servers in enumerate(self._servers):
                at = f"127.0.0.1:{servers[way]}"
                told = settings.format(authority=authority.certificate)
                lines.append(f"  server s{number} {at} {told} inter 100ms fall 2 rise 1")
        (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n")
        log = stack.enter_context((folder / "haproxy.log").open("wb"))
        process = subprocess.Popen(
            [haproxy, "-db", "-f", str(folder / "haproxy.cfg")], stdout=log, stderr=log
        )
        stack.callback(process.wait)
        stack.callback(process.kill)

    def _start(self, number: int) -> Daemon:
        folder = self._folder / f"daemon{number}"
        folder.mkdir(exist_ok=True)
        certificate, key = self._identity
        options = ["--listen", f"tcp:{self._plain[number]}"]
        for way, (listen, _) in WAYS.items():
            options += ["--listen", f"{listen}:{self._servers[number][way]}"]
        options += [f"--tls-certificate={certificate}", f"--tls-private-key={key}"]
        return self._stack.enter_context(Daemon(folder, *options))

    def restart(self, number: int) -> None:
        """
        Start a daemon again, where it was.
        """
        self.daemons[number] = self._start(number)


@pytest.fixture
def site(tmp_path: Path, authority: Authority) -> Iterator[Site]:
    """
    All of it.
    """
    with ExitStack() as stack:
        yield Site(tmp_path, authority, stack)


@pytest.fixture(params=WAYS)
def client(
    request: pytest.FixtureRequest, site: Site, authority: Authority
) -> Callable[[], Stream]:
    """
    Connects, in each set-up.
    """
    port = site.ports[request.param]
    context = authority.client()

    def connected() -> Stream:
        raw = connect(port)
        return TLSClient(raw, context) if request.param == "tls" else raw

    def ready() -> bool:
        try:
            with connected() as client:
                return ask(client, b"hello\n") == b"hello\n"
        except OSError:
            return False

    waitFor(ready, "HAProxy is ready")
    return connected


def test_haproxy(site: Site, client: Callable[[], Stream]) -> None:
    """
    The contract holds through HAProxy; its health checks are no warning. When a daemon is killed
    under load new connections are answered, and when it is back it serves again.
    """
    for _ in range(10):
        with client() as one:
            assert exchange(one, [LINES]) == LINES
    stop = threading.Event()
    lost: list[float] = []
    answered: list[float] = []

    def load() -> None:
        while not stop.is_set():
            begin = time.monotonic()
            try:
                with client() as one:
                    assert ask(one, b"hello\n") == b"hello\n"
                answered.append(begin)
            except (OSError, AssertionError):
                lost.append(begin)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        site.daemons[0].stop(signal.SIGKILL)
        killed = time.monotonic()
        time.sleep(1)
        site.restart(0)
        back = site.daemons[0].cpu()
        waitFor(lambda: site.daemons[0].cpu() > back + 50_000_000, "it serves again")
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    # Those that were on their way to the daemon that was killed are lost with it.
    assert [begin for begin in lost if begin > killed] == []
    assert len([begin for begin in answered if begin > killed]) > 100
    for daemon in site.daemons:
        assert daemon.logs("#warn") == daemon.logs("#error") == daemon.logs("#critical") == 0
