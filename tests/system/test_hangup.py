"""
The terminal that a daemon was started from goes away.
"""

import contextlib
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.clients import ask, connect, program, receive
from tests.support.daemon import (
    COMMAND,
    PATIENCE,
    STARTS,
    TWISTD,
    environment,
    quietPort,
    waitFor,
)


@pytest.fixture
def terminal() -> Iterator[list[int]]:
    """
    A terminal of its own: its two ends, of which the second is the one that programs get. When the
    first is closed, and taken from the list, the terminal is gone.
    """
    ends = list(pty.openpty())
    yield ends
    for end in ends:
        os.close(end)


@contextlib.contextmanager
def started(
    folder: Path, terminal: int, output: int | IO[Any], *command: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """
    A command whose controlling terminal this is.

    @param output: Where it writes.
    """
    process = subprocess.Popen(
        [program("setsid"), "--ctty", *command],
        cwd=folder,
        env=environment(),
        stdin=terminal,
        stdout=output,
        stderr=output,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("command", STARTS)
def test_foreground(tmp_path: Path, terminal: list[int], command: tuple[str, ...]) -> None:
    """
    In the foreground, a HUP that somebody sends reloads; when the terminal goes away, the daemon
    drains, and ends with status 0.
    """
    _, slave = terminal
    log = tmp_path / "log"
    port = quietPort()
    with (
        log.open("wb") as file,
        started(tmp_path, slave, file, *command, f"--port={port}") as process,
    ):
        waitFor(lambda: "Accepting" in log.read_text(), "it listens")
        process.send_signal(signal.SIGHUP)
        waitFor(lambda: "Received SIGHUP: reloading" in log.read_text(), "it reloads")
        with connect(port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
            client.sendall(b"hel")
            os.close(terminal.pop(0))
            waitFor(lambda: "The terminal has gone: stopping" in log.read_text(), "it stops")
            client.sendall(b"lo\n")
            assert receive(client, 6) == b"hello\n"
            assert client.recv(1) == b""
        assert process.wait(PATIENCE) == 0
    assert log.read_text().count("reloading") == 1
    assert "Traceback" not in log.read_text()


def test_logToTerminal(tmp_path: Path, terminal: list[int]) -> None:
    """
    So does one whose log the terminal was, and that a shell has started; what it still logs is
    lost.
    """
    _, slave = terminal
    port = quietPort()
    access = tmp_path / "access.log"
    command = f"{' '.join(COMMAND)} --port={port} --access-log={access}; exit"
    with started(tmp_path, slave, slave, "sh", "-c", command):
        waitFor(lambda: access.exists(), "it is about to listen")
        with connect(port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
            os.close(terminal.pop(0))
            assert client.recv(1) == b""
        assert '"reason": "drained"' in access.read_text()


def test_daemonized(tmp_path: Path, terminal: list[int]) -> None:
    """
    A daemon in the background serves on, and HUP reloads it as before.
    """
    _, slave = terminal
    port = quietPort()
    pidFile, log = tmp_path / "pid", tmp_path / "log"
    subprocess.run(
        [
            *(program("setsid"), "--ctty", "--wait"),
            *(TWISTD, f"--pidfile={pidFile}", f"--logfile={log}", "kvserver", f"--port={port}"),
        ],
        cwd=tmp_path,
        env=environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        timeout=PATIENCE,
        check=True,
    )
    pid = int(pidFile.read_text())
    try:
        os.close(terminal.pop(0))
        with connect(port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
            os.kill(pid, signal.SIGHUP)
            waitFor(lambda: "Received SIGHUP: reloading" in log.read_text(), "it reloads")
            assert ask(client, b"hello\n") == b"hello\n"
    finally:
        os.kill(pid, signal.SIGTERM)
        waitFor(lambda: not pidFile.exists(), "it ends")
