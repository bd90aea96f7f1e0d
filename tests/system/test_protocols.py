"""
The real daemon serves protocols other than the echo: those of the README, and those of
C{tests.support.protocols} and Twisted, each on every wire.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import protocols
from tests.support.clients import Stream, connect, get, receive, received
from tests.support.daemon import (
    PATIENCE,
    TWISTD,
    Daemon,
    environment,
    quietPort,
    waitFor,
)
from tests.support.documents import block
from tests.support.protocols import FEW, Pouring, poured
from tests.support.wires import PROXY_V2, Authority, TLSClient, wires
from tests.system.test_drain import stopped
from tests.system.test_operation import records, samples, watched
from tests.system.test_programs import Telnet
from tests.system.test_twistd import run

KV = "kvserver.examples.kv.KeyValueProtocol"
UNKNOWN = b"UNKNOWN COMMAND\r\n"

# Those of the README.


def test_example(tmp_path: Path) -> None:
    """
    The example, at a terminal: what the README shows, and what it does not know.
    """
    option = block(".venv/bin/twistd -n kvserver --protocol=").split()[-1]
    assert option == f"--protocol={KV}"
    with Daemon(tmp_path, "--port=0", option, answer=UNKNOWN) as daemon:
        _, *shown = block("$ telnet 127.0.0.1 4040\nCREATE").split("\n")
        telnet = Telnet(daemon.port)
        commands = ("CREATE", "PUT", "GET", "DELETE")
        for line in filter(None, shown):
            if line.startswith(commands):
                telnet.types(line)
            else:
                telnet.sees(f"{line}\r\n")
        for command, answer in (
            ("GET shopping milk", "\r\nOK\r\n"),
            ("GET nowhere milk", "NOT FOUND\r\n"),
            ("PUT shopping", "UNKNOWN COMMAND\r\n"),
            ("", "UNKNOWN COMMAND\r\n"),
        ):
            telnet.types(command)
            telnet.sees(answer)
        telnet.quits()


def test_plugin(tmp_path: Path) -> None:
    """
    A plugin of one's own, as the README has it, found by twistd.
    """
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "shop_plugin.py").write_text(
        block("from twisted.application.service import ServiceMaker")
    )
    (tmp_path / "shop.py").write_text(block("from kvserver import tap"))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    env = environment(PYTHONPATH=path)
    with (
        Daemon(tmp_path, "--port=0", env=env, name="shop", answer=UNKNOWN) as daemon,
        connect(daemon.port) as client,
    ):
        client.sendall(b"CREATE shopping\n")
        assert receive(client, 4) == b"OK\r\n"


def test_everyWire(tmp_path: Path, authority: Authority) -> None:
    """
    It passes PROXY and TLS as the echo does, is limited, recorded, and measured by what it counts:
    nothing, if it does not say so.
    """
    certificate, key = authority.issue("localhost")
    log = tmp_path / "access.log"
    with Daemon(
        tmp_path,
        *("--listen", "tcp:0", "--listen", "proxy:tls:tcp:0"),
        *(f"--protocol={KV}", f"--access-log={log}"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
        answer=UNKNOWN,
    ) as daemon:
        raw = connect(int(daemon.listening[1]))
        raw.sendall(PROXY_V2)
        with TLSClient(raw, authority.client()) as client:
            client.sendall(b"CREATE shopping\n" * 1000)
            client.shutdown(socket.SHUT_WR)
            assert receive(client, 1 << 20) == b"OK\r\n" * 1000
    *_, record = (json.loads(line) for line in log.read_text().splitlines())
    assert "lines" not in record
    assert (record["client"], record["tls"]) == ("192.0.2.1:1024", "TLSv1.3")
    assert (record["bytes_in"], record["bytes_out"]) == (16_000, 4_000)
    assert record["reason"] == "client_closed"


@pytest.mark.parametrize("name", ["nowhere.Echo", "json.loads", "echo"])
def test_notFound(tmp_path: Path, name: str) -> None:
    """
    What can't be served is one line, and a mistake on the command line.
    """
    arguments = ("-n", "--pidfile=", "kvserver", f"--protocol={name}")
    done = run(tmp_path, TWISTD, *arguments, env=environment())
    assert done.returncode == os.EX_USAGE
    assert done.stdout.startswith(f"kvserver: --protocol: '{name}' ")
    assert done.stdout.count("\n") == 1


# Each of them, on every wire.

HOSTS = {
    "tcp4": "127.0.0.1",
    "tls": "127.0.0.1",
    "proxy v2": "192.0.2.1",
    "proxy tls": "192.0.2.1",
    "unix": "unix",
}
"""
The host of the client's address, by wire.
"""

Hears = Callable[[Stream, str], int]
"""
Receives an answer and checks it, given a client and its wire. Returns the number of bytes.
"""


def digest(chunks: Iterable[bytes]) -> str:
    """
    Return the SHA-256 of a long stream of bytes.
    """
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def says(text: str) -> Hears:
    """
    Return what receives C{text}, in which C{HOST} stands for the host of the client's address.
    """

    def hears(client: Stream, wire: str) -> int:
        expected = text.replace("HOST", HOSTS[wire]).encode()
        assert receive(client, len(expected)) == expected
        return len(expected)

    return hears


def silence(client: Stream, wire: str) -> int:
    """
    Receive nothing.
    """
    return 0


def pours(client: Stream, wire: str) -> int:
    """
    Receive what L{protocols.PouringLess} writes, until the connection ends.
    """
    assert digest(received(client)) == digest(poured(FEW, Pouring.chunk))
    return FEW


def page(client: Stream) -> tuple[int, bytes]:
    """
    Receive an HTTP response.

    @return: Its size in bytes, and its body.
    """
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += receive(client, 1) or pytest.fail(f"the end, after {bytes(head)!r}")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
    assert length
    body = receive(client, int(length[1]))
    return len(head) + len(body), body


def browses(client: Stream, wire: str) -> int:
    """
    Receive two pages: one names the client's address, the other is long.
    """
    first, who = page(client)
    assert who.decode().split()[0] == HOSTS[wire]
    second, long = page(client)
    assert digest([long]) == digest(poured(FEW, Pouring.chunk))
    return first + second


@dataclass(frozen=True)
class Case:
    """
    A protocol, and what its clients send and receive.

    @ivar protocol: The value of C{--protocol}.

    @ivar asks: What a client sends.

    @ivar hears: Receives what such a client gets.

    @ivar greets: Receives what a silent client gets after it has connected.

    @ivar parts: Receives what a client gets when the daemon closes its connection.

    @ivar closes: Whether the protocol closes the connection when it has answered.

    @ivar counts: The unit of work, and how much work C{asks} is.

    @ivar reason: Why a connection ends after the answer.

    @ivar idleReason: Why the connection of a client ends that neither sends nor reads.

    @ivar drainReason: Why the connection of a silent client ends when the daemon stops.

    @ivar wires: The wires on which it works.
    """

    protocol: str
    asks: bytes
    hears: Hears
    greets: Hears = silence
    parts: Hears = silence
    closes: bool = False
    counts: tuple[str, int] | None = None
    reason: str = "client_closed"
    idleReason: str = "idle_timeout"
    drainReason: str = "drained"
    wires: tuple[str, ...] = tuple(HOSTS)

    def ends(self, client: Stream) -> None:
        """
        Wait for the end of the connection, which must not be a reset.
        """
        # A fault leaves no time for a close_notify.
        broken = (ssl.SSLEOFError,) if self.reason == "error" else ()
        with contextlib.suppress(*broken):
            assert client.recv(1) == b""


OURS = "tests.support.protocols"
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"

CASES = {
    "upper-caser": Case(
        f"{OURS}.Shouting",
        b"hello\nis it me\n",
        says("HELLO\nIS IT ME\n"),
        counts=("shouts", 2),
    ),
    "chatty": Case(
        f"{OURS}.Chatting",
        b"100\n",
        says("and\n" * 100),
        parts=says("so long\n"),
        counts=("words", 100),
    ),
    "answers late": Case(
        f"{OURS}.Thinking",
        b"??!",
        says("!!"),
        parts=says("goodbye\n"),
        counts=("thoughts", 2),
    ),
    "raises": Case(f"{OURS}.Failing", b"x", silence, closes=True, reason="error"),
    "never idle": Case(f"{OURS}.Restless", b"x", says("x"), drainReason="aborted"),
    "speaks first": Case(
        f"{OURS}.Greeting",
        b"x",
        says("hello HOST\nbye\n"),
        greets=says("hello HOST\n"),
        closes=True,
        counts=("greetings", 1),
    ),
    "writes and closes": Case(
        f"{OURS}.PouringLess",
        b"",
        pours,
        greets=pours,
        closes=True,
        idleReason="write_timeout",
        drainReason="client_closed",
    ),
    "finger": Case(
        "twisted.protocols.finger.Finger",
        b"moshez\r\n",
        says("Login: moshez\nNo such user\n"),
        closes=True,
    ),
    "web": Case(
        f"{OURS}.site",
        GET % b"/" + GET % b"/pour",
        browses,
    ),
}


class Served(Daemon):
    """
    The real daemon serves a protocol on all wires at once, with an access log and metrics. The
    protocol need not answer what L{Daemon} sends first.
    """

    def __init__(self, folder: Path, authority: Authority, protocol: str, *options: str) -> None:
        certificate, key = authority.issue("localhost")
        known = wires(folder, authority)
        self._wires = {name: known[name] for name in HOSTS}
        self._metrics = quietPort()
        self.log = folder / "daemon.log"
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(TWISTD, "-n", "--pidfile=", "kvserver", f"--protocol={protocol}"),
                    *(f"--listen={wire.listen}" for wire in self._wires.values()),
                    *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
                    *watched(self._metrics),
                    *options,
                ],
                cwd=folder,
                env=environment(PYTHONPATH=path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid
        try:
            self.listening = self._listening(len(self._wires))
            waitFor(lambda: get(self._metrics, "/readyz") == (200, "ready\n"), "it is ready")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def connect(self, wire: str) -> Stream:
        """
        Return a new client.
        """
        where = self.listening[list(self._wires).index(wire)]
        return self._wires[wire].connect(where)

    def listener(self, wire: str) -> str:
        """
        Return the name that the listener of a wire has in the access log.
        """
        return self._wires[wire].listen

    def records(self) -> list[dict[str, Any]]:
        """
        Return the records of the access log.
        """
        return records(self.log.parent)

    def metrics(self) -> dict[str, float]:
        """
        Return the metrics by name and labels.
        """
        return samples(self._metrics)

    def waitForRecords(self, count: int) -> list[dict[str, Any]]:
        """
        Wait until C{count} connections have ended.

        @return: The records of all of them.
        """
        waitFor(lambda: len(self.records()) >= count, f"{count} records")
        found = self.records()
        assert len(found) == count
        return found


Serve = Callable[..., Served]
"""
Starts a L{Served}, given a protocol and options.
"""


@pytest.fixture
def serve(tmp_path: Path, authority: Authority) -> Iterator[Serve]:
    """
    Start a daemon for one test.
    """
    with ExitStack() as stack:
        yield lambda *told: stack.enter_context(Served(tmp_path, authority, *told))


QUICK_CASES = ("upper-caser", "never idle", "web")

SOME_CASES = [
    pytest.param(case, id=name, marks=[] if name in QUICK_CASES else [pytest.mark.slow])
    for name, case in CASES.items()
]
"""
All protocols, of which most are tried by CI alone.
"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in QUICK_CASES else [pytest.mark.slow])
        for name in CASES
    ],
)
def served(
    request: pytest.FixtureRequest,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Case, Served]]:
    """
    Start a daemon for all tests of one protocol.
    """
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("served")
    options = ("--max-connections-per-source=2",)
    with Served(folder, authority, case.protocol, *options) as daemon:
        yield case, daemon


