"""
HAProxy in front of two daemons, set up as the manual says. One of them is killed and comes back,
the other one drains.
"""

import shlex
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.clients import LINES, Stream, ask, connect, exchange, program, receive
from tests.support.daemon import PATIENCE, Daemon, quietPort, waitFor
from tests.support.documents import ROOT, block
from tests.support.kvcheck import at, started
from tests.support.wires import Authority, TLSClient

SHIPPED = ROOT / "kvserver/deploy/haproxy.cfg"
"""
The configuration that the manual tells people to use.
"""

WAYS = {
    "plain": ("tcp", "check"),
    "send-proxy": ("proxy:tcp", "check send-proxy"),
    "tls": ("proxy:tls:tcp", "check send-proxy-v2"),
    "to tls": ("tls:tcp", "check ssl verify required verifyhost localhost ca-file {authority}"),
}
"""
Other set-ups: what the servers have to listen on, and what HAProxy is told of them.
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
        # The servers of the shipped configuration: the same ports on two addresses.
        self._echo, self._operations = quietPort(), quietPort()
        self.ports = {way: quietPort() for way in ("shipped", *WAYS)}
        self.daemons = [self._start(number) for number in range(2)]
        shipped = SHIPPED.read_text()
        for place, ours in (
            ("bind :4040", f"bind 127.0.0.1:{self.ports['shipped']}"),
            ("192.0.2.11:4040", f"127.0.0.11:{self._echo}"),
            ("192.0.2.12:4040", f"127.0.0.12:{self._echo}"),
            ("check port 9464", f"check port {self._operations}"),
        ):
            assert shipped.count(place) == 1, place
            shipped = shipped.replace(place, ours)
        lines = [shipped]
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
            [haproxy, "-db", "-f", str(folder / "haproxy.cfg")],
            # It says the same there, in fewer words.
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)

    def _start(self, number: int) -> Daemon:
        folder = self._folder / f"daemon{number}"
        folder.mkdir(exist_ok=True)
        certificate, key = self._identity
        interface = f"interface=127.0.0.1{number + 1}"
        options = ["--listen", f"tcp:{self._plain[number]}"]
        options += ["--listen", f"proxy:tcp:{self._echo}:{interface}"]
        options += [f"--metrics=tcp:{self._operations}:{interface}"]
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
        while not self._ending.wait(0.005):
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


@pytest.mark.slow
def test_haproxy(tmp_path: Path, authority: Authority) -> None:
    """
    The contract holds through HAProxy, in each set-up; its health checks are no warning. When a
    daemon is killed under load new connections are answered, and when it is back it serves again.
    When the other one drains nobody loses a line: connections that stay are closed in order.
    """
    pasted = shlex.split(block("haproxy -c"))
    subprocess.run([program("haproxy"), *pasted[1:]], cwd=ROOT, check=True)
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
        waitFor(lambda: site.logs("is DOWN") == len(site.ports), "HAProxy knows that it is gone")
        site.restart(0)
        waitFor(lambda: site.logs("is UP") == len(site.ports), "HAProxy knows that it is back")
        back = site.daemons[0].cpu()
        waitFor(lambda: site.daemons[0].cpu() > back + 50_000_000, "it serves again")
        before = [len(load.answered) for load in loads]
        waitFor(
            lambda: all(len(x.answered) > n + 50 for x, n in zip(loads, before, strict=True)),
            "the load goes on",
        )
        for load in loads[2:]:
            load.stop()
        held = [stack.enter_context(clients["shipped"]()) for _ in range(10)]
        for one in held:
            assert ask(one, b"hello\n") == b"hello\n"
            one.sendall(b"hel")
        site.daemons[1].process.send_signal(signal.SIGTERM)
        waitFor(lambda: site.logs("code: 503") == 1, "HAProxy knows that it drains")
        for one in held:
            one.sendall(b"lo\n")
            assert receive(one, 6) == b"hello\n"
        site.daemons[1].process.wait(PATIENCE)
        for one in held:
            one.sendall(b"hello\n")
        answers = [receive(one, 6) for one in held]
        assert set(answers) == {b"", b"hello\n"}
        assert 2 <= answers.count(b"") <= 8
        site.restart(1)
        waitFor(lambda: site.logs("kvserver/kvserver2 is UP"), "HAProxy knows that it is back")
        for load in loads[:2]:
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
