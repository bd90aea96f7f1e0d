"""
The units, installed and set up as C{kvserver/manual/systemd.rst} says.

These tests are run by C{python -m tests.systemd}, in a container of their own: they take over the
systemd that they find.
"""

import contextlib
import json
import os
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import pytest

from tests.support.clients import LINES, Sender, ask, connect, exchange, stick
from tests.support.daemon import PATIENCE, waitFor
from tests.support.documents import MONITORING, SYSTEMD, block, paste
from tests.support.kvcheck import at, started
from tests.support.sabotage import SABOTEUR
from tests.support.wires import PROXY_V1, Authority, TLSClient

DROPINS = Path("/etc/systemd/system/kvserver.service.d")
PORT = 4040
TLS_PORT = 4443
PROXY_PORT = 4041

INSTALL = "umask 022 && new="
ENABLE = "mkdir -p /etc/kvserver &&"
OBSERVED = "cat >/etc/kvserver/tls.conf"
PROXY = "cat >/etc/kvserver/proxy.conf"
OPTIONS = "cat >/etc/kvserver/kvserver.conf <<'END'\nKVSERVER_OPTIONS=--max"
WORKERS = "echo KVSERVER_WORKERS="
OWN_PORT = "echo KVSERVER_LISTEN="
"""
How blocks of the chapter begin: the two of the installation, and the settings.
"""

UNITS = "/opt/kvserver/lib/systemd/system"

START_LIMIT = 120.0
"""
The interval in which the unit's start limit is reached, in seconds.
"""


def shell(script: str, status: int = 0) -> str:
    """
    Run a script as it would be pasted.

    @return: What it prints.
    """
    return paste(script, status=status)


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
        f"journalctl --sync; journalctl --no-pager --unit='kvserver*' --after-cursor='{since}'"
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
    Write the file with the settings that the unit has always read, as it was always written.
    """
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


def traces() -> str:
    """
    Whatever has the name of the daemon, where an installation may leave something.
    """
    return shell(
        "find /etc /opt /run /usr/local /var/log /var/lib -xdev -name '*kvserver*'"
        " -not -path '/run/systemd/*' -not -name 'tests-of-*' | sort"
    )


@pytest.fixture(scope="module", autouse=True)
def before() -> str:
    """
    Install it, with the two blocks of the chapter.

    @return: The traces before that.
    """
    found = traces()
    # As root's is on many a system.
    shell("umask 077\n" + block(INSTALL))
    shell(block(ENABLE))
    return found


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """
    Each test finds the service and the socket running, as they have been installed.
    """
    shell("systemctl start kvserver.socket kvserver.service")
    yield
    # The last test uninstalls it.
    if Path(UNITS).exists():
        removeSettings()


def removeSettings() -> None:
    """
    Stop it, and leave it as it has been installed.
    """
    shell("systemctl stop 'kvserver*'; systemctl reset-failed 'kvserver*'")
    shell(
        "cd /etc/systemd/system && rm -rf kvserver*.d {,*.wants/}kvserver-* /etc/kvserver/*"
        " /etc/logrotate.d/kvserver /var/log/private/kvserver/*"
    )
    # A test may have made systemd forget the socket.
    shell("systemctl unmask kvserver.socket")
    shell(f"systemctl enable {UNITS}/kvserver.socket && systemctl daemon-reload")


def answered(port: int = PORT) -> None:
    """
    One client is answered.
    """
    with connect(port) as client:
        assert ask(client, b"hello\n") == b"hello\n"


def test_installed(cursor: str) -> None:
    """
    The chapter's commands leave a service that runs, is enabled, and has nothing to complain of, on
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
    shell(f"systemctl enable {UNITS}/kvserver-*.socket")
    units = "/etc/systemd/system/kvserver*.{service,socket}"
    assert len(shell(f"ls {units}").split()) == 5
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
        killed = propertyOf("MainPID")
        shell("systemctl kill --signal=KILL kvserver.service")
        # Until then the status is that of the one that was killed.
        waitFor(lambda: propertyOf("MainPID") not in ("0", killed), "it is started again")
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
    shell(block("systemctl kill --kill-whom=main -s USR2"))
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
    shell(block(OWN_PORT))
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
    # What the chapter says then.
    settings("--idle-timeout=60")
    shell(block("systemctl reset-failed"))
    answered()