def assertSums(daemon: Served, case: Case, live: int = 0) -> None:
    """
    Assert that the metrics are the sums over the access log and C{live} clients, each of which has
    been answered.
    """
    logged, found = daemon.records(), daemon.metrics()
    assert found["kvserver_connections"] == live
    assert found["kvserver_connections_accepted_total"] == len(logged) + live
    for reason, count in Counter(record["reason"] for record in logged).items():
        assert found[f"kvserver_connections_ended_total {reason}"] == count
    received = sum(record["bytes_in"] for record in logged)
    assert found["kvserver_received_bytes_total"] == received + live * len(case.asks)
    if not live:
        sent = sum(record["bytes_out"] for record in logged)
        assert found["kvserver_sent_bytes_total"] == sent
    if case.counts:
        unit, work = case.counts
        total = sum(record[unit] for record in logged)
        assert found[f"kvserver_{unit}_total"] == total + live * work
    assert "kvserver_lines_total" not in found


@pytest.mark.parametrize("wire", HOSTS)
def test_answers(served: tuple[Case, Served], wire: str) -> None:
    """
    The protocol answers, and the connection ends in order. The record and the metrics have the
    bytes, the reason, and the work in the protocol's own unit, if it has one.
    """
    case, daemon = served
    before = len(daemon.records())
    tracebacks = daemon.logs("Traceback")
    with daemon.connect(wire) as client:
        client.sendall(case.asks)
        heard = case.hears(client, wire)
        if not case.closes:
            assertSums(daemon, case, live=1)
            client.shutdown(socket.SHUT_WR)
        case.ends(client)
    record = daemon.waitForRecords(before + 1)[-1]
    assert record["reason"] == case.reason
    assert (record["bytes_in"], record["bytes_out"]) == (len(case.asks), heard)
    assert record["listener"] == daemon.listener(wire)
    assert record["client"] == ("192.0.2.1:1024" if "proxy" in wire else None)
    assert record["tls"] == ("TLSv1.3" if "tls" in wire else None)
    assert "lines" not in record
    if case.counts:
        unit, work = case.counts
        assert record[unit] == work
    assertSums(daemon, case)
    faults = 1 if case.reason == "error" else 0
    assert daemon.logs("Traceback") - tracebacks == faults
    assert daemon.logs("failed, and is closed") == daemon.logs("Traceback")


