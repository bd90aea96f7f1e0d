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
from pathlib import Path

from tests.daemon import PATIENCE, TWISTD, environment, quietPort

HERE = Path(__file__).parent
PEERS = HERE / "peers"

KVSERVER = "kvserver"
LINERECEIVER = "Twisted LineReceiver"
UVLOOP = "uvloop protocol"
C = "C epoll"
BEAM = "gen_tcp on the BEAM"
EMPTY = "empty twistd"


@dataclass(frozen=True)
class Server:
    """
    A server that can be started.

    @ivar name: What it is called in the results.

    @ivar command: What starts it.

    @ivar notifies: Does it say READY to C{NOTIFY_SOCKET}? Else it is ready when it takes a
        connection.
    """

    name: str
    command: tuple[str, ...]
    notifies: bool = False


def build(folder: Path, *command: str) -> bool:
    """
    Run a compiler in a folder.

    @return: Is there one?
    """
    if not shutil.which(command[0]):
        return False
    subprocess.run(command, cwd=folder, env=os.environ | {"HOME": str(folder)}, check=True)
    return True


def load(folder: Path) -> str:
    """
    Build the load.

    @return: The program.
    """
    if not build(folder, "cc", "-O2", "-o", "load", str(HERE / "load.c")):
        raise SystemExit("The benchmark needs a C compiler: its load is written in C.")
    return str(folder / "load")


def _installUvloop(folder: Path) -> str:
    """
    Install uvloop, for the benchmark alone.

    @return: The Python that has it.
    """
    python = str(folder / "uvloop" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", folder / "uvloop"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uvloop"], check=True)
    return python


def servers(folder: Path, install: bool) -> list[Server]:
    """
    Build what can be built here.

    @param folder: Takes what is built.

    @param install: Install what else is needed?
    """
    aio = str(PEERS / "aio.py")
    twistd = (TWISTD, "-n", "--pidfile=")
    found = [
        Server(EMPTY, (*twistd, "-y", str(PEERS / "empty.tac")), notifies=True),
        Server(KVSERVER, (*twistd, "kvserver"), notifies=True),
        Server(LINERECEIVER, (*twistd, "-y", str(PEERS / "linereceiver.tac"))),
        Server("asyncio protocol", (sys.executable, aio, "protocol")),
        Server("asyncio streams", (sys.executable, aio, "streams")),
    ]
    if install:
        found.append(Server(UVLOOP, (_installUvloop(folder), aio, "uvloop")))
    build(folder, "cc", "-O2", "-o", "epoll", str(PEERS / "epoll.c"))
    found.append(Server(C, (str(folder / "epoll"),)))
    if build(folder, "go", "build", "-o", "go", str(PEERS / "echo.go")):
        found.append(Server("Go, by line", (str(folder / "go"),)))
    if build(folder, "erlc", "-o", str(folder), str(PEERS / "beam.erl")):
        found.append(Server(BEAM, ("erl", "-noinput", "-pa", str(folder), "-s", "beam")))
    return found


_OTP = 'io:format("OTP ~s~n", [erlang:system_info(otp_release)]), halt().'

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
    uvloop = str(folder / "uvloop" / "bin" / "python")
    ask = (uvloop, "-c", "import uvloop; print('uvloop', uvloop.__version__)")
    found = []
    for command in (*VERSIONS, ask):
        if shutil.which(command[0]):
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found.append(printed.splitlines()[0])
    return ", ".join(found)


class Running:
    """
    A server that has been started.

    @ivar port: Its port on 127.0.0.1.

    @ivar start: How long it took to be ready, in seconds.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, start: float) -> None:
        self._process = process
        self.port = port
        self.start = start

    def cpu(self) -> float:
        """
        The CPU time that all its threads have used, in seconds.
        """
        total = 0
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def memory(self) -> int:
        """
        What it holds in memory (resident), in bytes.
        """
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("it has ended")


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
            server.command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while not ready():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() - begin < PATIENCE, server.name
                time.sleep(0.001)
            yield Running(process, port, time.monotonic() - begin)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