def test_startLimit(cursor: str) -> None:
    """
    A start that fails each time is tried again, but not for ever.
    """
    shell(block(OWN_PORT))
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
    shell(block("systemctl reset-failed"))
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
    A port of its own, without the socket of systemd; and the way back.
    """
    shell(block(OWN_PORT))
    answered()
    assert shell("systemctl is-active kvserver.socket", 3) == "inactive\n"
    assert exposure() <= 1.5
    # Also when somebody pastes the installation again.
    shell(f"{block(ENABLE).strip()} || true")
    shell("systemctl restart kvserver.service")
    answered()
    # For a port below 1024.
    Path("/etc/kvserver/port.conf").write_text("KVSERVER_LISTEN=--listen=tcp:7\n")
    dropIn(
        "low.conf",
        "PrivateUsers=no\n"
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n",
    )
    shell("systemctl restart kvserver.service")
    answered(7)
    shell(block("rm /etc/kvserver/port.conf"))
    assert shell("systemctl is-active kvserver.socket") == "active\n"
    answered()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """
    What has issued the certificate in /etc/kvserver, which only root can read.
    """
    issuer = Authority(tmp_path)
    certificate, key = issuer.issue("localhost")
    shell(
        f"install --mode=600 {certificate} /etc/kvserver/server.pem;"
        f"install --mode=600 {key} /etc/kvserver/server.key"
    )
    return issuer


def test_settingsOfBefore(authority: Authority) -> None:
    """
    A file with both variables, and a socket unit that has two ports, work as they did before there
    was a file and a socket unit for each topic.
    """
    credentials = "/run/credentials/kvserver.service"
    Path("/etc/kvserver/kvserver.conf").write_text(
        "KVSERVER_LISTEN=--listen=systemd:index=0 --listen=tls:systemd:index=1\n"
        f"KVSERVER_OPTIONS=--tls-certificate={credentials}/server.pem"
        f" --tls-private-key={credentials}/server.key\n"
    )
    dropIn(
        "tls.conf",
        "LoadCredential=server.pem:/etc/kvserver/server.pem\n"
        "LoadCredential=server.key:/etc/kvserver/server.key\n",
    )
    shell(
        "mkdir -p /etc/systemd/system/kvserver.socket.d && cd /etc/systemd/system/kvserver.socket.d"
        " && printf '[Socket]\\nListenStream=4443\\n' >tls.conf && systemctl daemon-reload"
        " && systemctl stop kvserver.socket kvserver.service && systemctl start kvserver.service"
    )
    answered()
    with TLSClient(connect(TLS_PORT), authority.client()) as client:
        assert ask(client, b"hello\n") == b"hello\n"


def parts() -> list[str]:
    """
    The settings of the chapter, each as it would be pasted: its own file, and the last line.
    """
    tls, log, metrics, apply = block(OBSERVED).split("\n\n")
    alone = [f"{part}\n{apply}" for part in (tls, log, metrics)]
    return [*alone, block(PROXY), block(OPTIONS), block(WORKERS)]


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_settingsCombined(order: str, authority: Authority, cursor: str) -> None:
    """
    The settings can be pasted in any order, and do not undo each other; backwards they follow a
    port without a socket unit.
    """
    pasted = parts() if order == "forwards" else [block(OWN_PORT), *reversed(parts())]
    for part in pasted:
        shell(part)
    everythingServes(authority, TLS_PORT)
    assert exposure() <= (0.5 if order == "forwards" else 1.5)
    pid = propertyOf("MainPID")
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    for option in b"--max-connections-per-source=100", b"--drain-timeout=20":
        assert option in arguments
    # Once more, all at once, and TLS at another port.
    shell("\n".join([block(OBSERVED), *pasted]))
    shell(block("mkdir -p /etc/systemd/system/kvserver-tls.socket.d"))
    everythingServes(authority, 443)
    shell(block("rm /etc/kvserver/tls.conf"))
    answered()
    with pytest.raises(ConnectionRefusedError):
        connect(443)
    logged = journal(cursor)
    assert not re.search("warn|unable|fail|error|Traceback|unset", logged, re.IGNORECASE)


def everythingServes(authority: Authority, tlsPort: int) -> None:
    """
    Every port is served as the settings say, by all workers, and the access log has it.
    """
    log = Path("/var/log/kvserver/access.log")
    log.write_bytes(b"")
    answered()
    with TLSClient(connect(tlsPort), authority.client()) as client:
        assert ask(client, b"hello\n") == b"hello\n"
    with connect(PROXY_PORT) as client:
        client.sendall(PROXY_V1)
        assert ask(client, b"hello\n") == b"hello\n"
    assert get("/readyz") == "ready\n"
    count = len(os.sched_getaffinity(0))
    assert f"kvserver_workers {count}.0" in get("/metrics")
    assert len(workers()) == count
    waitFor(lambda: log.read_text().count('"client_closed"') == 3, "the records")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({record["listener"] for record in records}) == 3
    assert sum(record["tls"] is not None for record in records) == 1
    assert sum(record["client"] == "192.0.2.1:1024" for record in records) == 1


def test_settingsQuoted() -> None:
    """
    A value may have spaces and backslashes.
    """
    settings('--access-log="/var/log/kvserver/my log"')
    shell(block(OWN_PORT))
    listen = r"--listen=tcp:4040:interface=\\\\:\\\\:1"
    Path("/etc/kvserver/port.conf").write_text(f"KVSERVER_LISTEN={listen}\n")
    assert listen.partition(":interface")[2] in SYSTEMD.read_text()
    shell("systemctl restart kvserver.service")
    with connect(PORT, "::1") as client:
        assert ask(client, b"hello\n") == b"hello\n"
    with pytest.raises(ConnectionRefusedError):
        connect(PORT)
    log = Path("/var/log/kvserver/my log")
    waitFor(lambda: '"reason": "client_closed"' in log.read_text(), "the record")


def test_settingsForTLS(authority: Authority, cursor: str) -> None:
    """
    TLS with files that only root can read. Nothing that the unit denies has to be granted for it.
    """
    shell(parts()[0])
    answered()
    with TLSClient(connect(TLS_PORT), authority.client()) as client:
        assert ask(client, b"hello\n") == b"hello\n"
    assert propertyOf("MemoryDenyWriteExecute") == "yes"
    # A reload finds them as well.
    shell("systemctl reload kvserver.service")
    waitFor(lambda: "certificates have been loaded again" in journal(cursor), "the reload")
    with TLSClient(connect(TLS_PORT), authority.client()) as client:
        assert ask(client, b"hello\n") == b"hello\n"
    # Without them it does not start, and the journal says why.
    Path("/etc/kvserver/server.key").unlink()
    shell("systemctl restart kvserver.service", 1)
    shown = shell(block("systemctl status 'kvserver*'"))
    assert "status=243/CREDENTIALS" in shown


def get(page: str) -> str:
    """
    A page of the operations site.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:9464{page}", timeout=PATIENCE) as answer:
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
    An access log, which logrotate rotates, and metrics: each that README or manual have.
    """
    _, log, metrics = parts()[:3]
    shell(log)
    shell(metrics)
    answered()
    path = Path("/var/log/kvserver/access.log")
    waitFor(lambda: '"reason": "client_closed"' in path.read_text(), "the record")
    assert get("/readyz") == "ready\n"
    assert get("/healthz") == "alive\n"
    # Each that the manual has.
    body = get("/metrics")
    table = re.findall(r"^``(kvserver_\w+)``  ", MONITORING.read_text(), re.MULTILINE)
    process = (
        *("cpu_seconds_total", "resident_memory_bytes", "virtual_memory_bytes"),
        *("open_fds", "max_fds", "start_time_seconds"),
    )
    table = [name for name in table if not name.startswith(("kvserver_worker", "kvserver_tls"))]
    for name in *table, *(f"process_{name}" for name in process):
        assert f"# TYPE {name}" in body
    started = float(re.findall(r"^process_start_time_seconds (\S+)$", body, re.MULTILINE)[0])
    assert abs(started - time.time()) < 60
    # A rotation.
    Path("/etc/logrotate.d/kvserver").write_text(block("/var/log/kvserver/access.log {"))
    shell("logrotate --force /etc/logrotate.d/kvserver")
    waitFor(path.exists, "the new file")
    answered()
    waitFor(lambda: '"id": 2' in path.read_text(), "the record")
    assert '"id": 1' in Path("/var/log/kvserver/access.log.1").read_text()


def installed() -> str:
    """
    The installation that the service runs from.
    """
    program = Path(f"/proc/{propertyOf('MainPID')}/cmdline").read_bytes().split(b"\0")[0].decode()
    return program.removesuffix("/bin/python3")


def test_upgrade() -> None:
    """
    The next version is installed beside the one that runs, and replaces it at a restart: a client
    of the old one is drained, and one that comes meanwhile is answered. The way back is the same.
    """
    module = Path("kvserver/__init__.py")
    old, text = installed(), module.read_text()
    assert old.startswith("/opt/kvserver-2")
    # An installation that fails changes nothing.
    found = traces()
    shell("cd /srv\n" + block(INSTALL), 1)
    assert traces() == found
    module.write_text(re.sub("^__version__ = .*", '__version__ = "99.0"', text, flags=re.MULTILINE))
    try:
        shell(block(INSTALL))
    finally:
        module.write_text(text)
    assert installed() == old
    restart = block("systemctl daemon-reload && systemctl restart kvserver.service")
    for pasted in restart, block("ln -sfnT $(ls"):
        running = installed()
        load = ("--soak", "--rate", "400", "--connections", "8", "--churn", "1")
        with connect(PORT) as client, started(at(PORT), *load) as run:
            assert ask(client, b"hello\n") == b"hello\n"
            run.begin()
            shell(pasted)
            assert client.recv(1) == b""
            said = run.interrupt().said
        assert (said["result"], said["ends"], said["faults"]) == ("ok", [], [])
        answered()
        assert installed() != running
        version = "kvserver 99.0"
        assert (version in shell("/opt/kvserver/bin/twistd kvserver --version")) == (running == old)
    assert installed() == old


def test_uninstalled(before: str) -> None:
    """
    The last one: nothing is left.
    """
    _, log, metrics = parts()[:3]
    shell(log)
    shell(metrics)
    answered()
    assert traces() != before
    shell(block("systemctl stop 'kvserver*'"))
    assert traces() == before
    assert shell("systemctl list-units --all --no-legend 'kvserver*'") == ""
    for port in PORT, TLS_PORT, 9464:
        with pytest.raises(ConnectionRefusedError):
            connect(port)