def refused(daemon: Served, wire: str) -> None:
    """
    Assert that a new client is closed without a byte.
    """
    with contextlib.suppress(ConnectionError, ssl.SSLError), daemon.connect(wire) as client:
        assert client.recv(1) == b""


def test_limits(served: tuple[Case, Served]) -> None:
    """
    A source at its limit is refused more connections on every wire, and each has a record. The
    connections before that are answered afterwards; if one fails, it fails alone. The limit does
    not apply to UNIX sockets.
    """
    case, daemon = served
    before = len(daemon.records())
    with ExitStack() as stack:
        # When the handshake of TLS is over, the wire before it has reached its protocol, too.
        clients = {wire: stack.enter_context(daemon.connect(wire)) for wire in case.wires}
        if "unix" in case.wires:
            more = [stack.enter_context(daemon.connect("unix")) for _ in range(2)]
        else:
            more = []
        waitFor(
            lambda: daemon.metrics()["kvserver_connections"] == len(clients) + len(more),
            "all are connected",
        )
        crowded = [wire for wire in case.wires if wire != "unix"]
        for wire in crowded:
            refused(daemon, wire)
        for record, wire in zip(
            daemon.waitForRecords(before + len(crowded))[before:], crowded, strict=True
        ):
            assert (record["reason"], record["listener"]) == ("refused", daemon.listener(wire))
            assert (record["bytes_in"], record["bytes_out"]) == (0, 0)
            if case.counts:
                assert record[case.counts[0]] == 0
        left = [*clients.items(), *(("unix", client) for client in more)]
        for number, (wire, client) in enumerate(left):
            # The others have ended, perhaps by a fault; those that are left are connected.
            assert daemon.metrics()["kvserver_connections"] == len(left) - number
            client.sendall(case.asks)
            case.hears(client, wire)
            if not case.closes:
                client.shutdown(socket.SHUT_WR)
            case.ends(client)
            client.close()
            daemon.waitForRecords(before + len(crowded) + number + 1)
    assertSums(daemon, case)
    for source in "127.0.0.1", "192.0.2.1":
        assert daemon.logs(f"{source} has 2 connections: more are refused") == 1


