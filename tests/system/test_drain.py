"""
How the real daemon stops: nothing that has reached it is lost, and nobody keeps it for ever.
"""

import os
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.clients import (
    LINES,
    Sender,
    ask,
    comesBack,
    connect,
    get,
    program,
    receive,
    silent,
    slow,
    stick,
    stopInTheMiddle,
)
from tests.support.daemon import FOREGROUND, PATIENCE, TWISTD, Daemon, quietPort, waitFor
from tests.support.wires import Authority, allOpened


def stopped(daemon: Daemon) -> bool:
    """
    Has SIGSTOP reached it?
    """
    return "State:\tT" in Path(f"/proc/{daemon.pid}/status").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_atRest(tmp_path: Path, number: int) -> None:
    """
    Connections at rest are closed with FIN, and the process ends by its signal.
    """
    with Daemon(tmp_path) as daemon, ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(100)]
        for client in clients:
            assert ask(client, b"hello\n") == b"hello\n"
        daemon.process.send_signal(number)
        for client in clients:
            assert client.recv(1) == b""
        assert daemon.process.wait(PATIENCE) == -number
        assert daemon.logs("Draining 100 connections, for at most 15 s") == 1
        assert daemon.logs("aborted") == 0


@pytest.mark.parametrize("options", [(), ("--workers=2",)])
def test_delay(tmp_path: Path, options: tuple[str, ...]) -> None:
    """
    With C{--drain-delay}, a daemon that was told to stop is not ready, and still accepts and
    serves, until that time is over; a worker that dies meanwhile is restarted. The second signal
    ends it.
    """
    site = quietPort()
    more = "--drain-delay=60", f"--metrics=tcp:{site}:interface=127.0.0.1"
    with Daemon(tmp_path, "--port=0", *more, *options) as daemon, connect(daemon.port) as client:
        assert get(site, "/readyz") == (200, "ready\n")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.waitForLog("Stopping: not ready any more, and still accepting for 60 s")
        assert get(site, "/readyz") == (503, "stopping\n")
        with connect(daemon.port) as late:
            assert ask(late, b"late\n") == b"late\n"
            assert ask(client, b"hello\n") == b"hello\n"
            for pid in daemon.workers():
                os.kill(pid, signal.SIGKILL)
        if options:
            daemon.waitForLog("is back", 2)
            with connect(daemon.port) as late:
                assert ask(late, b"later\n") == b"later\n"
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
        assert daemon.logs("Traceback") == 0


@pytest.mark.parametrize("run", [*range(3), *map(slow, range(3, 20))])
def test_stopInTheMiddle(tmp_path: Path, run: int) -> None:
    """
    TERM in the middle of C{seq 1 200000 | nc -N} by 20 clients: no line is lost, 20 times of 20.
    """
    with Daemon(tmp_path) as daemon:
        stopInTheMiddle(tmp_path, daemon.port, partial(daemon.process.send_signal, signal.SIGTERM))
        assert daemon.process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("options", [(), ("--max-connections=3",)])
def test_linesThatHadReachedTheMachine(tmp_path: Path, options: tuple[str, ...]) -> None:
    """
    Each line that is in the kernel when the signal comes is echoed, also of clients that have not
    been accepted yet, or would have had to wait.
    """
    with Daemon(tmp_path, "--port=0", *options) as daemon, ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.port))]
        assert ask(clients[0], b"hello\n") == b"hello\n"
        daemon.process.send_signal(signal.SIGSTOP)
        waitFor(lambda: stopped(daemon), "the daemon is stopped")
        clients += [stack.enter_context(connect(daemon.port)) for _ in range(20)]
        for client in clients:
            client.sendall(b"line\n" * 100)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        for client in clients:
            assert receive(client, 501) == b"line\n" * 100


def test_busy(tmp_path: Path) -> None:
    """
    A connection with a line begun goes on until that line has come back; nobody new is accepted.
    """
    with Daemon(tmp_path) as daemon, connect(daemon.port) as client:
        assert ask(client, b"hello\n") == b"hello\n"
        client.sendall(b"is it")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.waitForLog("Draining 1 connection,")
        assert silent(client, 1)
        with pytest.raises(ConnectionRefusedError):
            connect(daemon.port)
        client.sendall(b" me\n")
        assert receive(client, 100) == b"is it me\n"
        assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
        assert daemon.logs("aborted") == 0


