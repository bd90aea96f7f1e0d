"""
The real daemon, in its own process, as its user sees it: what it is told, what it logs, what it
costs.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest
from typing_extensions import Self

from kvserver.workers.child import REPORT_INTERVAL

SCRIPTS = Path(sysconfig.get_path("scripts"))
TWISTD = str(SCRIPTS / "twistd")
TWIST = str(SCRIPTS / "twist")
FOREGROUND = (TWISTD, "-n")
COMMAND = (str(SCRIPTS / "kvserver"),)
STARTS = (
    pytest.param((*FOREGROUND, "kvserver"), id="twistd"),
    pytest.param(COMMAND, id="kvserver"),
    pytest.param((TWIST, "kvserver"), id="twist", marks=pytest.mark.slow),
)
"""
The ways to start it in the foreground, as cases of a test.
"""

PATIENCE = 20.0
"""
How long, in seconds, a test waits for what must happen. No promise, only the end of a hanging test.
"""


def waitFor(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """
    Return as soon as C{condition} holds.
    """
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not seen in {patience} s: {what}"
        time.sleep(0.005)


def environment(**more: str) -> dict[str, str]:
    """
    The environment of the tests, less what would change what the daemon does.
    """
    return {name: value for name, value in os.environ.items() if name != "PORT"} | more


def queued(process: int | str) -> int:
    """
    How long a process has waited for a processor that others were using, in nanoseconds.
    """
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[1])


class Stopwatch:
    """
    How long the daemon makes a test wait. When one of them waits for a processor, because other
    tests run beside them, that is nobody's fault, and does not count.
    """

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._begin = self._now()

    def _now(self) -> int:
        return time.monotonic_ns() - queued(self._daemon.pid) - queued("thread-self")

    def seconds(self) -> float:
        """
        Since it was made.
        """
        return (self._now() - self._begin) / 1e9


_claims: list[socket.socket] = []


def quietPort() -> int:
    """
    A free port that the kernel gives to no client, and no other process of tests has: each claims
    its own by the name of an abstract socket, which the kernel forgets with the process. A client
    that tries one of the kernel's while nobody listens there may get the same for itself, and is
    then connected to itself.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(lowest - 1, 1024, -1):
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe, contextlib.suppress(OSError):
            claim.bind(f"\0kvserver tests: port {port}")
            probe.bind(("127.0.0.1", port))
            _claims.append(claim)
            return port
        claim.close()
    raise AssertionError("no port is free")


_WORKERS = [f"--workers={count}"] if (count := os.environ.get("KVSERVER_WORKERS")) else []
"""
The option that lets every daemon of the tests have workers.
"""


class Daemon:
    """
    C{twistd -n kvserver --port 0}, and what more it is told.

    @ivar listening: The ports and paths that it says it listens on.

    @ivar port: The first of them, where a plain TCP client is answered.

    @ivar log: The file that it logs to.

    @ivar idleDescriptors: How many file descriptors it holds when nobody is connected.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        command: tuple[str, ...] = FOREGROUND,
        env: dict[str, str] | None = None,
        descriptors: tuple[int, ...] = (),
        answer: bytes = b"hello\n",
        name: str = "kvserver",
    ) -> None:
        """
        @param folder: Is its working directory, and takes its log.

        @param options: Follow C{kvserver} on its command line; C{--port 0} if there are none.

        @param command: What C{kvserver} follows.

        @param env: Its environment, if it is not the one of the tests.

        @param descriptors: What it inherits.

        @param answer: What it answers to C{hello}.

        @param name: The name of its plugin, which is empty for C{kvserver} itself.
        """
        self.log = folder / "daemon.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *filter(None, [name]), *(options or ("--port", "0")), *_WORKERS],
                cwd=folder,
                env=env or environment(),
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid
        try:
            self.listening = self._listening(max(1, options.count("--listen")))
            self.port = int(self.listening[0])
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
                client.sendall(b"hello\n")
                came = b""
                while len(came) < len(answer) and (part := client.recv(100)):
                    came += part
                assert came == answer
                if self.workers():
                    # Until it is acknowledged, the master has a socket, too.
                    waitFor(self._isAtRest, "the socket is acknowledged")
                self.idleDescriptors = self.descriptors() - 1
            waitFor(lambda: self.descriptors() == self.idleDescriptors, "nobody is connected")
            if self.workers():
                # The master hears a little later that this connection has ended.
                time.sleep(2 * REPORT_INTERVAL)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def _isAtRest(self) -> bool:
        before = self.descriptors()
        time.sleep(0.05)
        return self.descriptors() == before

    def _listening(self, count: int) -> list[str]:
        said = re.compile(r"Accepting connections on (?:port )?([^\s\"]+)")
        waitFor(
            lambda: (
                len(said.findall(self.log.read_text())) >= count or self.process.poll() is not None
            ),
            "the daemon listens",
        )
        found = said.findall(self.log.read_text())
        assert len(found) == count, self.log.read_text()
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """
        End it.

        @return: Its exit status, negative for a signal.
        """
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()

    def workers(self) -> list[int]:
        """
        The processes of its workers.
        """
        return list(
            map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())
        )

    def pids(self) -> list[int]:
        """
        All its processes: what it costs is what they cost together.
        """
        return [self.pid, *self.workers()]

    def memory(self) -> int:
        """
        What it holds in memory now (resident), in bytes.
        """
        return self._status("VmRSS")

    def peakMemory(self) -> int:
        """
        The most that it has ever held in memory (resident), in bytes.
        """
        return self._status("VmHWM")

    def _status(self, field: str) -> int:
        sizes = []
        for pid in self.pids():
            status = Path(f"/proc/{pid}/status").read_text()
            sizes += re.findall(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
        return sum(map(int, sizes)) * 1024

    def cpu(self) -> int:
        """
        The CPU time that it has used, in nanoseconds.
        """
        return sum(
            int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self.pids()
        )

    def descriptors(self) -> int:
        """
        How many file descriptors it holds.
        """
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())

    def logs(self, text: str) -> int:
        """
        How many lines of its log have this in them.
        """
        return sum(text in line for line in self.log.read_text().splitlines())

    def waitForLog(self, text: str, times: int = 1) -> None:
        """
        Wait until this has been logged so many times.
        """
        waitFor(lambda: self.logs(text) >= times, f"{text!r} in the log")