@pytest.mark.parametrize("case", SOME_CASES)
def test_idle(serve: Serve, case: Case) -> None:
    """
    A silent client is closed after the idle time-out, not before. A client that does not read is
    reset after the write time-out.
    """
    daemon = serve(case.protocol, "--idle-timeout=1", "--write-timeout=1")
    with ExitStack() as stack:
        clients = {wire: stack.enter_context(daemon.connect(wire)) for wire in case.wires}
        if case.idleReason == "idle_timeout":
            for hears in case.greets, case.parts:
                for wire, client in clients.items():
                    hears(client, wire)
            for client in clients.values():
                assert client.recv(1) == b""
                client.close()
        found = daemon.waitForRecords(len(clients))
    assert {record["reason"] for record in found} == {case.idleReason}
    assert {record["listener"] for record in found} == set(map(daemon.listener, case.wires))
    assert min(record["seconds"] for record in found) >= 1
    if case.idleReason == "write_timeout":
        assert max(record["bytes_out"] for record in found) < FEW


@pytest.mark.parametrize("case", SOME_CASES)
def test_drain(serve: Serve, case: Case) -> None:
    """
    What has reached the machine before TERM is answered, also to clients that are not accepted yet.
    Then the connections are closed; the protocol may say goodbye. Connections that are never idle
    are reset at the deadline.
    """
    isAborted = case.drainReason == "aborted"
    daemon = serve(case.protocol, f"--drain-timeout={1 if isAborted else 15}")
    with ExitStack() as stack:
        silent, asking = (
            [(wire, stack.enter_context(daemon.connect(wire))) for wire in case.wires]
            for _ in range(2)
        )
        count = 2 * len(case.wires)
        waitFor(lambda: daemon.metrics()["kvserver_connections"] == count, "all are connected")
        daemon.process.send_signal(signal.SIGSTOP)
        waitFor(lambda: stopped(daemon), "the daemon is stopped")
        asking += [
            (wire, stack.enter_context(daemon.connect(wire)))
            for wire in case.wires
            # A handshake would need the daemon.
            if "tls" not in wire
        ]
        for _, client in asking:
            client.sendall(case.asks)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        heard = sum(case.hears(client, wire) for wire, client in asking)
        heard += sum(case.greets(client, wire) for wire, client in silent)
        for wire, client in asking + silent:
            if case.closes and (wire, client) in asking:
                case.ends(client)
            elif isAborted:
                assertReset(client, wire)
            else:
                heard += case.parts(client, wire)
                assert client.recv(1) == b""
            client.close()
        assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
    found = daemon.waitForRecords(len(asking) + len(silent))
    reasons = Counter({case.drainReason: len(silent)})
    reasons[case.reason if case.closes else case.drainReason] += len(asking)
    assert Counter(record["reason"] for record in found) == reasons
    assert sum(record["bytes_out"] for record in found) == heard
    if case.counts:
        unit, work = case.counts
        # One that speaks first does its work unasked.
        done = len(found) if unit == "greetings" else len(asking)
        assert sum(record[unit] for record in found) == done * work
    assert daemon.logs("still busy at the end of the drain") == int(isAborted)


