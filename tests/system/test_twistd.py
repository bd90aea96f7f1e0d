"""
The daemon as twistd and twist start it, and how it fails to start.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, program, skip, slow
from tests.support.daemon import (
    COMMAND,
    FOREGROUND,
    PATIENCE,
    STARTS,
    TWIST,
    TWISTD,
    Daemon,
    environment,
    queued,
    waitFor,
)
from tests.support.wires import unix


@pytest.fixture
def taken() -> Iterator[int]:
    """
    A port that is in use.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(
    folder: Path, *command: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """
    Run a command to its end.
    """
    return subprocess.run(
        command,
        cwd=folder,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_foreground(tmp_path: Path) -> None:
    """
    C{twistd -n} logs the port, answers, and dies of the signal that ends it.
    """
    with Daemon(tmp_path) as daemon:
        with connect(daemon.port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
        assert daemon.stop(signal.SIGTERM) == -signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            connect(daemon.port)
        assert "Traceback" not in daemon.log.read_text()


def test_portFromEnvironment(tmp_path: Path, taken: int) -> None:
    """
    C{PORT} is the port, as with the guide's server, unless C{--port} is given.
    """
    options = ("--interface", "127.0.0.1")
    wrong = environment(PORT=str(taken))
    with Daemon(tmp_path, *options, env=environment(PORT="0")):
        pass
    with Daemon(tmp_path, *options, "--port=0", env=wrong):
        pass
    done = run(tmp_path, TWISTD, "-n", "kvserver", *options, env=wrong)
    assert f"127.0.0.1 port {taken}: Address already in use" in done.stdout


def test_twist(tmp_path: Path) -> None:
    """
    C{twist kvserver} works the same.
    """
    with Daemon(tmp_path, command=(TWIST, "--log-format=text")) as daemon:
        with connect(daemon.port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
        assert daemon.stop(signal.SIGTERM) == -signal.SIGTERM


def test_daemonized(tmp_path: Path) -> None:
    """
    C{twistd} goes into the background, leaves its pid and its log where it is told, and takes the
    pid file away at its end.
    """
    pidFile, log = tmp_path / "kvserver.pid", tmp_path / "kvserver.log"
    done = run(
        tmp_path,
        *(TWISTD, f"--pidfile={pidFile}", f"--logfile={log}"),
        *("kvserver", "--port=0", "--interface=127.0.0.1"),
    )
    assert (done.returncode, done.stdout) == (0, "")
    pid = int(pidFile.read_text())
    try:
        assert pid != os.getpid()
        _, _, rest = log.read_text().partition("Accepting connections on port ")
        with connect(int(rest.split()[0])) as client:
            assert ask(client, b"hello\n") == b"hello\n"
    finally:
        os.kill(pid, signal.SIGTERM)
        waitFor(lambda: not pidFile.exists(), "the pid file is gone")


def test_twoInOneFolder(tmp_path: Path) -> None:
    """
    Two that run in the foreground may have one working directory, and leave nothing in it.
    """
    with Daemon(tmp_path, command=FOREGROUND) as one:
        # Each writes a log of its own, which is the test's.
        one.log.rename(tmp_path / "one.log")
        with Daemon(tmp_path, command=FOREGROUND) as two:
            for daemon in one, two:
                with connect(daemon.port) as client:
                    assert ask(client, b"hello\n") == b"hello\n"
            assert sorted(os.listdir(tmp_path)) == ["daemon.log", "one.log"]


def hasStarted(process: "subprocess.Popen[bytes]", log: Path) -> bool:
    """
    Does a daemon listen, or has it ended?
    """
    return "Accepting connections" in log.read_text() or process.poll() is not None


def test_restartAsNumber1(tmp_path: Path) -> None:
    """
    A process that is number 1, as in a container, is killed, and started again with its files.
    """
    unshare = (program("unshare"), "--fork", "--pid", "--mount-proc", "--kill-child")
    if subprocess.run([*unshare, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        skip("a PID namespace takes root")
    command = [*unshare, *FOREGROUND, "kvserver", "--port=0"]
    for log in tmp_path / "first.log", tmp_path / "second.log":
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        try:
            waitFor(partial(hasStarted, process, log), "it has started")
            assert "Accepting connections" in log.read_text()
        finally:
            process.kill()
            process.wait()


def test_pidFileInForeground(tmp_path: Path) -> None:
    """
    A pid file that is asked for is written, and taken away at the end.
    """
    pidFile = tmp_path / "kvserver.pid"
    with Daemon(tmp_path, command=(*FOREGROUND, f"--pidfile={pidFile}")) as daemon:
        assert int(pidFile.read_text()) == daemon.pid
        daemon.stop()
    assert not pidFile.exists()


class TestReadOnly:
    """
    A working directory that can't be written.
    """

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """
        It.
        """
        folder = tmp_path / "readOnly"
        folder.mkdir(0o555)
        return folder

    @pytest.fixture
    def subject(self) -> tuple[str, ...]:
        """
        What makes a command subject to the modes of files, as root is not.
        """
        if os.getuid():
            return ()
        return program("setpriv"), "--bounding-set=-dac_override,-dac_read_search"

    def test_foreground(self, tmp_path: Path, folder: Path, subject: tuple[str, ...]) -> None:
        """
        In the foreground it does not matter.
        """
        command = (*subject, "env", f"--chdir={folder}", *FOREGROUND)
        with Daemon(tmp_path, command=command) as daemon, connect(daemon.port) as client:
            assert ask(client, b"hello\n") == b"hello\n"

    @pytest.mark.parametrize(
        ("option", "name", "other"),
        [
            ("pidfile", "twistd.pid", "--logfile=/dev/null"),
            ("logfile", "twistd.log", "--pidfile="),
        ],
    )
    def test_daemonized(
        self, folder: Path, subject: tuple[str, ...], option: str, name: str, other: str
    ) -> None:
        """
        A daemon can't have its pid file and its log there, and says so in one line.
        """
        done = run(folder, *subject, TWISTD, other, "kvserver", "--port=0")
        assert done.stdout == (
            f"kvserver: {name} can't be written in {folder}: give twistd another --{option}\n"
        )
        assert done.returncode == 1


def test_endpointOfAPlugin(tmp_path: Path) -> None:
    """
    An endpoint that a plugin of Twisted adds is listened on as any other.
    """
    plugins = tmp_path / "plugged" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "kvserver_test_endpoint.py").write_text(
        "from twisted.internet.endpoints import UNIXServerEndpoint\n"
        "from twisted.internet.interfaces import IStreamServerEndpointStringParser\n"
        "from twisted.plugin import IPlugin\n"
        "from zope.interface import implementer\n"
        "@implementer(IPlugin, IStreamServerEndpointStringParser)\n"
        "class Parser:\n"
        "    prefix = 'plugged'\n"
        "    def parseStreamServer(self, reactor, path):\n"
        "        return UNIXServerEndpoint(reactor, path)\n"
        "parser = Parser()\n"
    )
    path = [str(tmp_path / "plugged"), *filter(None, [os.environ.get("PYTHONPATH")])]
    where = tmp_path / "echo.sock"
    with Daemon(
        tmp_path,
        *("--listen", "tcp:0", "--listen", f"plugged:{where}"),
        env=environment(PYTHONPATH=os.pathsep.join(path)),
    ) as daemon:
        assert daemon.listening[1] == f"plugged:{where}"
        with unix(str(where)) as client:
            assert ask(client, b"hello\n") == b"hello\n"


# What is loaded, and how it ends.


def test_pluginIsLazy() -> None:
    """
    Any twistd imports the plugin: that loads nothing of ours, and installs no reactor.
    """
    script = (
        "import sys, twisted.plugins.kvserver_plugin;"
        "print(sorted({'kvserver', 'twisted.internet.reactor'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_exitWithFailure() -> None:
    """
    The reactor stops in good order, what twistd does then is done, and the status
    is 1.
    """
    script = (
        "from twisted.internet import reactor\n"
        "from kvserver.supervision.process import exitWithFailure\n"
        "reactor.addSystemEventTrigger('before', 'shutdown', print, 'stopped')\n"
        "reactor.callWhenRunning(exitWithFailure, reactor)\n"
        "reactor.run()\n"
        "print('cleaned up')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "stopped\ncleaned up\n"


def timed(folder: Path, env: dict[str, str], *command: str) -> tuple[int, str, float]:
    """
    Run a command to its end.

    @return: Its exit status, what it has printed, and the seconds that it took, less those that it
        has waited for a processor.
    """
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    late = threading.Timer(PATIENCE, process.kill)
    late.start()
    # It has ended, and is still there to be asked.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - begin - queued(process.pid) / 1e9
    late.cancel()
    printed, _ = process.communicate()
    return process.returncode, printed, seconds


class TestCannotStart:
    """
    What is wrong is said in one line, in 2 seconds more than it takes twistd to do nothing; there
    is no traceback, and nothing is left behind. The exit status is 64 (EX_USAGE) for a mistake on
    the command line, and 1 for all else: that may succeed when it is tried again.
    """

    def fails(
        self,
        folder: Path,
        *command: str,
        env: dict[str, str] | None = None,
        status: int = os.EX_USAGE,
    ) -> str:
        """
        Run a command that must fail with this status. Return what it prints.
        """
        returned, printed, seconds = timed(folder, env or environment(), *command)
        if seconds >= 2:
            _, _, nothing = timed(folder, environment(), TWISTD, "--version")
            assert seconds < 2 + nothing
        assert returned == status
        assert "Traceback" not in printed
        # A daemon that has told its shell is about to remove its pid file.
        waitFor(lambda: os.listdir(folder) == [], "nothing is left behind")
        return printed

    @pytest.mark.parametrize(
        "command",
        [*STARTS, slow((TWISTD, "kvserver")), slow((sys.executable, "-m", "kvserver"))],
    )
    def test_oneLine(self, tmp_path: Path, command: tuple[str, ...]) -> None:
        """
        However it is started, a wrong command line gets one line and nothing else.
        """
        printed = self.fails(tmp_path, *command, "--prod=4040")
        assert printed == "kvserver: option --prod not recognized: try --help\n"

    def test_standardError(self, tmp_path: Path) -> None:
        """
        The line goes to standard error, as that of any command does.
        """
        command = (TWISTD, "-n", "kvserver", "--prod")
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, timeout=PATIENCE, check=False
        )
        assert (done.returncode, done.stdout) == (os.EX_USAGE, b"")
        assert done.stderr == b"kvserver: option --prod not recognized: try --help\n"

    @pytest.mark.parametrize("value", ["", slow("x"), slow("-1"), slow("65536")])
    def test_port(self, tmp_path: Path, value: str) -> None:
        """
        C{--port} and C{PORT}.
        """
        command = (TWISTD, "-n", "kvserver")
        accepted = f"{value!r} is not a TCP port from 0 to 65535\n"
        printed = self.fails(tmp_path, *command, f"--port={value}")
        assert printed == f"kvserver: --port: {accepted}"
        printed = self.fails(tmp_path, *command, env=environment(PORT=value))
        assert printed == f"kvserver: PORT (environment): {accepted}"

    @pytest.mark.parametrize("value", ["localhost", slow("")])
    def test_interface(self, tmp_path: Path, value: str) -> None:
        """
        C{--interface}.
        """
        printed = self.fails(tmp_path, TWISTD, "-n", "kvserver", f"--interface={value}")
        assert printed == (
            f"kvserver: --interface: {value!r} is not an IPv4 or IPv6 address, "
            "as 127.0.0.1 or ::1\n"
        )

    @pytest.mark.parametrize(
        "option",
        [
            "max-connections=x",
            *map(slow, ["idle-timeout=-1", "write-timeout=0", "drain-timeout=0"]),
        ],
    )
    def test_number(self, tmp_path: Path, option: str) -> None:
        """
        Limits and time-outs.
        """
        name, _, value = option.partition("=")
        printed = self.fails(tmp_path, TWISTD, "-n", "kvserver", f"--{option}")
        assert printed.startswith(f"kvserver: --{name}: {value!r} is not a number of ")
        assert printed.count("\n") == 1

    def test_listen(self, tmp_path: Path) -> None:
        """
        C{--listen}.
        """
        printed = self.fails(tmp_path, TWISTD, "-n", "kvserver", "--listen=tls:tcp:0")
        assert printed == "kvserver: --listen: tls: needs --tls-certificate\n"

    def test_strayArgument(self, tmp_path: Path) -> None:
        """
        An argument.
        """
        printed = self.fails(tmp_path, TWISTD, "-n", "kvserver", "4040")
        assert printed == (
            "kvserver: unexpected argument '4040': kvserver takes options only: try --help\n"
        )

    def test_notAnEndpoint(self, tmp_path: Path) -> None:
        """
        An address that is no endpoint, with what to write for it.
        """
        printed = self.fails(tmp_path, TWISTD, "-n", "kvserver", "--listen=127.0.0.1:4043")
        assert printed == (
            "kvserver: --listen: '127.0.0.1:4043': "
            "not an endpoint: instead of '127.0.0.1:4043' write tcp:4043:interface=127.0.0.1\n"
        )

    def test_link(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        """
        A link in the place of a UNIX socket. What it leads to stays as it is.
        """
        folder = tmp_path_factory.mktemp("sockets")
        target, link = folder / "secret", folder / "echo.sock"
        target.touch(0o600)
        link.symlink_to(target)
        printed = self.fails(tmp_path, TWISTD, "-n", "kvserver", f"--listen=unix:{link}", status=1)
        assert printed.count(f"kvserver: Cannot listen on {link}: There is a symbolic link") == 1
        assert link.is_symlink()
        assert target.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "command",
        [*STARTS, slow((TWISTD, "--logfile=/dev/null", "kvserver"))],
    )
    def test_portInUse(self, tmp_path: Path, taken: int, command: tuple[str, ...]) -> None:
        """
        A port in use, by anybody on any address. The shell that starts a daemon is told as well.
        """
        printed = self.fails(tmp_path, *command, f"--port={taken}", status=1)
        line = f"kvserver: Cannot listen on port {taken}: Address already in use"
        assert printed.count(line) == 1
        if command == COMMAND:
            assert printed == f"{line}\n"

    def test_foreignInterface(self, tmp_path: Path) -> None:
        """
        An address that is not of this host (RFC 5737: nobody's).
        """
        printed = self.fails(tmp_path, TWISTD, "-n", "kvserver", "-p4040", "-i192.0.2.1", status=1)
        line = "Cannot listen on 192.0.2.1 port 4040: Cannot assign requested address"
        assert printed.count(line) == 1

    def test_privilegedPort(self, tmp_path: Path) -> None:
        """
        A port below 1024 without the right to it.
        """
        unprivileged = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        if unprivileged <= 1:
            skip("on this host no port is privileged")
        command = [TWISTD, "-n", "kvserver", "--port=1"]
        if os.getuid() == 0:
            command = [program("setpriv"), "--bounding-set=-net_bind_service", *command]
        printed = self.fails(tmp_path, *command, status=1)
        assert printed.count("Cannot listen on port 1: Permission denied") == 1


@pytest.mark.parametrize("command", STARTS)
def test_notLinux(tmp_path: Path, command: tuple[str, ...]) -> None:
    """
    Where there is no Linux one line says so, whatever is missing there.
    """
    # Twisted does not import what it thinks that another system has: it comes first.
    (tmp_path / "sitecustomize.py").write_text(
        "import select, sys\n"
        "import twisted.application.twist._twist, twisted.scripts.twistd\n"
        "import twisted.internet.reactor, twisted.scripts._twistd_unix\n"
        "sys.platform = 'darwin'\n"
        "del select.epoll\n"
        "sys.modules.update(fcntl=None, resource=None, termios=None)\n"
    )
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = environment(PYTHONPATH=os.pathsep.join(path))
    done = run(tmp_path, *command, "--port=0", env=env)
    assert done.stdout == "kvserver: needs Linux, and this is darwin\n"
    assert done.returncode == 1


class TestNoIPv6:
    """
    A kernel that has no IPv6.
    """

    @pytest.fixture
    def env(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
        """
        An environment in which Python finds no IPv6.
        """
        folder = tmp_path_factory.mktemp("noIPv6")
        (folder / "sitecustomize.py").write_text(
            "import errno, socket\n"
            "class IPv4Only(socket.socket):\n"
            "    def __init__(self, family=socket.AF_INET, *rest, **more):\n"
            "        if family == socket.AF_INET6:\n"
            "            raise OSError(errno.EAFNOSUPPORT, 'Address family not supported')\n"
            "        super().__init__(family, *rest, **more)\n"
            "socket.socket = IPv4Only\n"
        )
        path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return environment(PYTHONPATH=os.pathsep.join(path))

    def test_fallsBack(self, tmp_path: Path, env: dict[str, str]) -> None:
        """
        The daemon listens on IPv4 alone.
        """
        with Daemon(tmp_path, env=env) as daemon, connect(daemon.port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
            with pytest.raises(OSError, match=r"refused|not supported"):
                connect(daemon.port, "::1")

    def test_asked(self, tmp_path: Path, env: dict[str, str]) -> None:
        """
        Asked for IPv6, it says that there is none.
        """
        done = run(tmp_path, TWISTD, "-n", "kvserver", "-p4040", "--interface=::1", env=env)
        assert done.returncode == 1
        assert "Cannot listen on ::1 port 4040: Address family not supported" in done.stdout
        assert "Traceback" not in done.stdout
