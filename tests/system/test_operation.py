"""
What an operator sees of the real daemon: access log, metrics, health.
"""

import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.clients import (
    LINES,
    Sender,
    ask,
    connect,
    exchange,
    get,
    program,
    reset,
    slow,
    stick,
)
from tests.support.daemon import PATIENCE, TWIST, Daemon, quietPort, waitFor
from tests.support.documents import MONITORING, block
from tests.support.sabotage import Sabotaged
from tests.support.wires import PROXY_V1, Authority, TLSClient


def records(folder: Path) -> list[dict[str, Any]]:
    """
    What the access log has.
    """
    return [json.loads(line) for line in (folder / "access.log").read_text().splitlines()]


def samples(port: int) -> dict[str, float]:
    """
    The metrics, by name and labels.
    """
    _, body = get(port, "/metrics")
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def watched(port: int) -> tuple[str, ...]:
    """
    The options for an access log, and metrics at that port.
    """
    return ("--access-log=access.log", f"--metrics=tcp:{port}:interface=127.0.0.1")


def hello(client: Any) -> None:
    """
    One line.
    """
    assert ask(client, b"hello\n") == b"hello\n"


# One act for each way that a connection may end.


class Scene:
    """
    Where a connection ends.

    @ivar daemon: The daemon.

    @ivar port: Where it listens for the wire that this is about.
    """

    def __init__(self, daemon: Daemon, metrics: int, wire: str, context: ssl.SSLContext) -> None:
        """
        @param metrics: Its other port.

        @param wire: What stands before C{tcp:}.

        @param context: For its TLS clients.
        """
        self.daemon = daemon
        self.port = int(daemon.listening[WIRES.index(wire)])
        self._metrics = metrics
        self._context = context if wire == "tls:" else None
        self._folder = daemon.log.parent
        # A Daemon begins with a connection.
        waitFor(lambda: records(self._folder), "the first record")
        self._before = records(self._folder)
        self._errors = self._logged()
        self._counted = samples(metrics)

    def _logged(self) -> int:
        return self.daemon.logs("#error]") + self.daemon.logs("#critical]")

    def another(self) -> Any:
        """
        One more client.
        """
        client = connect(self.port)
        return TLSClient(client, self._context) if self._context else client

    def records(self) -> list[dict[str, Any]]:
        """
        What the access log has got since then.
        """
        return records(self._folder)[len(self._before) :]

    def counted(self, reason: str) -> float:
        """
        How many connections have ended so since then, as the metrics say.
        """
        name = f"kvserver_connections_ended_total {reason}"
        return samples(self._metrics)[name] - self._counted.get(name, 0)

    def errors(self) -> int:
        """
        How many errors have been logged since then.
        """
        return self._logged() - self._errors


def closes(scene: Scene) -> None:
    """
    The client closes.
    """
    with scene.another() as client:
        assert exchange(client, [b"1\n2\n3"]) == b"1\n2\n3"


def leaves(scene: Scene) -> None:
    """
    The client is gone when it has got its echo; with TLS, without a word.
    """
    with scene.another() as client:
        hello(client)


def looks(scene: Scene) -> None:
    """
    The client connects, as a health check does.
    """
    connect(scene.port).close()


def resets(scene: Scene) -> None:
    """
    The client resets.
    """
    client = scene.another()
    hello(client)
    reset(client)


def idles(scene: Scene) -> None:
    """
    The client does nothing.
    """
    with scene.another() as client:
        assert client.recv(1) == b""


def stuck(client: Any) -> Any:
    """
    Send until nothing more is taken, and read nothing.
    """
    sender = Sender(client, [LINES] * 100, end=lambda: None)
    waitFor(sender.isStuck, "a client that is stuck")
    return client


def stalls(scene: Scene) -> None:
    """
    The client does not read.
    """
    with stuck(scene.another()):
        waitFor(lambda: len(scene.records()) == 1, "the end")


def rests(scene: Scene) -> None:
    """
    The client is at rest when the daemon stops.
    """
    with scene.another() as client:
        hello(client)
        scene.daemon.process.send_signal(signal.SIGTERM)
        assert client.recv(1) == b""
    scene.daemon.stop()


def stallsAtTheEnd(scene: Scene) -> None:
    """
    The client does not read when the daemon stops.
    """
    with stuck(scene.another()):
        scene.daemon.stop()


def crowds(scene: Scene) -> None:
    """
    The client has one connection too many.
    """
    with connect(scene.port) as one:
        hello(one)
        with connect(scene.port) as two, contextlib.suppress(ConnectionResetError):
            assert two.recv(1) == b""


