"""
KeyUpdates of TLS 1.3: records that are whole, and hold nothing for us.
"""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, skip
from tests.support.daemon import PATIENCE, Daemon, Stopwatch
from tests.support.wires import Authority


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> str:
    """
    The client in C, built here.
    """
    built = str(tmp_path_factory.mktemp("built") / "keyupdates")
    source = str(Path(__file__).with_name("keyupdates.c"))
    try:
        subprocess.run(["cc", "-o", built, source, "-lssl", "-lcrypto"], check=True)
    except (OSError, subprocess.CalledProcessError):
        skip("needs cc and libssl-dev")
    return built


@contextlib.contextmanager
def updating(client: str, port: str, count: int) -> Iterator["subprocess.Popen[str]"]:
    """
    A client that is about to send so many.
    """
    with subprocess.Popen(
        [client, port, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            says(process, "echoed")
            says(process, "made")
            yield process
        finally:
            process.kill()


def says(process: "subprocess.Popen[str]", word: str) -> None:
    """
    Wait until it says so.
    """
    assert process.stdout
    assert process.stdout.readline() == f"{word}\n"


def options(tmp_path: Path, authority: Authority) -> list[str]:
    """
    A daemon with TLS, after a plain listener.
    """
    certificate, key = authority.issue("localhost")
    return [
        *("--listen", "tcp:0", "--listen", "tls:tcp:0", f"--access-log={tmp_path}/access.log"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "seconds"), [(60_000, 0.3), pytest.param(200_000, 1.0, marks=pytest.mark.soak)]
)
def test_floodStopsNobody(
    tmp_path: Path, authority: Authority, client: str, count: int, seconds: float
) -> None:
    """
    So many of them, which OpenSSL takes three times these seconds for, keep no other client waiting
    for more than half of these.
    """
    with (
        Daemon(tmp_path, *options(tmp_path, authority)) as daemon,
        updating(client, daemon.listening[1], count) as process,
        connect(daemon.port) as other,
    ):
        begin = daemon.cpu()
        waits: list[float] = []
        while daemon.cpu() - begin < seconds * 1e9:
            asked = Stopwatch(daemon)
            assert ask(other, b"hello\n") == b"hello\n"
            waits.append(asked.seconds())
            assert sum(waits) < PATIENCE
            assert process.poll() is None
        assert max(waits) < seconds / 2


def test_atRest(tmp_path: Path, authority: Authority, client: str) -> None:
    """
    After one of them a client is at rest, and not in the middle of a record: a drain closes it in
    order, and then waits for no more than the answer to its close_notify.
    """
    with Daemon(tmp_path, *options(tmp_path, authority)) as daemon:
        with updating(client, daemon.listening[1], 1) as process:
            says(process, "sent")
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(PATIENCE)
        assert daemon.logs("still busy at the end of the drain") == 0
    *_, record = (json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines())
    assert record["reason"] == "drained"


def test_goesOn(tmp_path: Path, authority: Authority, client: str) -> None:
    """
    The connection goes on after a thousand of them.
    """
    with (
        Daemon(tmp_path, *options(tmp_path, authority)) as daemon,
        updating(client, daemon.listening[1], 1_000) as process,
    ):
        says(process, "sent")
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        says(process, "echoed")
        assert process.wait(PATIENCE) == 0
