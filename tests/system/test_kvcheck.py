"""
C{kvcheck}: each fault of a path is found, named and placed; what is whole has none.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvserver.check.rules import RULES
from tests.support import faulty
from tests.support.clients import needsIPv6, program, slow
from tests.support.daemon import PATIENCE, SCRIPTS, Daemon, quietPort, waitFor
from tests.support.faulty import FaultyProxy, Relay, breaking
from tests.support.kvcheck import KVCHECK, Answer, at, kvcheck, started
from tests.support.wires import Authority

LOAD = ("--lines", 4000, "--connections", 2)


def inverted(data: bytes, begin: int, end: int) -> bytes:
    """
    With these bytes changed.
    """
    return data[:begin] + bytes(255 - byte for byte in data[begin:end]) + data[end:]


@pytest.mark.parametrize(
    "more", [(), pytest.param(("--workers=2",), marks=pytest.mark.slow)], ids=["one", "workers"]
)
def test_banner(tmp_path: Path, authority: Authority, more: tuple[str, ...]) -> None:
    """
    With C{--banner} on both sides each wire keeps the contract, and a load finds no fault. If only
    the daemon has it, that is said.
    """
    certificate, key = authority.issue("localhost")
    with Daemon(
        tmp_path,
        *("--listen", "tcp:0", "--listen", "tls:tcp:0", "--listen", "proxy:tls:tcp:0"),
        *("--listen", f"unix:{tmp_path}/socket"),
        *("--banner=%h %l %w", f"--access-log={tmp_path}/log"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
        *more,
        answer=f"{socket.gethostname()} tcp:0 {'1' if more else '-'}\nhello\n".encode(),
    ) as daemon:
        plain = at(daemon.port)
        tls = f"tls:127.0.0.1:{daemon.listening[1]}"
        proxy = f"proxy:tls:127.0.0.1:{daemon.listening[2]}"
        log = ("--server-log", tmp_path / "log")
        tried = ["lines", "early", "half-close", "tail", "reset", "client-address"]
        if more:
            tried = [rule for rule in RULES if rule not in ("long-50mb", "idle")]
        rules = [part for rule in tried for part in ("--rule", rule)]
        for target in (plain, tls, f"unix:{tmp_path}/socket", proxy)[0 if more else 3 :]:
            secure = () if "tls" not in target else ("--insecure",)
            answer = kvcheck(target, "--banner", *secure, *log, *rules)
            assert "FAILS" not in answer.outcomes().values(), answer.said["checks"]
            answer = kvcheck(target, "--banner", *secure, "--churn", 100, *LOAD)
            assert (answer.status, answer.said["fault_counts"]) == (0, {})
        answer = kvcheck(plain, "--rule", "lines", "--timeout", 1)
        assert "this is no plain echo: before the line came" in answer.detail("lines")
        assert kvcheck(plain, "--timeout", 1, *LOAD).status == 1


def test_nobodyReadsTheHeader(daemon: Daemon) -> None:
    """
    A port that takes our PROXY header for lines is told from one that adds something.
    """
    for more in (), ("--proxy-version=1",):
        answer = kvcheck(f"proxy:{at(daemon.port)}", *more, "--rule", "lines", "--timeout", 1)
        expected = "our own PROXY header came back: this port expects none"
        assert answer.detail("lines") == expected


def test_noBanner(daemon: Daemon) -> None:
    """
    A banner that does not come is said, and in a load it is a lost line.
    """
    answer = kvcheck(at(daemon.port), "--banner", "--rule", "lines", "--timeout", 1)
    assert answer.detail("lines") == "no banner came before the echo (--banner)"
    answer = kvcheck(at(daemon.port), "--banner", "--lines", 1000, "--timeout", 1)
    assert answer.fault() == ("lost", 0, 0, 0, 64)


FAULTS: dict[str, tuple[Callable[[bytes], bytes], tuple[str, int, int, int, int]]] = {
    "a byte changed": (
        lambda data: inverted(data, 123_457, 123_458),
        ("damaged", 0, 1929, 123_457, 1),
    ),
    "a segment sent twice": (
        lambda data: data[:1600] + data[640:],
        ("duplicated", 0, 25, 1600, 960),
    ),
    "two lines swapped": (
        lambda data: data[:640] + data[704:768] + data[640:704] + data[768:],
        ("reordered", 0, 10, 640, 128),
    ),
    "bytes inserted": (
        lambda data: data[:1000] + b"\0\0\0" + data[1000:],
        ("inserted", 0, 15, 1000, 3),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_aFaultIsFoundNamedAndPlaced(daemon: Daemon, name: str) -> None:
    """
    A fault is found named and placed.
    """
    how, expected = FAULTS[name]
    end = expected[3] + 2000
    with FaultyProxy(daemon.port, breaking(end, how)) as proxy:
        answer = kvcheck(at(proxy.port), "--depth", 3000, *LOAD)
    assert answer.fault() == expected
    assert (answer.status, answer.said["result"]) == (1, "broken")
    fault = answer.said["faults"][0]
    assert fault["local"].startswith("127.0.0.1:")
    assert len(fault["expected"]) == 64
    assert answer.said["connections"] == {"opened": 2, "endings": {"closed": 2}}
    assert answer.said["ends"] == []


def test_aByteIsLost(daemon: Daemon) -> None:
    """
    A byte is lost.
    """
    seen: list[bytes] = []

    def how(data: bytes) -> bytes:
        seen.append(data)
        return data[:5000] + data[5001:]

    with FaultyProxy(daemon.port, breaking(6000, how)) as proxy:
        answer = kvcheck(at(proxy.port), "--depth", 1000, *LOAD)
    (sent,) = seen
    offset = 5000
    while sent[offset] == sent[offset + 1]:
        offset += 1
    assert answer.fault() == ("lost", 0, offset // 64, offset, 1)
    assert answer.said["bytes_returned"] == answer.said["bytes_sent"] - 1
    assert answer.said["lines_returned"] == 3999
    fault = answer.said["faults"][0]
    assert bytes.fromhex(fault["expected"]) == sent[offset : offset + 32]
    assert bytes.fromhex(fault["received"]) == sent[offset + 1 : offset + 33]


def test_aMegabyteIsLost(daemon: Daemon) -> None:
    """
    A megabyte is lost.
    """

    def how(data: bytes) -> bytes:
        return data[:700_000] + data[1_700_000:]

    with FaultyProxy(daemon.port, breaking(1_800_000, how)) as proxy:
        answer = kvcheck(at(proxy.port), "--size", 1000, "--lines", 4000, "--depth", 4000)
    kind, _, line, offset, length = answer.fault()
    assert (kind, line, length) == ("lost", 700, 1_000_000)
    # The bytes before and after it may be the same.
    assert 700_000 <= offset < 700_010
    assert answer.said["lines_returned"] == 3000


def test_connectionsAreCrossed(daemon: Daemon) -> None:
    """
    Connections are crossed.
    """
    with FaultyProxy(daemon.port, faulty.Crossed) as proxy:
        answer = kvcheck(at(proxy.port), *LOAD)
    found = {
        (fault["kind"], fault["connection"], fault["line"], fault["offset"], fault["length"])
        for fault in answer.said["faults"]
    }
    assert found == {("crossed", 0, 0, 0, 64), ("crossed", 1, 0, 0, 64)}


BROKEN_RULES: dict[str, tuple[type[Relay], str, str]] = {
    "early": (faulty.Early, "early", "before their line was complete"),
    "FIN not passed on": (faulty.NoFIN, "half-close", "did not close"),
    "FIN turned into RST": (faulty.FINToRST, "half-close", "reset"),
    "tail dropped": (faulty.NoTail, "tail", "lost"),
    "unbounded buffering": (faulty.Buffering, "slow-reader", "no bound"),
}


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_aBrokenRuleIsFound(daemon: Daemon, name: str) -> None:
    """
    A broken rule is found.
    """
    relay, rule, words = BROKEN_RULES[name]
    with FaultyProxy(daemon.port, relay) as proxy:
        answer = kvcheck(at(proxy.port), "--rule", rule, "--rule", "lines", "--timeout", 2)
    assert answer.outcomes() == {"lines": "ok", rule: "FAILS"}
    assert words in answer.detail(rule)
    assert answer.status == 1


def test_earlyBytesAreOneFault(daemon: Daemon) -> None:
    """
    Early bytes are one fault.
    """
    with FaultyProxy(daemon.port, faulty.Early) as proxy:
        answer = kvcheck(at(proxy.port), "--rule", "early")
    assert answer.fault() == ("early", 0, 0, 0, 32)


def test_aDroppedTailIsLost(daemon: Daemon) -> None:
    """
    A dropped tail is lost.
    """
    with FaultyProxy(daemon.port, faulty.NoTail) as proxy:
        answer = kvcheck(at(proxy.port), "--rule", "tail")
    assert answer.fault() == ("lost", 0, 1, 64, 63)
    assert answer.said["connections"]["endings"] == {"closed": 1}


def test_anIdleConnectionIsCut(daemon: Daemon) -> None:
    """
    An idle connection is cut.
    """
    with FaultyProxy(daemon.port, faulty.IdleCut) as proxy:
        answer = kvcheck(at(proxy.port), "--rule", "idle", "--idle", "5")
    assert answer.outcomes() == {"idle": "FAILS"}
    assert "after 3.0 s of silence" in answer.detail("idle")
    (end,) = answer.said["ends"]
    assert (end["ending"], end["offset"], end["outstanding"]) == ("dropped", 64, 0)
    assert kvcheck(at(daemon.port), "--rule", "idle", "--idle", "0.5s").status == 0


def test_aDelayIsSeenInTheIntendedTime(daemon: Daemon) -> None:
    """
    A delay is seen in the intended time.
    """
    with FaultyProxy(daemon.port, faulty.Delay) as proxy:
        answer = kvcheck(
            *(at(proxy.port), "--rate", 2000, "--duration", 2, "--depth", 1),
            *("--max-p99", "50ms"),
        )
    latency = answer.said["latency"]
    # One in 1,000 lines is late by itself; 400 are late because of it.
    assert latency["intended"]["p99"] > 0.1
    assert latency["actual"]["p99"] < 0.1 < latency["actual"]["max"]
    assert latency["intended"]["max"] >= 0.2
    assert (answer.status, answer.said["result"]) == (3, "exceeded")
    assert answer.said["fault_counts"] == {}
    assert answer.said["gaps"]
    assert all(0.1 < gap["duration"] < 0.5 for gap in answer.said["gaps"])


@pytest.mark.slow
def test_each100thConnectionIsRefused(daemon: Daemon) -> None:
    """
    Each 100th connection is refused.
    """
    with FaultyProxy(daemon.port, refusesEach=100) as proxy:
        answer = kvcheck(at(proxy.port), "--lines", 400, "--churn", 1)
    ends = [(end["connection"], end["ending"]) for end in answer.said["ends"]]
    assert ends == [(99, "reset"), (199, "reset"), (299, "reset"), (399, "reset")]
    assert 396 <= answer.said["lines_returned"] <= 400
    assert answer.said["faults"] == []


@pytest.fixture(scope="module")
def paths(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[dict[str, list[str]]]:
    """
    What leads to a daemon, on each wire; and to its access log.
    """
    folder = tmp_path_factory.mktemp("paths")
    certificate, key = authority.issue("localhost")
    with Daemon(
        folder,
        *("--listen", "tcp:0", "--listen", f"unix:{folder}/echo.sock", "--listen", "tls:tcp:0"),
        *("--listen", "proxy:tcp:0", "--listen", "proxy:tls:tcp:0"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
        f"--access-log={folder}/access.log",
    ) as daemon:
        plain, path, tls, proxy, proxyTLS = daemon.listening
        trust = ["--ca", str(authority.certificate)]
        yield {
            "log": [f"--server-log={folder}/access.log"],
            "tcp": [f"tcp:127.0.0.1:{plain}"],
            "tcp6": [rf"tcp:\:\:1:{plain}"],
            "name": [f"tcp:localhost:{plain}"],
            "unix": [f"unix:{path}"],
            "tls": [f"tls:localhost:{tls}", *trust],
            "proxy": [f"proxy:tcp:127.0.0.1:{proxy}", "--proxy-source=192.0.2.7:1234"],
            "proxy v1": [f"proxy:tcp:127.0.0.1:{proxy}", "--proxy-version=1"],
            "proxy tls": [
                *(f"proxy:tls:tcp:localhost:{proxyTLS}", *trust),
                "--proxy-source=[2001:db8::1]:77",
            ],
        }


LONG_RULES = ("long-50mb", "connections", "idle")

SHORT_RULES = [f"--rule={name}" for name in RULES if name not in LONG_RULES]

QUICK_WIRES = ("proxy tls",)

WIRES = [
    pytest.param(
        name,
        marks=[
            *([needsIPv6] if name == "tcp6" else []),
            *([] if name in QUICK_WIRES else [pytest.mark.slow]),
        ],
    )
    for name in ("tcp", "tcp6", "name", "unix", "tls", "proxy", "proxy v1", "proxy tls")
]


@pytest.mark.parametrize("wire", WIRES)
def test_theDaemonKeepsAllRules(paths: dict[str, list[str]], wire: str) -> None:
    """
    The daemon keeps all rules.
    """
    # Two of them take seconds, and not much is to be learnt from them on each wire.
    rules = [] if wire in ("tcp", "proxy tls") else SHORT_RULES
    answer = kvcheck(*paths[wire], *paths["log"], *rules)
    expected = dict.fromkeys(answer.outcomes(), "ok")
    if wire in ("unix", "tls", "proxy tls"):
        expected["urgent"] = "cannot be told"
    assert answer.outcomes() == expected
    assert len(expected) == (11 if rules else 13)
    assert answer.status == 0
    assert answer.said["faults"] == answer.said["ends"] == []
    # On a UNIX socket a reset takes a line that is not read.
    unread = answer.said["lines_sent"] - answer.said["lines_returned"]
    assert unread == (wire == "unix")


@pytest.mark.parametrize("wire", ["tcp", slow("unix"), slow("tls"), "proxy tls"])
def test_aLoadFindsNothingWrongWithTheDaemon(paths: dict[str, list[str]], wire: str) -> None:
    """
    A load finds nothing wrong with the daemon.
    """
    lines = 6000
    answer = kvcheck(
        *paths[wire],
        *("--connections", 10, "--lines", lines, "--sizes", "10:3000", "--binary"),
        *("--churn", 200, "--max-p99", "1h"),
    )
    said = answer.said
    assert (answer.status, said["result"], said["mode"]) == (0, "ok", "load")
    assert said["lines_sent"] == said["lines_returned"] == lines
    assert said["bytes_sent"] == said["bytes_returned"]
    assert said["faults"] == said["ends"] == []
    assert list(said["connections"]["endings"]) == ["closed"]
    assert said["connections"]["opened"] >= 30
    # Those are left out that were on their way during a pause of our own.
    latency = said["latency"]
    assert latency["intended"]["count"] + said["lateness"]["lines"] == lines
    assert latency["connect"]["count"] == said["connections"]["opened"]
    assert (latency["handshake"] is not None) == ("tls" in wire)


def test_linesThatWaitForRoomAreAllSent(daemon: Daemon) -> None:
    """
    Lines that wait for room are all sent.
    """
    answer = kvcheck(
        *(at(daemon.port), "--rate", 5000, "--lines", 3000),
        *("--connections", 10, "--churn", 7, "--depth", 2),
    )
    assert answer.status == 0
    assert answer.said["lines_returned"] == 3000
    assert answer.said["connections"]["opened"] >= 3000 // 7


@pytest.mark.slow
def test_aClientCertificateIsAskedFor(tmp_path: Path, authority: Authority) -> None:
    """
    A client certificate is asked for.
    """
    certificate, key = authority.issue("localhost")
    shown, shownKey = authority.issue("client")
    with Daemon(
        *(tmp_path, "--listen", "tcp:0", "--listen", "tls:tcp:0"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
        f"--tls-client-ca={authority.certificate}",
    ) as daemon:
        target = (f"tls:localhost:{daemon.listening[1]}", "--ca", authority.certificate)
        answer = kvcheck(*target, "--rule", "lines")
        assert (answer.status, answer.outcomes()) == (1, {"lines": "FAILS"})
        assert answer.said["connections"]["endings"] == {"alert": 1}
        assert "alert" in answer.detail("lines")
        more = ("--certificate", shown, "--private-key", shownKey)
        assert kvcheck(*target, *more, "--rule", "lines").status == 0


WRONG_TARGETS = {
    "unknown host": ("tcp:no.such.host.invalid:4040", "no.such.host.invalid"),
    "bad endpoint": ("udp:1.2.3.4:5", "udp:1.2.3.4:5"),
    "no port": ("tcp:localhost", "tcp:HOST:PORT"),
    "bad port": ("tcp:localhost:99999", "'99999' is not a TCP port"),
    "no such path": ("unix:/no/such/path", "no such UNIX socket"),
}


@pytest.mark.parametrize("name", ["unknown host", *map(slow, [*WRONG_TARGETS][1:])])
def test_aWrongTargetIsOneLine(name: str) -> None:
    """
    A wrong target is one line.
    """
    target, words = WRONG_TARGETS[name]
    answer = kvcheck(target, "--timeout", 5)
    assert answer.status == 2
    assert words in answer.complaint
    assert answer.complaint.count("\n") == 1
    assert answer.said == {}


def test_ownDescriptorsDoNotSuffice(daemon: Daemon) -> None:
    """
    That is not blamed on the path; if nothing else was asked for, nothing was tried.
    """

    def limited(*more: str) -> Answer:
        command = ["prlimit", "--nofile=500:500", *KVCHECK, "--json", at(daemon.port), *more]
        program("prlimit")
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        return Answer(done.returncode, done.stdout, done.stderr)

    both = limited("--rule", "one-byte", "--rule", "connections")
    assert both.outcomes() == {"one-byte": "ok", "connections": "cannot be told"}
    assert both.status == 0
    answer = limited("--rule", "connections")
    assert answer.status == 2
    assert "nothing was tried: connections: this process may have 500 file" in answer.complaint
    answer = limited("--connections", "500")
    assert answer.status == 2
    assert "--connections: 500 are too many" in answer.complaint


def test_nothingWasTried() -> None:
    """
    A rule that can't be told is no success by itself, and the line says what it needs.
    """
    for rule, words in ("reset", "only --server-log tells"), ("idle", "only tried with --idle"):
        answer = kvcheck("tcp:127.0.0.1:1", "--rule", rule)
        assert answer.status == 2
        assert answer.complaint.endswith(f": nothing was tried: {rule}: {words}\n")


def test_aRefusedPortIsOneLine() -> None:
    """
    A refused port is one line.
    """
    for more in ([], ["--lines", 10], ["--soak"]):
        answer = kvcheck(at(quietPort()), *more)
        assert answer.status == 2
        assert "connection refused" in answer.complaint
        assert answer.complaint.count("\n") == 1
    done = subprocess.run(
        [*KVCHECK, at(quietPort())], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_aCertificateThatIsNotTrusted(paths: dict[str, list[str]]) -> None:
    """
    A certificate that is not trusted.
    """
    target = paths["tls"][0]
    answer = kvcheck(target)
    assert answer.status == 2
    assert "certificate verify failed" in answer.complaint
    answer = kvcheck(*paths["tls"], "--server-name", "other.example")
    assert "other.example" in answer.complaint
    assert kvcheck(target, "--insecure", "--rule", "lines").status == 0


def serve(answer: Callable[[socket.socket], None]) -> int:
    """
    A server that is no echo.

    @return: Its port.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=work, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


