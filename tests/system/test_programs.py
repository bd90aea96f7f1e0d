"""
What people type: telnet, nc, ncat, socat, openssl, curl, Go, systemd-socket-activate.
"""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import LINES, ask, connect, program, slow
from tests.support.daemon import PATIENCE, TWISTD, Daemon, environment, quietPort, waitFor
from tests.support.documents import block
from tests.support.wires import Authority


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
        writer = threading.Thread(target=process.stdin.write, args=(text,), daemon=True)
        late = threading.Timer(PATIENCE, process.kill)
        for thread in writer, late:
            thread.start()
        printed = process.stdout.read(len(text))
        late.cancel()
        process.kill()
    return printed


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_opensslClient(tls: Daemon, authority: Authority, version: str) -> None:
    """
    OpenSSL's own client.
    """
    command = [program("openssl"), "s_client", "-quiet", "-verify_return_error", version]
    trust = ["-CAfile", str(authority.certificate), "-verify_quiet"]
    assert converse([*command, *trust, "-connect", f"127.0.0.1:{tls.listening[1]}"], LINES) == LINES


class Session:
    """
    A person at OpenSSL's client, which takes some letters at the begin of a line for commands.

    @ivar process: It.
    """

    def __init__(self, folder: Path, port: str, *more: str) -> None:
        """
        @param folder: Takes what it prints.

        @param more: What else it is told.
        """
        self._screen = folder / "screen"
        command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *more]
        with self._screen.open("wb") as screen:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=screen, stderr=screen
            )

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        with self.process:
            self.process.kill()

    def types(self, text: str) -> None:
        """
        Type a line.
        """
        assert self.process.stdin
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def sees(self, text: str, times: int = 1) -> None:
        """
        Wait until this has been printed so many times.
        """
        waitFor(
            lambda: self._screen.read_text("latin-1").count(text) >= times,
            f"{text!r} on the screen",
        )

    def says(self, text: str) -> None:
        """
        Type a line, and see it come back.
        """
        self.types(text)
        # Before it may stand what is half of something else.
        self.sees(f"{text}\n")

    def quits(self) -> None:
        """
        Quit.
        """
        self.types("Q")
        assert self.process.wait(PATIENCE) == 0


def test_keyUpdate(tls: Daemon, tmp_path: Path) -> None:
    """
    A client may change its key, and ask us to change ours, as often as it likes.
    """
    with Session(tmp_path, tls.listening[1], "-tls1_3") as session:
        session.says("hello")
        for number in range(10):
            # A command must be all that is read at once.
            session.types("kK"[number % 2])
            session.sees("KEYUPDATE", number + 1)
            session.says(f"{number}: hello")
        session.quits()
    assert tls.logs("is broken") == tls.logs("Traceback") == 0


def test_renegotiation(tls: Daemon, tmp_path: Path) -> None:
    """
    A client of TLS 1.2 that wants to shake hands again is refused: it is told so, and may go on, or
    go.
    """
    with Session(tmp_path, tls.listening[1], "-tls1_2") as session:
        session.says("hello")
        session.types("R")
        session.sees("no renegotiation")
        session.process.wait(PATIENCE)
    assert tls.logs("Traceback") == tls.logs("#error") == tls.logs("#critical") == 0
    waitFor(lambda: tls.descriptors() == tls.idleDescriptors, "it has left")


