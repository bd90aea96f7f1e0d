"""
Workers: the guarantees of one process, kept by several.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support.clients import (
    LINES,
    ask,
    connect,
    program,
    receive,
    silent,
    slow,
    stopInTheMiddle,
)
from tests.support.daemon import FOREGROUND, Daemon, environment, quietPort, waitFor
from tests.support.kvcheck import at, started
from tests.support.wires import Authority, Way, opened
from tests.system.test_operation import records, samples, watched

COUNT = 4
"""
How many workers most tests have.
"""


def endings(folder: Path) -> list[str]:
    """
    How connections have ended, without the one that each L{Daemon} begins with.
    """
    return [record["reason"] for record in records(folder)[1:]]


def sockets(pid: int) -> int:
    """
    How many sockets a process holds.
    """
    count = 0
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            count += os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
        except OSError:
            continue
    return count


def isAlive(pid: int) -> bool:
    """
    Is there such a process?
    """
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


class Observed(Daemon):
    """
    A daemon with workers, an access log and metrics.

    @ivar metrics: The port of its metrics.
    """

    def __init__(self, folder: Path) -> None:
        self.metrics = quietPort()
        super().__init__(folder, "--port=0", f"--workers={COUNT}", *watched(self.metrics))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Observed]:
    """
    One daemon for each test.
    """
    with Observed(tmp_path) as daemon:
        yield daemon


@pytest.mark.parametrize("pause", [False, slow(True)], ids=["burst", "trickle"])
def test_shared(daemon: Observed, pause: bool) -> None:
    """
    200 connections that stay are 50 on each of 4 workers, give or take one.
    """
    before = {pid: sockets(pid) for pid in daemon.workers()}
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(0 if pause else 200)]
        for _ in range(200 if pause else 0):
            clients.append(stack.enter_context(connect(daemon.port)))
            assert ask(clients[-1], b"hello\n") == b"hello\n"
        for client in clients:
            assert ask(client, b"hello\n") == b"hello\n"
        shares = [sockets(pid) - before[pid] for pid in daemon.workers()]
        assert len(shares) == COUNT
        assert sum(shares) == 200
        assert set(shares) <= {49, 50, 51}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tcp4", "unix", "mutual tls", "proxy tls"])
def test_eachWire(name: str, authority: Authority, tmp_path: Path) -> None:
    """
    Each wire works with workers; many lines and a tail come back after FIN. When certificates are
    loaded again, that is said once.
    """
    with opened(name, authority, tmp_path, "--workers=2") as way:
        for _ in range(4):
            with way.connect() as client:
                client.sendall(LINES[:200_000] + b"tail")
                client.shutdown(socket.SHUT_WR)
                assert receive(client, 200_004) == LINES[:200_000] + b"tail"
                assert client.recv(1) == b""
        if "tls" in name:
            way.daemon.process.send_signal(signal.SIGHUP)
            way.daemon.waitForLog("The certificates have been loaded again")
            with way.connect() as client:
                assert ask(client, b"hello\n") == b"hello\n"
            assert way.daemon.logs("loaded again") == 1


def test_killedWorker(daemon: Observed) -> None:
    """
    A worker that is killed takes its own clients along, and nobody else; each has its record, and
    the sums are right. Soon as many workers serve as before.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(100)]
        for client in clients:
            assert ask(client, b"hello\n") == b"hello\n"
        # What a worker did in its last second is lost.
        waitFor(lambda: samples(daemon.metrics)["kvserver_lines_total"] == 101, "all is counted")
        victim = daemon.workers()[0]
        os.kill(victim, signal.SIGKILL)
        lost = 0
        for client in clients:
            try:
                client.sendall(b"again\n")
                lost += receive(client, 6) != b"again\n"
            except (OSError, AssertionError):
                lost += 1
        assert lost == 25
        waitFor(lambda: endings(Path(daemon.log.parent)).count("worker_died") == 25, "records")
        waitFor(lambda: samples(daemon.metrics)["kvserver_workers"] == COUNT, "a new worker")
        assert victim not in daemon.workers()
        for _ in range(2 * COUNT):
            with connect(daemon.port) as client:
                assert ask(client, b"hello\n") == b"hello\n"
    assert daemon.logs("worker 1 died, and is restarted") == 1
    waitFor(lambda: samples(daemon.metrics)["kvserver_connections"] == 0, "all have left")
    found, written = samples(daemon.metrics), records(Path(daemon.log.parent))
    assert found["kvserver_lines_total"] == sum(record["lines"] for record in written)
    assert found["kvserver_received_bytes_total"] == sum(record["bytes_in"] for record in written)
    assert found["kvserver_worker_restarts_total 1"] == 1
    assert {record["worker"] for record in written} == set(range(1, COUNT + 1))