def babble(port: int) -> None:
    """
    Say what is neither TLS nor a PROXY header.
    """
    with connect(port) as client:
        client.sendall(b"hello\n" * 10)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(100):
                pass


def babbles(scene: Scene) -> None:
    """
    The client says what is neither TLS nor a PROXY header.
    """
    babble(scene.port)


def stutters(scene: Scene) -> None:
    """
    The client says the beginning of a TLS handshake, and no more.
    """
    with connect(scene.port) as client:
        client.sendall(b"\x16\x03\x01")


def garbles(scene: Scene) -> None:
    """
    The client sends a TLS record that is none.
    """
    with scene.another() as client:
        hello(client)
        client.raw.sendall(b"hello\n" * 10)
        with contextlib.suppress(OSError):
            client.recv(1)


def breaks(scene: Scene) -> None:
    """
    The client meets a fault of the daemon.
    """
    assert isinstance(scene.daemon, Sabotaged)
    scene.daemon.sabotage("raise")
    with connect(scene.port) as client:
        client.sendall(b"raise\n")
        assert client.recv(1) == b""


WIRES = ("", "tls:", "proxy:")
"""
What the daemon listens on, before C{tcp:0}.
"""


@contextlib.contextmanager
def staged(folder: Path, authority: Authority, *options: str) -> Iterator[Callable[[str], Scene]]:
    """
    A daemon for scenes on each wire.
    """
    certificate, key = authority.issue("localhost")
    options += (f"--tls-certificate={certificate}", f"--tls-private-key={key}")
    for wire in WIRES:
        options += ("--listen", f"{wire}tcp:0")
    metrics = quietPort()
    with Sabotaged(folder, *options, *watched(metrics)) as daemon:
        yield lambda wire: Scene(daemon, metrics, wire, authority.client())


@pytest.fixture(scope="module")
def stage(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Scene]]:
    """
    One daemon for all scenes that need no options, and don't end it.
    """
    with staged(tmp_path_factory.mktemp("stage"), authority) as stage:
        yield stage


def play(scene: Scene, reason: str, wire: str, act: Callable[[Scene], None]) -> None:
    """
    A connection ends.
    """
    act(scene)
    waitFor(scene.records, "the record")
    record = scene.records()[0]
    assert record["reason"] == reason
    assert record["listener"] == f"{wire}tcp:0"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", record["peer"])
    assert (record["client"], record["subject"]) == (None, None)
    assert 0 <= record["seconds"] < PATIENCE
    if act is closes:
        assert (record["lines"], record["bytes_in"], record["bytes_out"]) == (2, 5, 5)
    elif act in (stalls, stallsAtTheEnd):
        assert 0 < record["bytes_out"] < record["bytes_in"]
    if reason not in ("drained", "aborted"):
        assert scene.counted(reason) == 1
    if reason == "error":
        assert scene.daemon.logs("ZeroDivisionError: sabotage") == scene.errors() == 1
    else:
        assert scene.errors() == 0


@pytest.mark.parametrize(
    ("reason", "wire", "act"),
    [
        ("client_closed", "", closes),
        ("client_closed", "", leaves),
        ("client_closed", "", looks),
        ("client_closed", "tls:", closes),
        ("client_closed", "tls:", leaves),
        ("client_closed", "tls:", looks),
        ("client_closed", "proxy:", looks),
        ("reset", "", resets),
        ("reset", "tls:", resets),
        ("reset", "tls:", garbles),
        ("handshake_failed", "tls:", babbles),
        ("handshake_failed", "tls:", stutters),
        ("proxy_header", "proxy:", babbles),
        ("error", "", breaks),
    ],
)
def test_ending(
    stage: Callable[[str], Scene], reason: str, wire: str, act: Callable[[Scene], None]
) -> None:
    """
    Each way to end has its reason, and its record.
    """
    play(stage(wire), reason, wire, act)


@pytest.mark.parametrize(
    ("reason", "wire", "option", "act"),
    [
        ("idle_timeout", "", "--idle-timeout=1", idles),
        slow("idle_timeout", "tls:", "--idle-timeout=1", idles),
        ("write_timeout", "", "--write-timeout=1", stalls),
        slow("write_timeout", "tls:", "--write-timeout=1", stalls),
        ("drained", "", "--drain-timeout=15", rests),
        slow("drained", "tls:", "--drain-timeout=15", rests),
        ("aborted", "", "--drain-timeout=1", stallsAtTheEnd),
        slow("aborted", "tls:", "--drain-timeout=1", stallsAtTheEnd),
        ("refused", "", "--max-connections-per-source=1", crowds),
    ],
)
def test_endingByOption(
    tmp_path: Path,
    authority: Authority,
    reason: str,
    wire: str,
    option: str,
    act: Callable[[Scene], None],
) -> None:
    """
    So has each that needs an option, or ends the daemon.
    """
    with staged(tmp_path, authority, option) as stage:
        play(stage(wire), reason, wire, act)


