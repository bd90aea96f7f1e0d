"""
C{kvserver.service} and C{kvserver.socket}, installed and set up as the README says.

These tests are run by C{python -m tests.systemd}, in a container of their own: they take over the
systemd that they find.
"""

import contextlib
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import pytest

from tests.support.clients import LINES, Sender, ask, connect, exchange, stick
from tests.support.daemon import PATIENCE, waitFor
from tests.support.kvcheck import at, started
from tests.support.readme import README, block
from tests.support.sabotage import SABOTEUR
from tests.support.wires import PROXY_V1, Authority, TLSClient

DROPINS = Path("/etc/systemd/system/kvserver.service.d")
PORT = 4040

START_LIMIT = 120.0
"""
The interval in which the unit's start limit is reached, in seconds.
"""


def shell(script: str, status: int = 0) -> str:
    """
    Run a script as it would be pasted.

    @return: What it prints.
    """
    done = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def propertyOf(name: str) -> str:
    """
    A property of the service.
    """
    return shell(f"systemctl show --value --property={name} kvserver.service").strip()


def journal(since: str) -> str:
    """
    What has been logged of the units since then.
    """
    return shell(
        f"journalctl --sync; journalctl --no-pager --unit='kvserver.*' --after-cursor='{since}'"
    )


@pytest.fixture
def cursor() -> str:
    """
    The end of the journal, as of now.
    """
    (found,) = re.findall("-- cursor: (.*)", shell("journalctl --lines=1 --show-cursor"))
    return str(found)


def settings(options: str, listen: str = "systemd:domain=INET6:index=0") -> None:
    """
    Write the file with the settings.
    """
    Path("/etc/kvserver").mkdir(exist_ok=True)
    Path("/etc/kvserver/kvserver.conf").write_text(
        f"KVSERVER_LISTEN=--listen={listen}\nKVSERVER_OPTIONS={options}\n"
    )


def dropIn(name: str, text: str) -> None:
    """
    Write a drop-in of the service.
    """
    DROPINS.mkdir(exist_ok=True)
    (DROPINS / name).write_text(f"[Service]\n{text}")
    shell("systemctl daemon-reload")


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """
    The two commands of the README.
    """
    # As root's is on many a system.
    shell("umask 077\n" + block("umask 022 && python3 -m venv /opt/kvserver"))
    shell("/opt/kvserver/bin/pip install --quiet '/srv/kvserver[metrics]'")
    shell(block("systemctl link"))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """
    Each test finds the service and the socket running, as they have been installed.
    """
    shell("systemctl start kvserver.socket kvserver.service")
    yield
    shell("rm -rf /etc/systemd/system/kvserver.*.d /etc/kvserver")
    # A test may have made systemd forget the socket.
    shell("systemctl unmask kvserver.socket")
    shell("systemctl enable /opt/kvserver/lib/systemd/system/kvserver.socket")
    shell("systemctl stop kvserver.socket kvserver.service; systemctl reset-failed 'kvserver*'")


def answered(port: int = PORT) -> None:
    """
    One client is answered.
    """
    with connect(port) as client:
        assert ask(client, b"hello\n") == b"hello\n"


def test_installed(cursor: str) -> None:
    """
    The README's commands leave a service that runs, is enabled, and has nothing to complain of, on
    a system that is read-only for it.
    """
    answered()
    with connect(PORT, "::1") as client:
        assert ask(client, b"hello\n") == b"hello\n"
    assert "network.target" in propertyOf("After")
    assert shell("systemctl is-enabled kvserver.service kvserver.socket") == "enabled\nenabled\n"
    shell("systemctl restart kvserver.service")
    logged = journal(cursor)
    assert logged.count("Accepting connections on port 4040") == 1
    assert not re.search("cache|warn|unable|fail|error|Traceback", logged, re.IGNORECASE)


def test_verify() -> None:
    """
    systemd has nothing to complain of either.
    """
    units = "/etc/systemd/system/kvserver.service /etc/systemd/system/kvserver.socket"
    assert shell(f"systemd-analyze verify --recursive-errors=no {units}") == ""


def exposure() -> float:
    """
    How exposed the service is, from 0 to 10.
    """
    printed = shell(
        "systemctl cat kvserver.service >/tmp/kvserver.service;"
        "systemd-analyze security --offline=true /tmp/kvserver.service"
    )
    return float(re.findall(r"Overall exposure level for kvserver.service: ([\d.]+)", printed)[0])


def test_exposure() -> None:
    """
    It is shut in.
    """
    assert exposure() <= 0.5


