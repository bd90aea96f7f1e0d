"""
What people type: telnet, nc, ncat, socat, openssl, curl, systemd-socket-activate.
"""

import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import LINES, ask, connect, program
from tests.daemon import PATIENCE, TWISTD, Daemon, environment, quietPort, waitFor
from tests.wires import Authority


class Telnet:
    """
    A person at a terminal, with telnet.
    """

    def __init__(self, port: int) -> None:
        """
        @param port: The port on 127.0.0.1 to connect to.
        """
        self._terminal, end = pty.openpty()
        self._process = subprocess.Popen(
            [program("telnet"), "127.0.0.1", str(port)],
            stdin=end,
            stdout=end,
            stderr=end,
            env=environment(LC_ALL="C"),
            start_new_session=True,
        )
        os.close(end)
        self.screen = ""
        self.sees("Escape character is '^]'.\r\n")

    def types(self, text: str) -> None:
        """
        Type a line.
        """
        os.write(self._terminal, text.encode() + b"\r")

    def sees(self, text: str) -> None:
        """
        Wait until this is what has come on the screen since the last look.
        """
        deadline = time.monotonic() + PATIENCE
        os.set_blocking(self._terminal, False)
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.screen!r}"
            try:
                self.screen += os.read(self._terminal, 4096).decode()
            except BlockingIOError:
                time.sleep(0.005)
        _, _, self.screen = self.screen.partition(text)

    def says(self, text: str) -> None:
        """
        Type a line, see it typed, and see it come back.
        """
        self.types(text)
        self.sees(f"{text}\r\n{text}\r\n")

    def quits(self) -> None:
        """
        Escape, and quit.
        """
        os.write(self._terminal, b"\x1d")
        self.sees("telnet> ")
        self.types("quit")
        assert self._process.wait(PATIENCE) == 0
        os.close(self._terminal)


def run(command: list[str], text: bytes) -> bytes:
    """
    What a program prints, when this is its standard input.
    """
    return subprocess.run(
        command, input=text, stdout=subprocess.PIPE, timeout=PATIENCE, check=True
    ).stdout


def test_telnetSessions(daemon: Daemon) -> None:
    """
    The sessions of the guide: one client; two at once; one that quits without disturbing the other.
    """
    first = Telnet(daemon.port)
    first.says("hello")
    first.says("is it me")
    second = Telnet(daemon.port)
    second.says("hello?")
    first.says("you are looking for?")
    second.says("HELLOOOOOO?")
    second.quits()
    first.says("still here")
    first.quits()


@pytest.mark.parametrize("text", [LINES, b"hello\n", b"hello"], ids=["seq", "line", "tail"])
def test_nc(daemon: Daemon, text: bytes) -> None:
    """
    C{nc -N}, which sends FIN after its input, gets everything back: 20 times of 20.
    """
    command = [program("nc.openbsd", "nc"), "-N", "127.0.0.1", str(daemon.port)]
    lost = [number for number in range(20) if run(command, text) != text]
    assert lost == []


def test_ncat(daemon: Daemon) -> None:
    """
    Nmap's netcat sends FIN by itself.
    """
    assert run([program("ncat"), "127.0.0.1", str(daemon.port)], LINES) == LINES


def test_socat(daemon: Daemon) -> None:
    """
    socat sends FIN, and then waits up to C{-t} seconds for the rest.
    """
    address = f"TCP:127.0.0.1:{daemon.port}"
    assert run([program("socat"), "-t", str(PATIENCE), "-", address], LINES) == LINES


@pytest.fixture(scope="module")
def tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """
    A daemon with TLS on its second port.
    """
    certificate, key = authority.issue("localhost")
    with Daemon(
        tmp_path_factory.mktemp("tls"),
        *("--listen", "tcp:0", "--listen", "tls:tcp:0"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
    ) as daemon:
        yield daemon


def converse(command: list[str], text: bytes) -> bytes:
    """
    What a program prints that is told this, and kept waiting until as much has come back: some end
    with their input, and take no notice of what is still to come.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        writer = threading.Thread(target=process.stdin.write, args=(text,))
        writer.start()
        printed = process.stdout.read(len(text))
        writer.join()
        process.kill()
    return printed


def test_opensslClient(tls: Daemon, authority: Authority) -> None:
    """
    OpenSSL's own client.
    """
    command = [program("openssl"), "s_client", "-quiet", "-verify_return_error"]
    trust = ["-CAfile", str(authority.certificate), "-verify_quiet"]
    assert converse([*command, *trust, "-connect", f"127.0.0.1:{tls.listening[1]}"], LINES) == LINES


def test_ncatTLS(tls: Daemon) -> None:
    """
    Nmap's netcat with TLS.
    """
    assert converse([program("ncat"), "--ssl", "127.0.0.1", tls.listening[1]], LINES) == LINES


def test_socatTLS(tls: Daemon, authority: Authority) -> None:
    """
    socat with TLS, which verifies whom it speaks to, and says close_notify at its end.
    """
    address = f"OPENSSL:localhost:{tls.listening[1]},cafile={authority.certificate},pf=ip4"
    assert run([program("socat"), "-t", str(PATIENCE), "-", address], LINES) == LINES


def test_curl(daemon: Daemon) -> None:
    """
    The telnet of curl.
    """
    command = [program("curl"), "--silent", "--no-buffer", f"telnet://127.0.0.1:{daemon.port}"]
    assert converse(command, LINES) == LINES


def test_socatUNIX(tmp_path: Path) -> None:
    """
    A UNIX socket; a daemon that is killed leaves its path behind, which does not stop the next one,
    but the path of a living one does.
    """
    where = tmp_path / "echo.sock"
    options = ("--listen", "tcp:0", "--listen", f"unix:{where}")
    command = [program("socat"), "-t", str(PATIENCE), "-", f"UNIX-CONNECT:{where}"]
    with Daemon(tmp_path, *options) as daemon:
        assert daemon.listening[1] == str(where)
        assert run(command, LINES) == LINES
        daemon.stop(signal.SIGKILL)
    assert where.exists()
    with Daemon(tmp_path, *options) as daemon:
        assert run(command, LINES) == LINES
        second = subprocess.run(
            [TWISTD, "-n", "--pidfile=", "kvserver", "--listen", f"unix:{where}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
        assert second.returncode == 1
        assert f"Cannot listen on {where}: Address already in use".encode() in second.stdout
        assert run(command, LINES) == LINES
    assert not where.exists()


@pytest.mark.parametrize(
    ("names", "listen"),
    [
        ((), "systemd:domain=INET:index=0"),
        (("--fdname=echo",), "systemd:domain=INET:index=0"),
        (("--fdname=echo",), "systemd:name=echo"),
    ],
)
def test_socketActivate(tmp_path: Path, names: tuple[str, ...], listen: str) -> None:
    """
    systemd-socket-activate, with names and without: the client that starts the daemon is answered.
    """
    activate = program("systemd-socket-activate")
    port = quietPort()
    command = [activate, f"--listen=127.0.0.1:{port}", *names]
    daemon = [TWISTD, "-n", "--pidfile=", "kvserver", f"--listen={listen}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *daemon], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        waitFor(lambda: "Listening on" in (tmp_path / "log").read_text(), "it listens")
        for _ in range(2):
            with connect(port) as client:
                assert ask(client, b"hello\n") == b"hello\n"
        assert "Accepting connections on port" in (tmp_path / "log").read_text()
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM
