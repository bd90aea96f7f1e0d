"""
What README and manual show is pasted, with the ports of this test in place of those shown.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, program
from tests.support.daemon import PATIENCE, SCRIPTS, Daemon, environment, quietPort, waitFor
from tests.support.documents import DAEMONS, ROOT, block
from tests.support.wires import Authority


def pasted(text: str) -> tuple[str, list[int]]:
    """
    A block with other ports, and these.
    """
    ports = {shown: quietPort() for shown in re.findall(r"\b(?:4[04]\d\d|9464)\b", text)}
    if not re.search("--port|--listen|-l ", text):
        # It is told by PORT.
        ports["4040"] = quietPort()
    for shown, port in ports.items():
        text = text.replace(shown, str(port))
    return text, list(ports.values())


def accepts(port: int) -> bool:
    """
    Does somebody accept connections there?
    """
    try:
        connect(port).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("begin", DAEMONS)
def test_daemons(begin: str, tmp_path: Path, authority: Authority) -> None:
    """
    A block that starts a daemon ends in one that listens; the first of all installs it.
    """
    certificate, key = authority.issue("localhost")
    (tmp_path / "server.pem").write_bytes(certificate.read_bytes())
    (tmp_path / "server.key").write_bytes(key.read_bytes())
    text, ports = pasted(block(begin))
    folder = tmp_path
    if "pip install" in text:
        folder = tmp_path / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        if not text.startswith("python3"):
            subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
    else:
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(SCRIPTS)
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-euc", text],
            cwd=folder,
            env=environment(PORT=str(ports[-1])),
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        waitFor(
            lambda: all(map(accepts, ports)) or process.poll() is not None,
            "it listens",
            patience=6 * PATIENCE,
        )
        assert all(map(accepts, ports))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)
    assert "Traceback" not in log.read_text()


def test_daemonized(tmp_path: Path) -> None:
    """
    One in the background, with its pid file, is ended by it.
    """
    start, end = block(".venv/bin/twistd --pidfile=/tmp/kvserver.pid").splitlines()
    port = quietPort()
    for before, now in ("/tmp", str(tmp_path)), (".venv/bin", str(SCRIPTS)):
        start, end = start.replace(before, now), end.replace(before, now)
    subprocess.run(["sh", "-c", start], env=environment(PORT=str(port)), check=True)
    waitFor(lambda: "Accepting" in (tmp_path / "kvserver.log").read_text(), "it listens")
    with connect(port) as client:
        assert ask(client, b"hello\n") == b"hello\n"
    subprocess.run(["sh", "-c", end], check=True)
    waitFor(lambda: not (tmp_path / "kvserver.pid").exists(), "it has ended")


def test_nothingLost(tmp_path: Path) -> None:
    """
    C{seq | nc | cmp}, as the first screen has it.
    """
    program("nc.openbsd", "nc")
    command, said = block("$ seq 1 200000 | nc").splitlines()
    with Daemon(tmp_path) as daemon:
        done = subprocess.run(
            ["bash", "-c", command.removeprefix("$ ").replace("4040", str(daemon.port))],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert done.stdout == f"{said}\n"
