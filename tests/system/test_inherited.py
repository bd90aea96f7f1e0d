"""
Sockets from the service manager, as the real daemon gets them.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, slow
from tests.support.daemon import PATIENCE, TWIST, TWISTD, Daemon, environment, quietPort
from tests.support.sabotage import Sabotaged

_SYSTEMD = """
import os, sys
names, *numbers = sys.argv[1].split(",")
for place, number in enumerate(numbers, 3):
    os.dup2(int(number), place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES=names)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""
Does as systemd does: the sockets are the file descriptors from 3 on, and the environment says so to
this process.
"""


def passing(*passed: socket.socket, names: str, command: tuple[str, ...]) -> tuple[str, ...]:
    """
    A command that passes these sockets to another one.
    """
    numbers = [str(each.fileno()) for each in passed]
    # -S: it is not the one to be sabotaged.
    return (sys.executable, "-S", "-c", _SYSTEMD, ",".join([names, *numbers]), *command)


BACKLOG = 5
"""
The administrator's C{Backlog=}.
"""

TWISTD_N = (TWISTD, "-n", "--pidfile=")


def server(kind: int = socket.SOCK_STREAM) -> socket.socket:
    """
    A socket of systemd's. Its file descriptor is a high one: no place of those that are passed.
    """
    family = socket.AF_INET if kind == socket.SOCK_STREAM else socket.AF_UNIX
    with socket.socket(family, kind) as made:
        # A port that the kernel chooses is lost by shutdown(2). An empty name lets it choose one.
        made.bind(("127.0.0.1", quietPort()) if family == socket.AF_INET else "")
        made.listen(BACKLOG)
        return socket.socket(fileno=fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, 100))


def backlog(listening: socket.socket) -> int:
    """
    How many connections the kernel lets wait (tcpi_sacked of tcp_info, linux/tcp.h).
    """
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    (found,) = struct.unpack("28xI", info)
    return int(found)


@pytest.mark.parametrize("listen", ["systemd:domain=INET:index=1", "systemd:name=echo"])
@pytest.mark.parametrize("plugin", [slow(False), True], ids=["", "after a plugin"])
def test_socketFromSystemd(tmp_path: Path, listen: str, plugin: bool) -> None:
    """
    A socket that systemd passes is listened on, and stays as systemd has made it; also if Twisted,
    which has no list of its plugins yet, imports one before kvserver that takes what systemd says
    of the sockets out of the environment.
    """
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = environment(PYTHONPATH=os.pathsep.join(path))
    if plugin:
        folder = tmp_path / "twisted" / "plugins"
        folder.mkdir(parents=True)
        (folder / "aaa_plugin.py").write_text(
            "import os, twisted.internet.endpoints\n"
            "assert 'LISTEN_FDS' not in os.environ\n"
            "print('the plugin was first', flush=True)\n"
        )
    with server() as other, server() as passed:
        command = passing(other, passed, names="web:echo", command=TWISTD_N)
        numbers = (other.fileno(), passed.fileno())
        options = ("--listen", listen)
        with Daemon(tmp_path, *options, command=command, descriptors=numbers, env=env) as daemon:
            assert daemon.logs("the plugin was first") == plugin
            assert daemon.port == passed.getsockname()[1]
            assert backlog(passed) == BACKLOG
            with connect(daemon.port) as client:
                assert ask(client, b"hello\n") == b"hello\n"
            assert daemon.logs("systemd passed socket 0 ('web'), and no option names it") == 1
        # Who connects now waits for the next one.
        connect(daemon.port).close()


@pytest.mark.parametrize("how", ["shutdown", "close", "replace"])
def test_brokenSocket(tmp_path: Path, how: str) -> None:
    """
    Broken from inside, a socket of systemd's is taken again, as it was.
    """
    with server() as passed:
        command = passing(passed, names="echo", command=TWISTD_N)
        numbers = (passed.fileno(),)
        options = ("--listen", "systemd:index=0")
        with Sabotaged(tmp_path, *options, command=command, descriptors=numbers) as daemon:
            daemon.sabotage(how)
            daemon.waitForLog("systemd:index=0 died, and is restarted")
            daemon.waitForLog("Accepting connections on", 2)
            assert backlog(passed) == BACKLOG
            with connect(daemon.port) as client:
                assert ask(client, b"hello\n") == b"hello\n"


@pytest.mark.parametrize(
    ("kinds", "options", "reason"),
    [
        (
            [],
            ["--listen=systemd:index=0"],
            "--listen: 'systemd:index=0': "
            "systemd passed no sockets. Was this started by kvserver.socket?",
        ),
        (
            [socket.SOCK_STREAM],
            ["--listen=systemd:name=web"],
            "--listen: 'systemd:name=web': systemd passed socket 0 ('echo'), but none named 'web'",
        ),
        (
            [socket.SOCK_SEQPACKET],
            ["--listen=systemd:index=0"],
            "--listen: 'systemd:index=0': socket 0 from systemd: "
            "its type is SOCK_SEQPACKET, not SOCK_STREAM (ListenStream=)",
        ),
    ],
    ids=["none", "another name", "another type"],
)
@pytest.mark.parametrize("command", [TWISTD_N, slow((TWIST,))], ids=["twistd", "twist"])
def test_cannotListen(
    tmp_path: Path, kinds: list[int], options: list[str], reason: str, command: tuple[str, ...]
) -> None:
    """
    What is missing, or can't be served, is said in one line, with exit status 1: it is no mistake
    on the command line.
    """
    passed = [server(kind) for kind in kinds]
    try:
        done = subprocess.run(
            [*passing(*passed, names="echo", command=command), "kvserver", *options],
            cwd=tmp_path,
            env=environment(),
            pass_fds=[each.fileno() for each in passed],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        for each in passed:
            each.close()
    assert (done.returncode, done.stdout) == (1, f"kvserver: {reason}\n")