def test_status() -> None:
    """
    C{systemctl status} shows how many are connected, and how many lines have been served.
    """
    with connect(PORT) as one, connect(PORT) as two:
        assert ask(one, b"1\n2\n") == b"1\n2\n"
        assert ask(two, b"3\n") == b"3\n"
        waitFor(
            lambda: 'Status: "2 connections, 3 lines served"' in shell("systemctl status kvserver"),
            "the status",
        )


def test_restarts() -> None:
    """
    400 clients a second come, each with a line, while the service is restarted 10 times: all are
    answered.
    """
    with started(at(PORT), "--soak", "--rate", "400", "--connections", "8", "--churn", "1") as run:
        run.begin()
        for _ in range(10):
            shell("systemctl restart kvserver.service")
            # A moment under load.
            time.sleep(0.2)
        said = run.interrupt().said
    assert (said["result"], said["ends"], said["faults"]) == ("ok", [], [])
    assert said["lines_returned"] > 400


def test_kills() -> None:
    """
    400 clients come while the service is killed with -9 8 times: all are answered. Between a kill
    and the restart they wait.
    """
    killed = set()
    for number in range(400):
        if number % 50 == 25:
            killed.add(propertyOf("MainPID"))
            shell("systemctl kill --signal=KILL kvserver.service")
        answered()
    assert len(killed) == 8
    assert propertyOf("NRestarts") == "8"


def test_soakOverAKill() -> None:
    """
    What one kill costs: each connection that there was then, and a time without an echo that is not
    much longer than a start. Nobody is refused.
    """
    with started(at(PORT), "--soak", "--rate", "1000", "--connections", "10") as run:
        run.begin()
        waitFor(lambda: "10 connections" in propertyOf("StatusText"), "all are connected")
        shell("systemctl kill --signal=KILL kvserver.service")
        waitFor(lambda: "10 connections" in propertyOf("StatusText"), "all are connected again")
        said = run.interrupt().said
    print(said["ends"], said["gaps"], said["lines_sent"] - said["lines_returned"])
    assert len(said["ends"]) == 10
    assert {end["ending"] for end in said["ends"]} <= {"reset", "cut", "dropped"}
    assert said["faults"] == []
    gap = max(said["gaps"], key=itemgetter("duration"))
    assert gap["connections_lost"] == 10
    assert gap["duration"] < PATIENCE


def workers() -> list[str]:
    """
    The processes of the workers.
    """
    pid = propertyOf("MainPID")
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return children.read_text().split() if children.exists() else []


def test_workers(cursor: str) -> None:
    """
    Workers serve under the unit as it is shipped; a worker that is killed is started again, and so
    is all when the master is killed, or everything at once. Nobody who connects meanwhile is lost.
    """
    settings("--workers=4")
    shell("systemctl restart kvserver.service")
    answered()
    assert len(workers()) == 4
    first = workers()[0]
    shell(f"kill -KILL {first}")
    for _ in range(20):
        answered()
    waitFor(lambda: len(workers()) == 4 and first not in workers(), "a new worker")
    for whom in "main", "all":
        before = propertyOf("MainPID")
        shell(f"systemctl kill --kill-whom={whom} --signal=KILL kvserver.service")
        for _ in range(200):
            answered()
        assert propertyOf("MainPID") != before
        waitFor(lambda: len(workers()) == 4, "all workers")
    replaced = set(workers())
    shell("systemctl kill --kill-whom=main -s USR2 kvserver.service")
    waitFor(lambda: len(workers()) == 4 and not replaced & set(workers()), "new workers")
    answered()
    shell("systemctl restart kvserver.service")
    answered()
    assert "Traceback" not in journal(cursor)


def test_watchdog(cursor: str) -> None:
    """
    A daemon that hangs is killed and started again; a client who came meanwhile is answered.
    """
    before = propertyOf("MainPID")
    shell(f"kill -STOP {before}")
    with connect(PORT) as client:
        client.settimeout(60)
        assert ask(client, b"hello\n") == b"hello\n"
    assert propertyOf("MainPID") != before
    logged = journal(cursor)
    assert "Watchdog timeout" in logged
    # Where it hung.
    assert "Fatal Python error: Aborted" in logged


@pytest.mark.parametrize("how", ["shutdown", "close", "replace"])
def test_brokenSocket(how: str, cursor: str) -> None:
    """
    The listening socket is broken from inside: the supervisor heals it, before the watchdog has
    anything to do.
    """
    saboteur = "/run/kvserver-saboteur/socket"
    dropIn(
        "saboteur.conf",
        "RuntimeDirectory=kvserver-saboteur\n"
        f"Environment=PYTHONPATH={SABOTEUR} KVSERVER_SABOTEUR={saboteur}\n",
    )
    shell("systemctl restart kvserver.service")
    answered()
    pid = propertyOf("MainPID")
    with socket.socket(socket.AF_UNIX) as command:
        command.connect(saboteur)
        command.sendall(how.encode())
        assert command.recv(1) == b""
    waitFor(lambda: "died, and is restarted" in journal(cursor), "the restart of the listener")
    answered()
    assert propertyOf("MainPID") == pid


