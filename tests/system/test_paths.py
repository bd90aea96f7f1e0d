"""
C{kvcheck} through what people put before an echo, and against other echoes: it finds which rules
these break, and nothing else.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kvserver.check.rules import RULES
from tests.support.daemon import Daemon, quietPort, waitFor
from tests.support.kvcheck import at, kvcheck
from tests.support.paths import WAYS, Site
from tests.support.wires import Authority


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Site]:
    """
    A daemon, and what leads to it.
    """
    folder = tmp_path_factory.mktemp("echo")
    certificate, key = authority.issue("localhost")
    both = folder / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    with Daemon(
        *(folder, "--listen", "tcp:0", "--listen", "proxy:tcp:0", "--listen", "tls:tcp:0"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
        f"--access-log={folder}/access.log",
    ) as daemon:
        plain, proxy, tls = map(int, daemon.listening)
        yield Site(folder, plain, proxy, tls, both, authority.certificate)


def isOpen(port: int) -> bool:
    """
    Does somebody listen?
    """
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_aPath(echo: Site, tmp_path: Path, name: str) -> None:
    """
    Each rule that the program breaks is found, and no other; what it keeps, it keeps under load.
    """
    way = WAYS[name]
    port = quietPort()
    rules = [rule for rule in RULES if rule != "idle" and rule not in way.varies]
    with contextlib.ExitStack() as stack:
        for command in way.start(replace(echo, folder=tmp_path), port):
            process = stack.enter_context(
                subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
            )
            # With the processes of its connections: some stand still for ever.
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        waitFor(partial(isOpen, port), f"{name} listens")
        trust = ["--ca", str(echo.authority)] if way.isTLS else []
        target = [f"tls:localhost:{port}" if way.isTLS else at(port), *trust]
        log = [] if way.isEcho else [f"--server-log={echo.folder}/access.log"]
        # 1,000 handshakes take a while on a busy machine.
        seconds = 30 if way.isTLS else 5
        answer = kvcheck(*target, "--timeout", seconds, *log, *(f"--rule={rule}" for rule in rules))
        expected = {rule: way.outcome(rule) for rule in rules}
        assert answer.outcomes() == expected, answer.said["checks"]
        if "half-close" not in way.fails:
            answer = kvcheck(*target, "--lines", 5000, "--connections", 5, "--churn", 500)
            assert (answer.status, answer.said["faults"]) == (0, [])