@pytest.mark.slow
def test_whatIsNoEchoIsSaid() -> None:
    """
    What is no echo is said.
    """

    def http(client: socket.socket) -> None:
        client.recv(10)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        client.close()

    def silent(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while client.recv(1000):
                pass

    def prefixing(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as lines:
            for line in lines:
                client.sendall(b"hello " + line)

    for server, words in (
        (http, "HTTP"),
        (silent, "nothing came for 1 s"),
        (prefixing, "'hello '"),
    ):
        answer = kvcheck(at(serve(server)), "--timeout", 1)
        assert answer.status == 1
        outcomes = list(answer.outcomes().values())
        assert outcomes == ["FAILS", *["cannot be told"] * 12]
        assert words in answer.detail("lines")
    answer = kvcheck(f"tls:127.0.0.1:{serve(http)}", "--timeout", 1)
    assert answer.status == 2
    assert "TLS handshake failed" in answer.complaint


def test_ctrlCGivesTheReport(daemon: Daemon) -> None:
    """
    Ctrl-C gives the report.
    """
    with started(at(daemon.port), "--soak", "--connections", "5") as run:
        run.begin()
        waitFor(lambda: daemon.descriptors() >= daemon.idleDescriptors + 5, "it is connected")
        time.sleep(0.5)
        begin = time.monotonic()
        answer = run.interrupt()
    assert time.monotonic() - begin < 5
    assert (answer.status, answer.said["interrupted"]) == (0, True)
    assert answer.said["connections"] == {"opened": 5, "endings": {"closed": 5}}
    assert answer.said["lines_returned"] > 100


def test_ctrlCWhileTheRulesAreTried(daemon: Daemon) -> None:
    """
    Ctrl-C while the rules are tried.
    """
    with started(at(daemon.port), "--rule", "lines", "--idle", "60") as run:
        run.begin()
        waitFor(lambda: daemon.descriptors() > daemon.idleDescriptors, "it is connected")
        time.sleep(0.5)
        answer = run.interrupt()
    assert answer.outcomes() == {"lines": "ok", "idle": "cannot be told"}
    assert (answer.status, answer.said["interrupted"]) == (0, True)


@pytest.mark.slow
def test_aLoadOnASilentPortTimesOut() -> None:
    """
    A load on a silent port times out.
    """

    def silent(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while client.recv(1000):
                pass

    answer = kvcheck(at(serve(silent)), "--lines", 100, "--timeout", "500ms")
    assert answer.said["connections"] == {"opened": 1, "endings": {"timeout": 1}}
    (end,) = answer.said["ends"]
    assert (end["offset"], end["outstanding"]) == (0, 16 * 64)
    assert answer.said["faults"] == []


def test_aLineIsCut(daemon: Daemon) -> None:
    """
    A line is cut.
    """

    def cut(client: socket.socket) -> None:
        data = client.recv(1000)
        client.sendall(data[:100])
        client.close()

    # Unread data would make an RST of the FIN.
    answer = kvcheck(at(serve(cut)), "--lines", 10, "--depth", 10)
    (end,) = answer.said["ends"]
    assert (end["ending"], end["offset"], end["outstanding"]) == ("cut", 100, 540)
    assert answer.said["faults"] == []


def test_nobodyReadsTheOutput(daemon: Daemon) -> None:
    """
    Nobody reads the output.
    """
    with subprocess.Popen(
        [*KVCHECK, at(daemon.port), "--duration", "1.5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_aSoakSurvivesARestart(daemon: Daemon) -> None:
    """
    A soak survives a restart.
    """
    port = quietPort()
    with started(at(port), "--soak", "--connections", "3", "--rate", "300") as run:
        with FaultyProxy(daemon.port, port=port) as proxy:
            run.begin()
            waitFor(lambda: proxy.accepted >= 3, "it is connected")
            time.sleep(0.5)
        time.sleep(0.5)
        with FaultyProxy(daemon.port, port=port) as proxy:
            waitFor(lambda: proxy.accepted >= 3, "it is back")
            time.sleep(0.5)
            answer = run.interrupt()
    said = answer.said
    assert (answer.status, said["result"]) == (1, "broken")
    (gap,) = said["gaps"]
    # The proxy closes one after the other: an echo may still come when the first has ended.
    assert gap["connections_lost"] >= 1
    endings = said["connections"]["endings"]
    assert sum(endings.get(name, 0) for name in ("dropped", "reset", "cut")) >= 3
    assert 0.5 < gap["duration"] < 10
    assert said["connections"]["endings"]["closed"] == 3
    assert {end["ending"] for end in said["ends"]} <= {"dropped", "reset", "cut", "refused"}


@pytest.mark.slow
def test_ownPausesAreNotBlamedOnThePath(daemon: Daemon) -> None:
    """
    Own pauses are not blamed on the path.
    """
    with (
        FaultyProxy(daemon.port) as proxy,
        started(at(proxy.port), "--rate", "500", "--duration", "3") as run,
    ):
        run.begin()
        waitFor(lambda: proxy.accepted, "it is connected")
        time.sleep(0.5)
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        run.process.send_signal(signal.SIGCONT)
        answer = run.end()
    said = answer.said
    assert answer.status == 0
    assert said["lateness"]["max"] > 0.3
    assert said["lateness"]["lines"] > 100
    assert said["latency"]["intended"]["max"] < 0.3


def test_theCommandWritesPlainTextAndFiles(daemon: Daemon, tmp_path: Path) -> None:
    """
    The command writes plain text and files.
    """
    done = subprocess.run(
        [
            *(str(SCRIPTS / "kvcheck"), at(daemon.port), "--lines", "500"),
            *("--plot", str(tmp_path / "plot.svg"), "--hdr", str(tmp_path / "latency.hgrm")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "p99.99" in done.stdout
    assert "500 of 500 lines" in done.stdout
    assert "\x1b" not in done.stdout
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
    assert "Percentile" in (tmp_path / "latency.hgrm").read_text()


def test_theRulesNeedNoExtra(daemon: Daemon) -> None:
    """
    The rules need no extra.
    """
    script = (
        "import sys; sys.modules['hdrh'] = sys.modules['rich'] = None\n"
        "from kvserver.check.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    for more, status, words in (
        (["--rule", "lines"], 0, "lines            ok"),
        (["--lines", "5"], 2, "pip install '.[check]'"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, at(daemon.port), *more],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status
        assert words in done.stdout + done.stderr