def test_onEachWire(tmp_path: Path, authority: Authority) -> None:
    """
    Whatever the wire, TERM in the middle of a stream loses no line, a line begun is waited for, and
    who is at rest is closed.
    """
    with allOpened(authority, tmp_path) as ways, ExitStack() as stack:
        daemons = {way.daemon for way in ways.values()}
        idle, busy, streaming = (
            [stack.enter_context(way.connect()) for way in ways.values()] for _ in range(3)
        )
        for client in *idle, *busy, *streaming:
            assert ask(client, b"hello\n") == b"hello\n"
        for client in busy:
            client.sendall(b"is it")
        senders = [Sender(client, [LINES] * 10) for client in streaming]
        waitFor(lambda: all(sender.sent > 1 << 17 for sender in senders), "the streams flow")
        for daemon in daemons:
            daemon.process.send_signal(signal.SIGTERM)
        for client in streaming:
            assert comesBack(client, [LINES] * 10)
        for client in idle:
            assert client.recv(1) == b""
        assert silent(busy[0], 0.5)
        assert all(silent(client, 0.01) for client in busy)
        for client in busy:
            client.sendall(b" me\n")
        for client in busy:
            assert receive(client, 9) == b"is it me\n"
        for client in *idle, *busy, *streaming:
            client.close()
        for daemon in daemons:
            assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
            assert daemon.logs("aborted") == 0


def test_deadline(tmp_path: Path) -> None:
    """
    A client that never reads is cut at the deadline, and the log says so; a second more, and the
    process is gone.
    """
    with (
        Daemon(tmp_path, "--port=0", "--drain-timeout=2") as daemon,
        connect(daemon.port) as client,
    ):
        stick(client)
        begin = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
        assert 2 <= time.monotonic() - begin < 3
        assert daemon.logs("Reset 1 connection that was still busy at the end of the drain") == 1


def test_secondSignal(tmp_path: Path) -> None:
    """
    Who is in a hurry signals twice.
    """
    with Daemon(tmp_path, "--port=0", "--drain-timeout=60") as daemon:
        with connect(daemon.port) as client:
            stick(client)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.waitForLog("Draining")
            begin = time.monotonic()
            daemon.process.send_signal(signal.SIGINT)
            assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
            assert time.monotonic() - begin < 1
        assert daemon.logs("Received a second signal: waiting for no connection") == 1
        assert daemon.logs("Traceback") == 0


def test_secondSignalAtOnce(tmp_path: Path) -> None:
    """
    However soon the second one comes.
    """
    with Daemon(tmp_path, "--port=0", "--drain-timeout=60") as daemon:
        with connect(daemon.port) as client:
            stick(client)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.send_signal(signal.SIGINT)
            daemon.process.wait(PATIENCE / 2)
        assert daemon.logs("Traceback") == 0


def ignored(daemon: Daemon) -> int:
    """
    The signals that it ignores, as a mask (proc(5)).
    """
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    _, _, mask = status.partition("SigIgn:\t")
    return int(mask.split()[0], 16)


def test_INTIgnored(tmp_path: Path) -> None:
    """
    A daemon that was started with INT ignored, as a shell starts its background jobs, ignores it;
    also while it drains.
    """
    command = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh", *FOREGROUND)
    with Daemon(tmp_path, "--port=0", "--drain-timeout=60", command=command) as daemon:
        assert ignored(daemon) & 1 << signal.SIGINT - 1
        with connect(daemon.port) as client:
            stick(client)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.waitForLog("Draining")
            assert ignored(daemon) & 1 << signal.SIGINT - 1
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(PATIENCE) == -signal.SIGTERM


def test_HUPIgnored(tmp_path: Path) -> None:
    """
    A daemon that was started with nohup(1) reloads at HUP all the same.
    """
    command = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *FOREGROUND)
    with Daemon(tmp_path, command=command) as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        daemon.waitForLog("Received SIGHUP")


def test_fewDescriptors(tmp_path: Path) -> None:
    """
    If there are too few file descriptors for all who wait when the signal comes, all are served:
    some when others have left.
    """
    command = (program("prlimit"), "--nofile=96:96", TWISTD, "-n", "--pidfile=")
    with Daemon(tmp_path, command=command) as daemon, ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.port)) for _ in range(200)]
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number)
        daemon.process.send_signal(signal.SIGTERM)
        for number, client in enumerate(clients):
            assert receive(client, 10) == b"%d\n" % number
        assert daemon.process.wait(PATIENCE) == -signal.SIGTERM


def test_hangUp(tmp_path: Path) -> None:
    """
    HUP ends neither the process nor a connection.
    """
    with Daemon(tmp_path) as daemon, connect(daemon.port) as client:
        for _ in range(3):
            os.kill(daemon.pid, signal.SIGHUP)
            assert ask(client, b"hello\n") == b"hello\n"
        daemon.waitForLog("Received SIGHUP")