def test_sums(tmp_path: Path, authority: Authority) -> None:
    """
    The sums of the access log are the metrics, but for what had not reached those who reset; who
    came by PROXY and TLS is named.
    """
    certificate, key = authority.issue("localhost")
    metrics = quietPort()
    options = (
        *("--listen", "tcp:0", "--listen", "proxy:tls:tcp:0", *watched(metrics)),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
        f"--tls-client-ca={authority.certificate}",
    )
    with Daemon(tmp_path, *options) as daemon:
        for _ in range(20):
            with connect(daemon.port) as client:
                assert exchange(client, [b"1\n2\n3"]) == b"1\n2\n3"
            client = connect(daemon.port)
            hello(client)
            reset(client)
        with connect(daemon.port) as client:
            assert exchange(client, [LINES]) == LINES
        raw = connect(int(daemon.listening[1]))
        raw.sendall(PROXY_V1)
        with TLSClient(raw, authority.client(authority.issue("client"))) as secured:
            hello(secured)
        stalled = connect(daemon.port)
        # More than the client's kernel takes for one that does not read.
        enough = len(LINES) + (1 << 20)

        def hasEnough() -> bool:
            stick(stalled)
            return samples(metrics)["kvserver_sent_bytes_total"] > enough

        waitFor(hasEnough, "an echo that is not acknowledged")
        reset(stalled)
        waitFor(lambda: len(records(tmp_path)) == 44, "all records")
        found, logged = samples(metrics), records(tmp_path)
        assert found["kvserver_connections"] == 0
        assert found["kvserver_connections_accepted_total"] == len(logged)
        assert {record["id"] for record in logged} == set(range(1, len(logged) + 1))
        assert found["kvserver_connection_duration_seconds_count"] == len(logged)
        for name, field in ("lines", "lines"), ("received_bytes", "bytes_in"):
            assert found[f"kvserver_{name}_total"] == sum(record[field] for record in logged)
        # What the clients have counted; the last one has not read its own. Of the one line of those
        # who reset the acknowledgement may have been on its way.
        closed = [record for record in logged if record["reason"] == "client_closed"]
        assert sum(record["bytes_out"] for record in closed) == 20 * 5 + len(LINES) + 6 + 6
        cut = [record for record in logged if record["reason"] == "reset"]
        assert all(record["bytes_out"] in (0, 6) for record in cut[:-1])
        stuck = cut[-1]
        assert 0 < stuck["bytes_out"] < stuck["bytes_in"]
        sent = found["kvserver_sent_bytes_total"]
        assert sent > sum(record["bytes_out"] for record in logged)
        assert sent <= found["kvserver_received_bytes_total"]
        reasons = Counter(record["reason"] for record in logged)
        assert reasons["reset"] >= 21
        for reason, count in reasons.items():
            assert found[f"kvserver_connections_ended_total {reason}"] == count
        (secure,) = (record for record in logged if record["tls"])
        assert (secure["client"], secure["tls"]) == ("192.0.2.1:1024", "TLSv1.3")
        assert secure["subject"] == "CN=client"
        assert (secure["lines"], secure["bytes_in"], secure["bytes_out"]) == (1, 6, 6)


def load(daemon: Daemon, rounds: int) -> None:
    """
    Clients that lose nothing.
    """
    text = LINES[:10_000]
    for _ in range(rounds):
        with connect(daemon.port) as client:
            assert exchange(client, [text]) == text


def test_lostLog(tmp_path: Path) -> None:
    """
    An access log whose folder is removed under load harms nobody, and is one error line; after HUP,
    when the folder is there again, records are written.
    """
    logs = tmp_path / "logs"
    logs.mkdir()
    with Daemon(tmp_path, "--port=0", "--access-log=logs/access.log") as daemon:
        load(daemon, 20)
        shutil.rmtree(logs)
        load(daemon, 20)
        assert daemon.logs("[kvserver.accesslog#error]") == 1
        assert daemon.logs("can't be written: No such file or directory") == 1
        logs.mkdir()
        daemon.process.send_signal(signal.SIGHUP)
        daemon.waitForLog("has been opened again")
        load(daemon, 20)
        waitFor(lambda: len(records(logs)) >= 20, "new records")
        assert "Traceback" not in daemon.log.read_text()