def test_reload(cursor: str) -> None:
    """
    A reload keeps every connection.
    """
    pid = propertyOf("MainPID")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(PORT)) for _ in range(20)]
        for _ in range(3):
            shell("systemctl reload kvserver.service")
            for client in clients:
                assert ask(client, b"hello\n") == b"hello\n"
    waitFor(lambda: journal(cursor).count("Received SIGHUP") == 3, "three reloads")
    waitFor(lambda: propertyOf("ActiveState") == "active", "the reload is over")
    assert propertyOf("MainPID") == pid


@pytest.mark.parametrize("run", range(5))
def test_stopInTheMiddle(run: int) -> None:
    """
    C{systemctl stop} in the middle of 200,000 lines: none is lost.
    """
    half = len(LINES) // 2
    with connect(PORT) as client:
        sender = Sender(client, [LINES[:half]], end=lambda: None)
        sender.join()
        shell("systemctl stop --no-block kvserver.service")
        waitFor(lambda: propertyOf("ActiveState") == "deactivating", "the stop has begun")
        assert exchange(client, [LINES[half:]]) == LINES
    waitFor(lambda: propertyOf("ActiveState") == "inactive", "the service has stopped")
    assert propertyOf("Result") == "success"


def test_longDrain() -> None:
    """
    A drain may take as long as it was told to, be it longer than systemd's own time-outs.
    """
    dropIn(
        "drain.conf",
        "TimeoutStopSec=2\nWatchdogSec=2\nEnvironment=KVSERVER_OPTIONS=--drain-timeout=6\n",
    )
    shell("systemctl restart kvserver.service")
    with connect(PORT) as client:
        stick(client)
        begin = time.monotonic()
        shell("systemctl stop kvserver.service")
        assert time.monotonic() - begin >= 6
    assert propertyOf("Result") == "success"


def test_portInUse(cursor: str) -> None:
    """
    If the port is in use a start fails at once, and the journal says why; with the socket of
    systemd, and without. When it is free again the service starts by itself.
    """
    shell("systemctl stop kvserver.socket kvserver.service")
    with socket.create_server(("::", PORT), family=socket.AF_INET6):
        shell("systemctl start kvserver.service", 1)
        assert "Address already in use" in journal(cursor)
        assert "systemd passed no sockets" in journal(cursor)
    waitFor(lambda: propertyOf("ActiveState") == "active", "the service runs")
    answered()
    shell(block("systemctl disable --now kvserver.socket"))
    shell("systemctl stop kvserver.service")
    with socket.create_server(("127.0.0.1", PORT)):
        shell("systemctl start kvserver.service", 1)
        assert "Cannot listen on port 4040: Address already in use" in journal(cursor)


def test_wrongOption(cursor: str) -> None:
    """
    A mistake in the options leaves the unit failed at once, without a restart. A client that comes
    then starts it again, but not for ever.
    """
    settings("--idle-timeout=x")
    shell("systemctl restart kvserver.service", 1)
    assert propertyOf("ActiveState") == "failed"
    assert propertyOf("ExecMainStatus") == "64"
    assert propertyOf("NRestarts") == "0"
    assert journal(cursor).count("kvserver: --idle-timeout: 'x' is not a number of seconds") == 1
    with connect(PORT) as client, contextlib.suppress(ConnectionResetError):
        client.settimeout(START_LIMIT)
        assert client.recv(1) == b""
    result = "systemctl show --value --property=Result kvserver.socket"
    assert shell(result) == "service-start-limit-hit\n"
    assert 1 < journal(cursor).count("kvserver: --idle-timeout: 'x'") <= 21
    # What the README says then.
    settings("--idle-timeout=60")
    shell("systemctl reset-failed 'kvserver.*' && systemctl start kvserver.socket kvserver.service")
    answered()


def test_startLimit(cursor: str) -> None:
    """
    A start that fails each time is tried again, but not for ever.
    """
    shell(block("systemctl disable --now kvserver.socket"))
    shell("systemctl stop kvserver.service")
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", PORT)):
        shell("systemctl start kvserver.service", 1)
        assert propertyOf("ActiveState") == "activating"
        assert propertyOf("ExecMainStatus") == "1"
        waitFor(
            lambda: "Start request repeated too quickly" in journal(cursor),
            "the limit",
            START_LIMIT,
        )
        print(f"the limit took {time.monotonic() - begin} s")
    assert propertyOf("ActiveState") == "failed"
    # systemd counts the starts before it as well.
    assert 15 < journal(cursor).count("Cannot listen on port 4040: Address already in use") <= 20
    shell("systemctl reset-failed 'kvserver.*' && systemctl start kvserver.service")
    answered()