@pytest.mark.parametrize("mutual", [slow(False), True])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_resumption(tmp_path: Path, authority: Authority, version: str, mutual: bool) -> None:
    """
    A session is resumed, also one of a client with a certificate: whose it is stays known.
    """
    certificate, key = authority.issue("localhost")
    options = [f"--tls-certificate={certificate}", f"--tls-private-key={key}"]
    more = [version]
    if mutual:
        certificate, key = authority.issue("somebody")
        options += [f"--tls-client-ca={authority.certificate}"]
        more += ["-cert", str(certificate), "-key", str(key)]
    log = tmp_path / "access.log"
    options += ["--listen", "tcp:0", "--listen", "tls:tcp:0", f"--access-log={log}"]
    kept = str(tmp_path / "session")
    with Daemon(tmp_path, *options) as daemon:
        for state, where in ("New", "-sess_out"), ("Reused", "-sess_in"), ("Reused", "-sess_in"):
            with Session(tmp_path, daemon.listening[1], *more, where, kept) as session:
                session.says("hello")
                session.sees(f"{state}, TLSv1.")
                session.quits()
        waitFor(lambda: daemon.descriptors() == daemon.idleDescriptors, "all have left")
    subjects = [json.loads(line)["subject"] for line in log.read_text().splitlines()]
    assert subjects[1:] == ["CN=somebody" if mutual else None] * 3


def test_ncatTLS(tls: Daemon) -> None:
    """
    Nmap's netcat with TLS, which of a record of more than 8 KiB leaves the rest in OpenSSL until
    more comes.
    """
    for _ in range(5):
        assert converse([program("ncat"), "--ssl", "127.0.0.1", tls.listening[1]], LINES) == LINES


def test_socatTLS(tls: Daemon, authority: Authority) -> None:
    """
    socat with TLS, which verifies whom it speaks to, and says close_notify at its end.
    """
    address = f"OPENSSL:localhost:{tls.listening[1]},cafile={authority.certificate},pf=ip4"
    assert run([program("socat"), "-t", str(PATIENCE), "-", address], LINES) == LINES


def test_curlTLS(tls: Daemon, authority: Authority) -> None:
    """
    curl, which takes its request that comes back for an answer of HTTP/0.9.
    """
    url = f"https://localhost:{tls.listening[1]}/"
    command = [program("curl"), "--silent", "--no-buffer", "--ipv4", "--http0.9", "--http1.1"]
    command += ["--cacert", str(authority.certificate), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"GET / HTTP/1.1\r\n"
            while process.stdout.readline() != b"\r\n":
                pass
        finally:
            process.kill()


@pytest.mark.slow
def test_go(tls: Daemon, authority: Authority, tmp_path: Path) -> None:
    """
    A client in Go, which says close_notify and reads on: 20 times of 20 all comes back.
    """
    client = str(tmp_path / "client")
    source = str(Path(__file__).parent / "client.go")
    subprocess.run([program("go"), "build", "-o", client, source], cwd=tmp_path, check=True)
    command = [client, f"127.0.0.1:{tls.listening[1]}", str(authority.certificate), "100000"]
    for _ in range(20):
        assert run(command, b"") == b"all came back\n"


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
        slow((), "systemd:domain=INET:index=0"),
        slow(("--fdname=echo",), "systemd:domain=INET:index=0"),
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


def test_eachWireByHand(tmp_path: Path) -> None:
    """
    What the README shows to try TLS, a UNIX socket and the PROXY protocol answers.
    """
    program("ncat"), program("nc.openbsd", "nc")
    make, run = block("openssl req -x509").replace("\\\n", "").strip().split("\n")
    subprocess.run(shlex.split(make), cwd=tmp_path, check=True, capture_output=True)
    path = str(tmp_path / "echo.sock")
    _, _, options = re.sub(r"tcp:\d+", "tcp:0", run).partition(" kvserver ")
    options = options.replace("-l ", "--listen ").replace("/tmp/echo.sock", path)
    with Daemon(tmp_path, *shlex.split(options)) as daemon:
        _, tls, _, proxy = daemon.listening
        places = {"4443": tls, "/tmp/echo.sock": path, " 4041\n": f" {proxy}\n"}
        for line in block("echo hello | ncat --ssl").strip().split("\n"):
            command = line + "\n"
            for shown, ours in places.items():
                command = command.replace(shown, ours)
            done = subprocess.run(
                ["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=True
            )
            assert done.stdout.replace("\r", "") == "hello\n"