def assertReset(client: Stream, wire: str) -> None:
    """
    Assert that the connection is reset. On a UNIX socket it is closed.
    """
    if wire == "unix":
        assert client.recv(1) == b""
    else:
        with pytest.raises(ConnectionResetError):
            client.recv(1)


# Some of them, for what they are made for.


def test_owesAnAnswer(serve: Serve) -> None:
    """
    The drain waits for a protocol that says it owes an answer, however long no byte moves.
    Meanwhile it closes a connection that owes none.
    """
    daemon = serve(f"{OURS}.Thinking")
    with ExitStack() as stack:
        owed = {wire: stack.enter_context(daemon.connect(wire)) for wire in HOSTS}
        for client in owed.values():
            client.sendall(b"???")
        idle = stack.enter_context(daemon.connect("tcp4"))
        idle.sendall(b"?!")
        assert receive(idle, 1) == b"!"
        daemon.process.send_signal(signal.SIGTERM)
        # It has been silent for less time than the others, and the drain looks at it last.
        assert receive(idle, 100) == b"goodbye\n"
        for client in owed.values():
            client.sendall(b"!")
            assert receive(client, 3) == b"!!!"
        for client in owed.values():
            assert receive(client, 100) == b"goodbye\n"
            client.close()
        assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
    assert {record["reason"] for record in daemon.records()} == {"drained"}
    assert daemon.logs("aborted") == 0


def test_speaksUnasked(serve: Serve) -> None:
    """
    A connection is not idle when only the protocol sends.
    """
    daemon = serve(f"{OURS}.Restless", "--idle-timeout=1", "--drain-timeout=1")
    with ExitStack() as stack:
        ticking = {wire: stack.enter_context(daemon.connect(wire)) for wire in HOSTS}
        for client in ticking.values():
            client.sendall(b"t")
        for client in ticking.values():
            assert receive(client, 51) == b"t" + b"tick\n" * 10
        # It connects last, and is closed alone.
        silent = stack.enter_context(daemon.connect("tcp4"))
        assert silent.recv(1) == b""
        (record,) = daemon.waitForRecords(1)
        assert record["reason"] == "idle_timeout"
        assert daemon.metrics()["kvserver_connections"] == len(ticking)
        for client in ticking.values():
            assert receive(client, 50) == b"tick\n" * 10


def test_begins(serve: Serve) -> None:
    """
    C{connectionMade} comes after the PROXY header and the TLS handshake, not before.
    """
    daemon = serve(f"{OURS}.Greeting")
    with ExitStack() as stack:
        for where in daemon.listening[1:4]:
            stack.enter_context(connect(int(where)))
        waitFor(lambda: daemon.metrics()["kvserver_connections"] == 3, "all are connected")
        for wire in HOSTS:
            client = stack.enter_context(daemon.connect(wire))
            assert says("hello HOST\n")(client, wire)
        assert daemon.metrics()["kvserver_connections"] == 8
        assert daemon.metrics()["kvserver_greetings_total"] == 5


