"""
The access log among other users, and in the hands of logrotate.
"""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, program
from tests.support.daemon import COMMAND, PATIENCE, TWISTD, Daemon, environment, quietPort, waitFor
from tests.support.documents import block

NOBODY = 65534


@pytest.fixture
def ofNobody() -> Iterator[Path]:
    """
    A folder that nobody may write to, and reach.
    """
    if os.getuid() != 0:
        pytest.skip("needs root")
    user = f"--reuid={NOBODY}"
    command = [program("setpriv"), user, "--clear-groups", sys.executable, "-c", "import kvserver"]
    if subprocess.run(command, cwd="/", capture_output=True, check=False).returncode:
        pytest.skip("nobody may not read this Python")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        logs = folder / "logs"
        logs.mkdir()
        os.chown(logs, NOBODY, NOBODY)
        yield logs


def visit(daemon: Daemon) -> None:
    """
    A client comes, and is answered.
    """
    with connect(daemon.port) as client:
        assert ask(client, b"hello\n") == b"hello\n"


def ids(path: Path) -> list[int]:
    """
    Of the records that are there.
    """
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def asNobody(path: Path) -> Daemon:
    """
    A daemon that root has started, and that runs as nobody.
    """
    command = (TWISTD, "-n", "--pidfile=", f"--uid={NOBODY}", f"--gid={NOBODY}")
    return Daemon(path.parents[1], "--port=0", f"--access-log={path}", command=command)


def test_strangersLink(ofNobody: Path) -> None:
    """
    A symbolic link of somebody who is neither root nor the daemon does not choose where the daemon
    writes; the daemon serves, and writes to the file that comes in its place.
    """
    target = ofNobody.parent / "target"
    target.touch()
    target.chmod(0o666)
    log = ofNobody / "log"
    log.symlink_to(target)
    os.lchown(log, 12345, 12345)
    with asNobody(log) as daemon:
        visit(daemon)
        assert daemon.logs("can't be opened: Too many levels of symbolic links") == 1
        assert target.read_bytes() == b""
        log.unlink()
        visit(daemon)
        waitFor(lambda: log.exists() and ids(log), "a record")
    assert (target.stat().st_uid, target.read_bytes()) == (0, b"")


def test_nothingIsGivenAway(ofNobody: Path) -> None:
    """
    A link of the user that the daemon runs as reaches no further than that user does: a file of
    root stays root's.
    """
    secret = ofNobody.parent / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    log = ofNobody / "log"
    log.symlink_to(secret)
    os.lchown(log, NOBODY, NOBODY)
    with asNobody(log) as daemon:
        visit(daemon)
        assert daemon.logs("can't be opened: Permission denied") == 1
    status = secret.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    assert secret.read_text() == "secret"


def test_ofAnother(ofNobody: Path) -> None:
    """
    A file that is not the daemon's own, as logrotate's C{create 640 root adm} leaves it, does not
    keep it from starting, nor from serving after HUP; given to the daemon, it is written to.
    """
    log = ofNobody / "log"
    log.touch()
    log.chmod(0o640)
    with asNobody(log) as daemon:
        visit(daemon)
        assert daemon.logs("#warn]") == 1
        assert daemon.logs("can't be written: Permission denied") == 1
        os.chown(log, NOBODY, NOBODY)
        visit(daemon)
        waitFor(lambda: ids(log), "a record")
        # And once more, as a rotation.
        old = log.rename(ofNobody / "log.1")
        before = len(ids(old))
        log.touch()
        log.chmod(0o640)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.waitForLog("can't be opened again: Permission denied")
        visit(daemon)
        waitFor(lambda: len(ids(old)) > before, "a record in the old file")
        os.chown(log, NOBODY, NOBODY)
        visit(daemon)
        waitFor(lambda: ids(log), "a record in the new file")
        assert daemon.logs("Traceback") == 0


@pytest.mark.parametrize(
    ("kind", "path"),
    [("pipe", "/dev/stdout"), ("file", "/proc/self/fd/1"), ("socket", "/dev/fd/1")],
)
def test_standardOutput(tmp_path: Path, kind: str, path: str) -> None:
    """
    Standard output may be the access log, whatever it is: beside the lines of the daemon's log, no
    record is lost, and no line is overwritten or torn.
    """
    file = tmp_path / "output"
    file.touch()
    if kind == "pipe":
        ours, theirs = os.pipe()
    elif kind == "file":
        ours, theirs = os.open(file, os.O_RDONLY), os.open(file, os.O_WRONLY)
    else:
        ours, theirs = (end.detach() for end in socket.socketpair())
    port = quietPort()
    with open(ours, "rb", buffering=0) as output:
        process = subprocess.Popen(
            [*COMMAND, f"--port={port}", "--log-level=debug", f"--access-log={path}"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
        )
        os.close(theirs)
        try:
            text = b""
            while b"Accepting" not in text:
                text += output.read(1 << 16)
            for _ in range(50):
                with connect(port) as client:
                    assert ask(client, b"hello\n") == b"hello\n"
            process.terminate()
            assert process.wait(PATIENCE) == -signal.SIGTERM
            while data := output.read(1 << 16):
                text += data
        finally:
            process.kill()
            process.wait()
    lines = text.decode().splitlines()
    records = [json.loads(line)["id"] for line in lines if line.startswith("{")]
    assert records == list(range(1, 51))
    logged = [line for line in lines if re.match(r"\d{4}-.* \[.*\] .", line)]
    assert len(records) + len(logged) == len(lines)
    for number in records:
        assert sum(f" Connection {number} " in line for line in logged) == 2


def test_logrotate(tmp_path: Path) -> None:
    """
    The README's configuration of logrotate, with the folder and the process of this test: nothing
    is lost, and the new file is made by the daemon.
    """
    logrotate = program("logrotate")
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o755)
    configuration = tmp_path / "kvserver.conf"
    with Daemon(tmp_path, "--port=0", f"--access-log={logs}/access.log") as daemon:
        text = block("/var/log/kvserver/access.log {").replace("/var/log/kvserver", str(logs))
        hangUp, count = re.subn(
            r"systemctl kill --kill-whom=main -s HUP kvserver\.service",
            f"kill -HUP {daemon.pid}",
            text,
        )
        assert count == 1
        configuration.write_text(hangUp)
        configuration.chmod(0o644)
        for rotation in range(1, 4):
            visit(daemon)
            waitFor(lambda: ids(logs / "access.log"), "a record")
            done = subprocess.run(
                [logrotate, "--force", "--verbose", f"--state={tmp_path}/state", configuration],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert done.returncode == 0, done.stdout
            assert "error" not in done.stdout
            daemon.waitForLog("has been opened again", rotation)
            waitFor((logs / "access.log").exists, "the new file")
        visit(daemon)
        waitFor(lambda: ids(logs / "access.log"), "a record in the new file")
        assert {path.name for path in logs.iterdir()} == {
            *("access.log", "access.log.1", "access.log.2.gz", "access.log.3.gz"),
        }
        assert len(ids(logs / "access.log.1")) == 1
        assert daemon.logs("#warn]") == daemon.logs("#error]") == 0