def test_fullDisk(tmp_path: Path) -> None:
    """
    A full disk harms nobody, and is one error line.
    """
    with Daemon(tmp_path, "--port=0", "--access-log=/dev/full") as daemon:
        load(daemon, 20)
        assert daemon.logs("[kvserver.accesslog#error]") == 1
        assert daemon.logs("can't be written: No space left on device") == 1


def test_readyWhileBroken(tmp_path: Path) -> None:
    """
    While a listening socket is broken we are not ready, and afterwards we are.
    """
    metrics = quietPort()
    with Sabotaged(tmp_path, "--port=0", *watched(metrics)) as daemon:
        assert get(metrics, "/readyz") == (200, "ready\n")
        # The listener may find out before we ask; not each time.
        for restarts in range(1, 4):
            daemon.sabotage("close")
            answer = get(metrics, "/readyz")
            daemon.waitForLog("died, and is restarted", restarts)
            assert samples(metrics)["kvserver_listener_restarts_total tcp:0"] == restarts
            assert get(metrics, "/readyz") == (200, "ready\n")
            if answer == (503, "not listening: tcp:0\n"):
                return
    raise AssertionError(answer)


def test_readyWhileDraining(tmp_path: Path) -> None:
    """
    While the daemon drains it answers: it is alive, it is not ready, it drains.
    """
    metrics = quietPort()
    with Daemon(tmp_path, "--port=0", *watched(metrics)) as daemon, connect(daemon.port) as client:
        stick(client)
        daemon.process.send_signal(signal.SIGTERM)
        waitFor(lambda: get(metrics, "/readyz") == (503, "draining\n"), "draining")
        assert get(metrics, "/healthz") == (200, "alive\n")
        assert samples(metrics)["kvserver_draining"] == 1
        assert samples(metrics)["kvserver_connections"] == 1


def test_jsonLog(tmp_path: Path) -> None:
    """
    C{twist --log-format=json} logs JSON, with the level and the fields of each event, and with
    --log-level=debug also the life of each connection.
    """
    command = (TWIST, "--log-format=json", "--log-level=debug")
    port = quietPort()
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "kvserver", f"--port={port}", "--access-log=-"], stdout=file, stderr=file
        )
    try:
        waitFor(lambda: "Accepting" in log.read_text(), "it listens")
        with connect(port) as client:
            assert ask(client, b"secret\n") == b"secret\n"
        waitFor(lambda: "client_closed" in log.read_text(), "the end")
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert "secret" not in log.read_text()
    # Each after a record separator (RFC 7464).
    events = [json.loads(event) for event in log.read_text().split("\x1e")[1:]]
    by = {event["log_format"]: event for event in events if event.get("log_format")}
    assert by["Accepting connections on {address}{layers}"]["address"] == f"port {port}"
    assert by["Accepting connections on {address}{layers}"]["port"] == port
    begun = by["Connection {number} from {peer} on {listener}"]
    assert begun["log_level"]["name"] == "debug"
    assert (begun["number"], begun["listener"]) == (1, f"tcp:{port}")
    assert by["{record}"]["record"]["lines"] == 1


def test_repeatedWarnings(tmp_path: Path) -> None:
    """
    What many connections of one source bring about is one warning.
    """
    with Daemon(tmp_path, "--listen", "tcp:0", "--listen", "proxy:tcp:0") as daemon:
        for _ in range(20):
            babble(int(daemon.listening[1]))
        assert daemon.logs("#warn]") == 1
        assert daemon.logs("hello") == 0


class TestCannotStart:
    """
    What is wrong is said in one line.
    """

    def test_metricsPortInUse(self, tmp_path: Path) -> None:
        """
        The port of the metrics.
        """
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(AssertionError):
                Daemon(tmp_path, "--port=0", f"--metrics=tcp:{port}:interface=127.0.0.1")
        log = (tmp_path / "daemon.log").read_text()
        line = f"Cannot listen on 127.0.0.1 port {port}: Address already in use"
        assert log.count(line) == 1
        assert "Traceback" not in log


# Prometheus.


