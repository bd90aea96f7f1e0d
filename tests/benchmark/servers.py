"""
The servers that are measured: how each is built and started, and what it costs.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.support.daemon import PATIENCE, TWISTD, environment, quietPort
from tests.support.wires import Authority

HERE = Path(__file__).parent
PEERS = HERE / "peers"

KVSERVER = "kvserver"
LINERECEIVER = "Twisted LineReceiver"
UVLOOP = "uvloop protocol"
C = "C epoll"
WORKERS = {"kvserver, 1 worker": 1, "kvserver, 2 workers": 2, "kvserver, 4 workers": 4}
BEAM = "gen_tcp on the BEAM"
EMPTY = "empty twistd"

ON_WORKERS = ("ping-pong 50", "TLS ping-pong 50", "connect")
"""
What of the load workers take.
"""


@dataclass(frozen=True)
class Server:
    """
    A server that can be started.

    @ivar name: What it is called in the results.

    @ivar command: What starts it; C{{port}} stands for its port, which C{PORT} says as well.

    @ivar notifies: Does it say READY to C{NOTIFY_SOCKET}? Else it is ready when it takes a
        connection.

    @ivar identity: The PEM files of the certificate and of its key, if it speaks TLS.

    @ivar workloads: What of the load it takes; None: all.
    """

    name: str
    command: tuple[str, ...]
    notifies: bool = False
    identity: tuple[Path, Path] | None = None
    workloads: tuple[str, ...] | None = None

    def of(self, what: str) -> str:
        """
        What the results call a thing that is measured of it: with TLS it is another thing.
        """
        return f"TLS {what}" if self.identity else what


def build(folder: Path, *command: str) -> bool:
    """
    Run a compiler in a folder.

    @return: Is there one?
    """
    if not shutil.which(command[0]):
        return False
    subprocess.run(command, cwd=folder, env=os.environ | {"HOME": str(folder)}, check=True)
    return True


def missing() -> str | None:
    """
    What the benchmark needs and is not here.
    """
    if not shutil.which("cc"):
        return "a C compiler: its load is written in C"
    include = ("cc", "-E", "-include", "openssl/ssl.h", "-x", "c", os.devnull)
    quiet = subprocess.DEVNULL
    if subprocess.run(include, stdout=quiet, stderr=quiet, check=False).returncode:
        return "the headers of OpenSSL (libssl-dev): its load speaks TLS"
    return None


def load(folder: Path) -> str:
    """
    Build the load.

    @return: The program.
    """
    if what := missing():
        raise SystemExit(f"The benchmark needs {what}.")
    build(folder, "cc", "-O2", "-o", "load", str(HERE / "load.c"), "-lssl", "-lcrypto")
    return str(folder / "load")


def _installPeers(folder: Path) -> Path:
    """
    Install what the benchmark alone needs: uvloop, and what the same Twisted needs for its own TLS.

    @return: The folder of its programs.
    """
    scripts = folder / "peers" / "bin"
    subprocess.run([sys.executable, "-m", "venv", folder / "peers"], check=True)
    install = [str(scripts / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "uvloop", f"twisted[tls]=={version('twisted')}"], check=True)
    return scripts


def servers(folder: Path, install: bool) -> list[Server]:
    """
    Build what can be built here.

    @param folder: Takes what is built.

    @param install: Install what else is needed?

    @return: Those that speak TLS are there twice, without and with it.
    """
    aio = str(PEERS / "aio.py")
    twistd = (TWISTD, "-n", "--pidfile=")
    receiver = ("-y", str(PEERS / "linereceiver.tac"))
    identity = Authority(folder).issue("localhost")
    tls = (
        *("--listen", "tls:tcp:{port}:interface=127.0.0.1"),
        *(f"--tls-certificate={identity[0]}", f"--tls-private-key={identity[1]}"),
    )

    def both(name: str, *command: str) -> list[Server]:
        return [Server(name, command), Server(name, command, identity=identity)]

    found = [
        Server(EMPTY, (*twistd, "-y", str(PEERS / "empty.tac")), notifies=True),
        Server(KVSERVER, (*twistd, "kvserver"), notifies=True),
        Server(KVSERVER, (*twistd, "kvserver", *tls), notifies=True, identity=identity),
        Server(LINERECEIVER, (*twistd, *receiver)),
        *(
            Server(name, (*twistd, "kvserver", f"--workers={count}", *more), True, its, ON_WORKERS)
            for name, count in WORKERS.items()
            for its, more in ((None, ()), (identity, tls))
        ),
        *both("asyncio protocol", sys.executable, aio, "protocol"),
        Server("asyncio streams", (sys.executable, aio, "streams")),
    ]
    if install:
        scripts = _installPeers(folder)
        command = (str(scripts / "twistd"), *twistd[1:], *receiver)
        found.append(Server(LINERECEIVER, command, identity=identity))
        found += both(UVLOOP, str(scripts / "python"), aio, "uvloop")
    build(folder, "cc", "-O2", "-o", "epoll", str(PEERS / "epoll.c"))
    found.append(Server(C, (str(folder / "epoll"),)))
    if build(folder, "go", "build", "-o", "go", str(PEERS / "echo.go")):
        found += both("Go, by line", str(folder / "go"))
    if build(folder, "erlc", "-o", str(folder), str(PEERS / "beam.erl")):
        found.append(Server(BEAM, ("erl", "-noinput", "-pa", str(folder), "-s", "beam")))
    return found


VERSIONS = (
    ("cc", "--version"),
    ("go", "version"),
    (
        "erl",
        "-noinput",
        "-eval",
        'io:format("OTP ~s~n", [erlang:system_info(otp_release)]), halt().',
    ),
)


def versions(folder: Path) -> str:
    """
    Those of what has been built.
    """
    uvloop = str(folder / "peers" / "bin" / "python")
    ask = (uvloop, "-c", "import uvloop; print('uvloop', uvloop.__version__)")
    found = []
    for command in (*VERSIONS, ask):
        if shutil.which(command[0]):
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found.append(printed.splitlines()[0])
    return ", ".join(found)


def _cpu(pid: int) -> float:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Running:
    """
    A server that has been started.

    @ivar wire: C{tcp} or C{tls}.

    @ivar port: Its port on 127.0.0.1.

    @ivar start: How long it took to be ready, in seconds.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", wire: str, port: int, start: float
    ) -> None:
        self._process = process
        self.wire = wire
        self.port = port
        self.start = start

    def cpu(self) -> float:
        """
        The CPU time that all its threads and workers have used, in seconds.
        """
        return sum(map(_cpu, self._processes()))

    def ownCPU(self) -> float:
        """
        The CPU time of its first process alone, in seconds.
        """
        return _cpu(self._process.pid)

    def _processes(self) -> list[int]:
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [pid, *map(int, children.split())]

    def settle(self) -> None:
        """
        Wait until it is done with the clients that have left.
        """
        deadline = time.monotonic() + PATIENCE
        begin = self.cpu()
        while True:
            time.sleep(0.02)
            end = self.cpu()
            if end - begin < 0.002:
                return
            assert time.monotonic() < deadline, "it does something, and nobody has asked for it"
            begin = end

    def memory(self) -> int:
        """
        What it holds in memory (resident), in bytes.
        """
        total = 0
        for pid in self._processes():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        assert total, "it has ended"
        return total


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def running(server: Server, folder: Path) -> Iterator[Running]:
    """
    Start a server as its user would, and end it.

    @param folder: Is its working directory, and takes what it prints.
    """
    port = quietPort()
    notify = folder / "notify"
    notify.unlink(missing_ok=True)
    env = environment(PORT=str(port))
    if server.identity:
        certificate, key = map(str, server.identity)
        env |= {"TLS_CERTIFICATE": certificate, "TLS_PRIVATE_KEY": key}
    command = [part.format(port=port) for part in server.command]
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        manager.bind(str(notify))
        manager.settimeout(PATIENCE)
        ready: Callable[[], bool] = lambda: _connects(port)  # noqa: E731
        if server.notifies:
            env["NOTIFY_SOCKET"] = str(notify)
            ready = lambda: manager.recv(100) == b"READY=1"  # noqa: E731
        log = stack.enter_context((folder / "log").open("wb"))
        begin = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while not ready():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() - begin < PATIENCE, server.name
                time.sleep(0.001)
            wire = "tls" if server.identity else "tcp"
            yield Running(process, wire, port, time.monotonic() - begin)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