def killInTheHandOver(way: Way, kills: int, isStopped: bool) -> None:
    """
    Kill a worker again and again, each time while 20 clients connect. Those who are lost are those
    whom it had acknowledged, and each of them has a record.

    @param isStopped: Is it stopped before they connect? Then nobody is lost.
    """
    daemon = way.daemon
    count = len(daemon.workers())

    def visit(number: int) -> bool:
        try:
            with way.connect() as client:
                return ask(client, b"hello\n") == b"hello\n"
        except (OSError, AssertionError):
            return False

    died = 0
    with ThreadPoolExecutor(20) as pool:
        for kill in range(1, kills + 1):
            begin = time.monotonic()
            victim = daemon.workers()[0]
            if isStopped:
                os.kill(victim, signal.SIGSTOP)
            visits = [pool.submit(visit, number) for number in range(20)]
            if isStopped:
                waitFor(lambda: daemon.descriptors() > daemon.idleDescriptors, "they are there")
            time.sleep(0.001 * (kill % 10))
            os.kill(victim, signal.SIGKILL)
            lost = [one.result() for one in visits].count(False)
            daemon.waitForLog("is back: process", kill)
            # It may not have said of others that they had ended before.
            before, died = died, endings(daemon.log.parent).count("worker_died")
            assert lost <= died - before
            assert not (isStopped and lost)
            assert visit(0)
            # No more often than the supervisor restarts, with some room.
            time.sleep(max(0.0, begin + 6 / (3 + count) - time.monotonic()))


@pytest.mark.slow
@pytest.mark.parametrize("isStopped", [False, True], ids=["killed", "stopped and killed"])
@pytest.mark.parametrize("name", ["tcp4", "proxy tls"])
def test_nobodyLostInTheHandOver(
    name: str, authority: Authority, tmp_path: Path, isStopped: bool
) -> None:
    """
    Of those who are connecting while a worker dies, none is lost: a socket that it has not
    acknowledged goes to another one.
    """
    with opened(name, authority, tmp_path, "--workers=2", "--access-log=access.log") as way:
        killInTheHandOver(way, 5, isStopped)