def test_stopped() -> None:
    """
    The next client starts a service that was stopped, unless its socket was stopped, too.
    """
    shell("systemctl stop kvserver.service")
    answered()
    shell("systemctl stop kvserver.socket kvserver.service")
    with pytest.raises(ConnectionRefusedError):
        connect(PORT)


def test_shutIn() -> None:
    """
    The daemon has no privilege, no network, and a user of its own that does not outlive it.
    """
    status = Path(f"/proc/{propertyOf('MainPID')}/status").read_text()
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    (uid,) = re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    assert int(uid) >= 61184
    (interface,) = re.findall(
        r"^ *(\w+):",
        shell(f"nsenter --net --target={propertyOf('MainPID')} cat /proc/net/dev"),
        re.MULTILINE,
    )
    assert interface == "lo"
    shell("systemctl stop kvserver.socket kvserver.service")
    shell("getent passwd kvserver", 2)


def test_ownPort() -> None:
    """
    The README's drop-in: a port of its own, without the socket of systemd.
    """
    shell(block("systemctl disable --now kvserver.socket"))
    answered()
    assert shell("systemctl is-active kvserver.socket", 3) == "inactive\n"
    assert exposure() <= 1.5
    # Also when somebody pastes the rest of the README again.
    shell(f"{block('systemctl link').strip()} || true")
    shell("systemctl restart kvserver.service")
    answered()
    # For a port below 1024.
    settings("", "tcp:7")
    dropIn(
        "low.conf",
        "PrivateUsers=no\n"
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n",
    )
    shell("systemctl restart kvserver.service")
    answered(7)


def test_settingsForProxy() -> None:
    """
    The README's example of a file with settings.
    """
    shell(block("mkdir -p /etc/kvserver\n"))
    with connect(PORT) as client:
        client.sendall(PROXY_V1)
        assert ask(client, b"hello\n") == b"hello\n"


def test_settingsForTLS(tmp_path: Path, cursor: str) -> None:
    """
    The README's example of drop-ins, with files that only root can read. Nothing that the unit
    denies has to be granted for it.
    """
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    shell(
        f"install -D --mode=600 {certificate} /etc/kvserver/server.pem;"
        f"install -D --mode=600 {key} /etc/kvserver/server.key"
    )
    shell(block("mkdir -p /etc/kvserver /etc/systemd/system/kvserver.socket.d"))
    answered()
    with TLSClient(connect(4443), authority.client()) as client:
        assert ask(client, b"hello\n") == b"hello\n"
    assert propertyOf("MemoryDenyWriteExecute") == "yes"
    # A reload finds them as well.
    shell("systemctl reload kvserver.service")
    waitFor(lambda: "certificates have been loaded again" in journal(cursor), "the reload")
    with TLSClient(connect(4443), authority.client()) as client:
        assert ask(client, b"hello\n") == b"hello\n"


def get(page: str) -> str:
    """
    A page of the operations site.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:9100{page}", timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def test_recordsInTheJournal(cursor: str) -> None:
    """
    C{--access-log=-} writes to the journal.
    """
    settings("--access-log=-")
    shell("systemctl restart kvserver.service")
    answered()
    waitFor(lambda: '"reason": "client_closed"' in journal(cursor), "the record")


def test_settingsForOperation() -> None:
    """
    The README's example of an access log and metrics.
    """
    shell(block("mkdir -p /etc/systemd/system/kvserver.socket.d /etc/kvserver"))
    answered()
    log = Path("/var/log/kvserver/access.log")
    waitFor(lambda: '"reason": "client_closed"' in log.read_text(), "the record")
    assert get("/readyz") == "ready\n"
    assert get("/healthz") == "alive\n"
    # Each that the README has.
    body = get("/metrics")
    table = re.findall(r"^``(kvserver_\w+)``  ", README.read_text(), re.MULTILINE)
    process = (
        *("cpu_seconds_total", "resident_memory_bytes", "virtual_memory_bytes"),
        *("open_fds", "max_fds", "start_time_seconds"),
    )
    table = [name for name in table if not name.startswith("kvserver_worker")]
    for name in *table, *(f"process_{name}" for name in process):
        assert f"# TYPE {name}" in body
    started = float(re.findall(r"^process_start_time_seconds (\S+)$", body, re.MULTILINE)[0])
    assert abs(started - time.time()) < 60
    # A rotation.
    log.rename("/var/log/kvserver/access.log.1")
    shell("systemctl reload kvserver.service")
    waitFor(log.exists, "the new file")
    answered()
    waitFor(lambda: '"id": 2' in log.read_text(), "the record")