def segments(client: Any) -> int:
    """
    Return the number of data segments that a TCP client has received: C{tcpi_data_segs_in}
    (linux/tcp.h).
    """
    raw: socket.socket = getattr(client, "raw", client)
    (count,) = struct.unpack_from(
        "I", raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232), 152
    )
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("served", ["upper-caser"], indirect=True)
def test_fewSegments(served: tuple[Case, Served]) -> None:
    """
    An answer that is written byte by byte is sent in two segments: the first byte at once, and then
    the rest.
    """
    _, daemon = served
    for wire in HOSTS:
        if wire == "unix":
            continue
        with daemon.connect(wire) as client:
            # With TLS the session tickets have arrived when this has.
            client.sendall(b"hello\n")
            assert receive(client, 6) == b"HELLO\n"
            counts = []
            for _ in range(5):
                before = segments(client)
                client.sendall(b"is it me you are looking for\n" * 10)
                assert receive(client, 290) == b"IS IT ME YOU ARE LOOKING FOR\n" * 10
                counts.append(segments(client) - before)
            # A busy machine may cut what it sends, but never join it.
            assert min(counts) <= 2


@pytest.mark.parametrize("name", ["Pouring", "PouringWhenAsked", "PouringUntilPaused"])
def test_pours(serve: Serve, name: str) -> None:
    """
    A client that reads slowly gets all that a protocol has written before it closed, be it 100 MiB.
    Written at once, the bytes take at most twice their size in memory, and only until they are
    sent. Written by a producer, they take next to nothing.
    """
    kind: type[Pouring] = getattr(protocols, name)
    expected = digest(poured(kind.size, kind.chunk))
    daemon = serve(f"{OURS}.{name}")
    idle = daemon.memory()
    for number, wire in enumerate(HOSTS, 1):
        with daemon.connect(wire) as client:
            # A close with something unread would be a reset, and destroy what is on its way.
            client.sendall(b"nobody reads this")

            def slowly(client: Stream = client) -> Iterator[bytes]:
                for _ in range(1000):
                    yield client.recv(100)
                yield from received(client)

            assert digest(slowly()) == expected
        *_, record = daemon.waitForRecords(number)
        assert (record["bytes_out"], record["reason"]) == (kind.size, "client_closed")
    assert daemon.metrics()["kvserver_sent_bytes_total"] == len(HOSTS) * kind.size
    # A bytearray of which half has been removed is copied.
    held = 2 * kind.size if kind is Pouring else 0
    assert daemon.peakMemory() - idle < held + (16 << 20)


# Known defects.


def test_pausesAtOnce(serve: Serve, authority: Authority) -> None:
    """
    A protocol that pauses the transport in C{connectionMade} gets nothing before it resumes it, and
    then gets all: also what the client has sent together with the end of the TLS handshake.
    """
    daemon = serve(f"{OURS}.Waiting")
    with daemon.connect("tcp4") as client:
        client.sendall(b"hello\n")
        assert receive(client, 6) == b"hello\n"
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with connect(int(daemon.listening[list(HOSTS).index("tls")])) as raw:
        for step in tls.do_handshake, lambda: tls.write(b"hello\n"), lambda: tls.read(100):
            while True:
                try:
                    came = step()
                    break
                except ssl.SSLWantReadError:
                    raw.sendall(outgoing.read())
                    incoming.write(raw.recv(1 << 16))
    assert came == b"hello\n"


@pytest.mark.parametrize("served", ["web"], indirect=True)
def test_webOnUnix(served: tuple[Case, Served]) -> None:
    """
    Twisted's HTTP server sets TCP_NODELAY on any transport that provides C{ITCPTransport}.
    """
    _, daemon = served
    with daemon.connect("unix") as client:
        client.sendall(GET % b"/")
        assert page(client)[1] == b"unix plain\n"


@pytest.mark.parametrize("served", ["web"], indirect=True)
def test_webKnowsTLS(served: tuple[Case, Served]) -> None:
    """
    Twisted's HTTP server knows that a request has come by TLS, and makes links that begin with
    C{https}.
    """
    _, daemon = served
    for wire in "tls", "proxy tls":
        with daemon.connect(wire) as client:
            client.sendall(GET % b"/")
            assert page(client)[1] == f"{HOSTS[wire]} secure\n".encode()