@pytest.mark.slow
def test_hungWorker(daemon: Observed) -> None:
    """
    A worker that is stopped delays nobody else, gets no new clients, and is killed in the end; its
    traceback is in the log.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(2 * COUNT)]
        for client in clients:
            assert ask(client, b"hello\n") == b"hello\n"
        hung = daemon.workers()[1]
        os.kill(hung, signal.SIGSTOP)
        for client in clients:
            client.sendall(b"still there?\n")
        others = [client for client in clients if not silent(client, 0.01)]
        assert len(others) >= 2 * COUNT - 2
        for client in others:
            assert receive(client, 12) == b"till there?\n"
        while not daemon.logs("Worker 2 hangs: it is killed"):
            for client in others:
                begin = time.monotonic()
                assert ask(client, b"hello\n") == b"hello\n"
                # Measured: 25 ms on a busy machine; but other tests run beside this one.
                assert time.monotonic() - begin < 1
            time.sleep(0.02)
        waitFor(lambda: hung not in daemon.workers(), "it is gone")
        assert daemon.logs("Worker 2: Fatal Python error: Aborted") == 1
        assert daemon.logs("Worker 2:   File") > 3
        waitFor(lambda: samples(daemon.metrics)["kvserver_workers"] == COUNT, "a new worker")
    assert endings(Path(daemon.log.parent)).count("worker_died") == 2


def test_killedMaster(tmp_path: Path) -> None:
    """
    When the master is killed, lines that have begun may end, and then the workers do.
    """
    with Daemon(tmp_path, f"--port={quietPort()}", "--workers=2", "--drain-timeout=5") as daemon:
        workers = daemon.workers()
        with connect(daemon.port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
            client.sendall(b"beg")
            daemon.stop(signal.SIGKILL)
            client.sendall(b"in\n")
            assert receive(client, 6) == b"begin\n"
            assert client.recv(1) == b""
        waitFor(lambda: not any(map(isAlive, workers)), "the workers have ended")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", daemon.port))


@pytest.mark.slow
def test_replaced(daemon: Observed) -> None:
    """
    USR2 replaces the workers under clients that notice nothing; afterwards nothing is left of the
    old ones.
    """
    descriptors = daemon.idleDescriptors
    with started(at(daemon.port), "--soak", "--rate", "200", "--connections", "8") as run:
        run.begin()
        waitFor(lambda: daemon.descriptors() >= descriptors + 8, "all are connected")
        before = set(daemon.workers())
        daemon.process.send_signal(signal.SIGUSR2)
        daemon.waitForLog("Received SIGUSR2: replacing the workers")
        waitFor(lambda: len(set(daemon.workers()) - before) == COUNT, "new workers")
        daemon.process.send_signal(signal.SIGUSR2)
        daemon.waitForLog("Received SIGUSR2: ignored")
        said = run.interrupt().said
    assert (said["result"], said["connections"]["opened"]) == ("ok", 8)
    assert said["faults"] == said["ends"] == []
    waitFor(lambda: not set(daemon.workers()) & before, "the old ones have ended")
    for _ in range(COUNT):
        with connect(daemon.port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
    waitFor(lambda: daemon.descriptors() == descriptors, "nothing is left")
    assert set(endings(Path(daemon.log.parent))) == {"client_closed"}


@pytest.mark.slow
def test_newWorkerDies(tmp_path: Path) -> None:
    """
    When a worker dies that has replaced another one, the clients of the old one notice nothing.
    """
    with Daemon(tmp_path, "--port=0", "--workers=1") as daemon, connect(daemon.port) as client:
        assert ask(client, b"hello\n") == b"hello\n"
        (old,) = daemon.workers()
        daemon.process.send_signal(signal.SIGUSR2)
        daemon.waitForLog("Worker 1 is replaced")
        (new,) = set(daemon.workers()) - {old}
        with connect(daemon.port) as other:
            waitFor(lambda: ask(other, b"hello\n") == b"hello\n", "an answer")
        os.kill(new, signal.SIGKILL)
        daemon.waitForLog("worker 1 died, and is restarted")
        with connect(daemon.port) as other:
            assert ask(other, b"hello\n") == b"hello\n"
        # Longer than a worker that is to end may take.
        for _ in range(30):
            assert ask(client, b"hello\n") == b"hello\n"
            assert silent(client, 0.1)
        assert isAlive(old)


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT)])
def test_groupSignal(tmp_path: Path, number: int) -> None:
    """
    TERM or INT to the whole group, in the middle of a stream: no line is lost.
    """
    port = quietPort()
    log = tmp_path / "daemon.log"
    with log.open("wb") as file:
        daemon = subprocess.Popen(
            [*FOREGROUND, "kvserver", f"--port={port}", "--workers=2"],
            stdout=file,
            stderr=file,
            env=environment(),
            start_new_session=True,
        )
    try:
        waitFor(lambda: "Accepting" in log.read_text(), "it listens")
        stopInTheMiddle(tmp_path, port, partial(os.killpg, daemon.pid, number))
        daemon.wait(20)
    finally:
        daemon.kill()
        daemon.wait()
    assert "Traceback" not in log.read_text()


def test_limits(tmp_path: Path) -> None:
    """
    Limits are those of all workers together, and exact.
    """
    options = ("--port=0", "--workers=4", "--max-connections-per-source=10")
    with Daemon(tmp_path, *options) as daemon, ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(40)]
        served = 0
        for client in clients:
            try:
                served += ask(client, b"hello\n") == b"hello\n"
            except (OSError, AssertionError):
                continue
        assert served == 10


@pytest.mark.slow
def test_comesAgain(tmp_path: Path) -> None:
    """
    A client that has seen the end of its connection, and comes again at once, is not refused for
    the connection that has just ended.
    """
    options = ("--port=0", "--workers=2", "--max-connections-per-source=1")
    with Daemon(tmp_path, *options) as daemon:
        for _ in range(200):
            with connect(daemon.port) as client:
                client.sendall(b"hello\n")
                client.shutdown(socket.SHUT_WR)
                assert receive(client, 6) == b"hello\n"
                assert client.recv(1) == b""


@pytest.mark.slow
def test_comesAgainAfterAKill(tmp_path: Path) -> None:
    """
    So is one whose worker was killed: the master counts it out before the kernel tells the client.
    """
    options = ("--port=0", "--workers=1", "--max-connections-per-source=1")
    with Daemon(tmp_path, *options) as daemon:
        for _ in range(4):
            with connect(daemon.port) as client:
                assert ask(client, b"hello\n") == b"hello\n"
                os.kill(daemon.workers()[0], signal.SIGKILL)
                with suppress(ConnectionResetError):
                    assert client.recv(1) == b""


@pytest.mark.slow
def test_fewDescriptors(tmp_path: Path) -> None:
    """
    However many clients the master has itself, it has file descriptors to restart a worker.
    """
    command = (program("prlimit"), "--nofile=128:128", *FOREGROUND)
    listening = ("--listen", "tcp:0", "--listen", "proxy:tcp:0", "--workers=6")
    with Daemon(tmp_path, *listening, command=command) as daemon, ExitStack() as stack:
        waiting = [stack.enter_context(connect(int(daemon.listening[1]))) for _ in range(90)]
        daemon.waitForLog("no more are accepted until one ends")
        os.kill(daemon.workers()[0], signal.SIGKILL)
        daemon.waitForLog("Worker 1 is back")
        for client in waiting:
            client.close()
        with connect(daemon.port) as client:
            assert ask(client, b"hello\n") == b"hello\n"


@pytest.mark.slow
def test_replacedAtTheStop(tmp_path: Path) -> None:
    """
    A worker that is replaced when the drain begins drains: who is at rest is not reset.
    """
    listening = ("--listen", "tcp:0", "--listen", "proxy:tcp:0", "--workers=2")
    options = ("--drain-timeout=60", f"--access-log={tmp_path}/access.log")
    with Daemon(tmp_path, *listening, *options) as daemon, ExitStack() as stack:
        clients = [stack.enter_context(connect(int(daemon.listening[1]))) for _ in range(6)]
        for client in clients:
            client.sendall(b"PROXY UNK")
        daemon.process.send_signal(signal.SIGUSR2)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.waitForLog("Worker 1 is replaced")
        # Long enough for worker 2 to be replaced as well, by one that has not heard of the drain.
        time.sleep(2)
        # All at once: so each of the workers gets some.
        for client in clients:
            client.sendall(b"NOWN\r\nhello\n")
        for client in clients:
            assert receive(client, 6) == b"hello\n"
            assert client.recv(1) == b""
    assert set(endings(tmp_path)) == {"drained"}


@pytest.mark.slow
def test_stoppedAtTheStop(tmp_path: Path) -> None:
    """
    A worker that is stopped does not keep the daemon from ending.
    """
    with Daemon(tmp_path, "--port=0", "--workers=1", "--drain-timeout=1") as daemon:
        os.kill(daemon.workers()[0], signal.SIGSTOP)
        with connect(daemon.port) as client:
            client.sendall(b"hello\n")
            daemon.stop()


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("0", "--workers: '0' is not auto, or a number of processes from 1 to 1024"),
        ("-1", "--workers: '-1' is not auto, or a number of processes from 1 to 1024"),
        ("many", "--workers: 'many' is not auto, or a number of processes from 1 to 1024"),
    ],
)
def test_wrong(tmp_path: Path, value: str, line: str) -> None:
    """
    A wrong number is one line.
    """
    done = subprocess.run(
        [*FOREGROUND, "kvserver", f"--workers={value}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=20,
        check=False,
    )
    assert done.returncode == os.EX_USAGE
    assert line in done.stderr


@pytest.mark.slow
def test_protocolThatOnlyTheMasterFinds(tmp_path: Path) -> None:
    """
    If a worker can't import the protocol, the start fails with one line and status 1.
    """
    (tmp_path / "mine.py").write_text(
        "import sys\n"
        "if sys.argv[0] == '-c':\n"
        "    raise ImportError('not in a worker')\n"
        "from kvserver.echo.protocol import EchoProtocol\n"
    )
    done = subprocess.run(
        [*FOREGROUND, "kvserver", "--port=0", "--workers=2", "--protocol=mine.EchoProtocol"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.count("could not start: --protocol: 'mine.EchoProtocol' can't be used") == 1
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_manyWorkers(tmp_path: Path) -> None:
    """
    More workers than make sense are a warning; more than there are file descriptors for, one line.
    """
    count = 4 * len(os.sched_getaffinity(0)) + 1
    with Daemon(tmp_path, "--port=0", f"--workers={count}") as daemon:
        assert len(daemon.workers()) == count
        assert daemon.logs(f"--workers: {count} are many for ") == 1
    done = subprocess.run(
        [program("prlimit"), "--nofile=100:100", *FOREGROUND, "kvserver", "--workers=20"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=20,
        check=False,
    )
    assert done.returncode == os.EX_USAGE
    assert "--workers: '20' processes need 160 file descriptors, more than" in done.stderr


@pytest.mark.slow
def test_auto(tmp_path: Path) -> None:
    """
    As many workers as CPUs may be used.
    """
    with Daemon(tmp_path, "--port=0", "--workers=auto") as daemon:
        count = len(daemon.workers())
        assert 1 <= count <= len(os.sched_getaffinity(0))
        daemon.waitForLog(f"Serving from {count} worker")