def test_promtool(tmp_path: Path, authority: Authority) -> None:
    """
    promtool has nothing to say against the metrics, nor against the manual's alerts and scrapes.
    The manual has all metrics, and no other. Alerts and dashboard name only metrics that exist.
    """
    promtool = program("promtool")
    program("curl")
    metrics = quietPort()
    certificate, key = authority.issue("localhost")
    with Daemon(
        tmp_path,
        *("--listen", "tcp:0", "--listen", "tls:tcp:0", "--workers=1", *watched(metrics)),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
    ):
        _, body = get(metrics, "/metrics")
        asking = block("curl -sf").replace("9464", str(metrics))
        counting = block("grep -o")
        waitFor(lambda: "client_closed" in (tmp_path / "access.log").read_text(), "a record")
        for command, expected in (asking, "ready\n"), (counting, '1 "reason": "client_closed"\n'):
            said = subprocess.check_output(["sh", "-ec", command], cwd=tmp_path, text=True)
            assert said.lstrip() == expected
    done = subprocess.run(
        [promtool, "check", "metrics"], input=body, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    families = set(re.findall(r"^# TYPE (kvserver_\w+)", body, re.MULTILINE))
    table = re.findall(r"^``(kvserver_\w+)``  ", MONITORING.read_text(), re.MULTILINE)
    assert sorted(table) == sorted(families)
    hosts, rules = tmp_path / "kvserver.hosts.yml", tmp_path / "kvserver.rules.yml"
    rules.write_text(block("groups:"))
    folder = "/etc/prometheus"
    command = block("seq -f").replace(folder, str(tmp_path))
    subprocess.run(["sh", "-ec", command], check=True)
    assert len(hosts.read_text().splitlines()) == 20
    config = tmp_path / "prometheus.yml"
    config.write_text(block("rule_files:").replace(folder, str(tmp_path)))
    done = subprocess.run(
        [promtool, "check", "config", str(config)], capture_output=True, text=True, check=True
    )
    assert "WARNING" not in done.stdout + done.stderr
    names = set(re.findall(r"^(\w+)[ {]", body, re.MULTILINE))
    dashboard = json.loads((MONITORING.parent / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += re.findall(r"expr: (.*)", rules.read_text())
    assert len(asked) > 20
    # kvserver_echo is the name of a job.
    used = set(re.findall(r"\b(?:kvserver|process)_\w+", " ".join(asked))) - {"kvserver_echo"}
    assert used <= names
    for rule in rules.read_text().split("- alert:")[1:]:
        assert re.search(r"labels: \{severity: (critical|warning)\}", rule)


@contextlib.contextmanager
def started(folder: Path, port: int, *command: str) -> Iterator[None]:
    """
    A program that answers HTTP at a port.
    """
    with (folder / "program.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

    def ready() -> bool:
        assert process.poll() is None, (folder / "program.log").read_text()
        with contextlib.suppress(OSError):
            return get(port, "/-/healthy")[0] < 500
        return False

    try:
        waitFor(ready, command[0])
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_prometheus(tmp_path: Path) -> None:
    """
    A real Prometheus scrapes the daemon.
    """
    prometheus = program("prometheus")
    metrics = quietPort()
    with Daemon(tmp_path, "--port=0", *watched(metrics)) as daemon:
        # Two that are free at the same time.
        port = quietPort()
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s}\n"
            "scrape_configs:\n"
            "- job_name: kvserver\n"
            f"  static_configs: [targets: ['127.0.0.1:{metrics}']]\n"
        )
        command = (
            *(prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
            f"--web.listen-address=127.0.0.1:{port}",
        )
        with connect(daemon.port), started(tmp_path, port, *command):

            def connections() -> bool:
                status, body = get(port, "/api/v1/query?query=kvserver_connections")
                # At first it is not ready.
                return status == 200 and [
                    r["value"][1] for r in json.loads(body)["data"]["result"]
                ] == ["1"]

            waitFor(connections, "a sample")


def test_blackboxExporter(tmp_path: Path) -> None:
    """
    The manual's configuration of blackbox_exporter probes the echo from end to end.
    """
    exporter = program("prometheus-blackbox-exporter", "blackbox_exporter")
    (tmp_path / "blackbox.yml").write_text(block("modules:"))
    with Daemon(tmp_path) as daemon:
        port = quietPort()
        where = f"--web.listen-address=127.0.0.1:{port}"
        with started(tmp_path, port, exporter, "--config.file=blackbox.yml", where):
            probe = f"/probe?module=kvserver_echo&target=127.0.0.1:{daemon.port}"
            assert "\nprobe_success 1\n" in get(port, probe)[1]
            daemon.stop()
            assert "\nprobe_success 0\n" in get(port, probe)[1]
