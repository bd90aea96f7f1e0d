"""
HAProxy in front of two daemons, one of which is killed and comes back.
"""

import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.support.clients import LINES, Stream, ask, connect, exchange, program
from tests.support.daemon import PATIENCE, Daemon, quietPort, waitFor
from tests.support.kvcheck import at, started
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
            # A daemon that waits for the processor is not down; one that is down refuses at once.
            "  timeout check 5s",
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
        self._log = folder / "haproxy.log"
        log = stack.enter_context(self._log.open("wb"))
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

    def logs(self, text: str) -> int:
        """
        How many lines of HAProxy's log have this in them.
        """
        return sum(text in line for line in self._log.read_text().splitlines())

    def hasLogged(self, text: str, count: int) -> bool:
        """
        Has HAProxy's log so many lines with this in them?
        """
        return self.logs(text) >= count


def connectedTo(port: int, context: ssl.SSLContext | None) -> Stream:
    """
    A client of HAProxy.
    """
    raw = connect(port)
    return TLSClient(raw, context) if context else raw


class Load(threading.Thread):
    """
    Clients of one set-up, one after the other, until it is told to stop.

    @ivar answered: When those began that were answered.

    @ivar lost: When those began that were not.
    """

    def __init__(self, client: Callable[[], Stream]) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._ending = threading.Event()
        self.answered: list[float] = []
        self.lost: list[float] = []
        self.start()

    def run(self) -> None:
        """
        Ask.
        """
        while not self._ending.is_set():
            begin = time.monotonic()
            try:
                with self._client() as one:
                    assert ask(one, b"hello\n") == b"hello\n"
                self.answered.append(begin)
            except (OSError, AssertionError):
                self.lost.append(begin)

    def stop(self) -> None:
        """
        Stop.
        """
        self._ending.set()
        self.join(PATIENCE)


def isReady(client: Callable[[], Stream]) -> bool:
    """
    Does HAProxy listen, and has it found a daemon?
    """
    try:
        with client() as one:
            return ask(one, b"hello\n") == b"hello\n"
    except OSError:
        return False


def rollingRestart(site: Site) -> None:
    """
    Restart one daemon after the other, under connections of 20 lines: nothing is lost.
    """
    load = ("--rate", "500", "--connections", "10", "--churn", "20")
    with started(at(site.ports["plain"]), "--soak", *load) as run:
        run.begin()
        for number in range(2):
            down, up = site.logs("is DOWN"), site.logs("is UP")
            time.sleep(0.3)
            site.daemons[number].stop()
            waitFor(partial(site.hasLogged, "is DOWN", down + len(WAYS)), "it is gone")
            site.restart(number)
            waitFor(partial(site.hasLogged, "is UP", up + len(WAYS)), "it is back")
        said = run.interrupt().said
    assert said["faults"] == []
    assert said["lines_returned"] == said["lines_sent"] > 100


def test_haproxy(tmp_path: Path, authority: Authority) -> None:
    """
    The contract holds through HAProxy, in each set-up; its health checks are no warning. When a
    daemon is killed under load new connections are answered, and when it is back it serves again.
    """
    with ExitStack() as stack:
        site = Site(tmp_path, authority, stack)
        context = authority.client()
        clients = {
            way: partial(connectedTo, port, context if way == "tls" else None)
            for way, port in site.ports.items()
        }
        for way, client in clients.items():
            waitFor(partial(isReady, client), f"HAProxy is ready: {way}")
            for _ in range(10):
                with client() as one:
                    assert exchange(one, [LINES]) == LINES
        loads = [Load(client) for client in clients.values() for _ in range(2)]
        for load in loads:
            stack.callback(load.stop)
        waitFor(lambda: all(load.answered for load in loads), "all are loaded")
        site.daemons[0].stop(signal.SIGKILL)
        killed = time.monotonic()
        waitFor(lambda: site.logs("is DOWN") == len(WAYS), "HAProxy knows that it is gone")
        site.restart(0)
        waitFor(lambda: site.logs("is UP") == len(WAYS), "HAProxy knows that it is back")
        back = site.daemons[0].cpu()
        waitFor(lambda: site.daemons[0].cpu() > back + 50_000_000, "it serves again")
        before = [len(load.answered) for load in loads]
        waitFor(
            lambda: all(len(x.answered) > n + 50 for x, n in zip(loads, before, strict=True)),
            "the load goes on",
        )
        for load in loads:
            load.stop()
        for load in loads:
            # Those that were on their way to the daemon that was killed are lost with it.
            assert [begin for begin in load.lost if begin > killed] == []
        for first, second in zip(loads[::2], loads[1::2], strict=True):
            answered = first.answered + second.answered
            assert len([begin for begin in answered if begin > killed]) > 100
        rollingRestart(site)
        for daemon in site.daemons:
            assert daemon.logs("#warn") == daemon.logs("#error") == daemon.logs("#critical") == 0
