"""
TLS, by the real daemon: who gets in, who is told why not, and what happens to who is silent.
"""

import contextlib
import fcntl
import os
import pty
import select
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.clients import (
    LINES,
    Sender,
    ask,
    connect,
    exchange,
    manyDescriptors,
    receive,
    silent,
    slow,
)
from tests.support.daemon import (
    PATIENCE,
    TWISTD,
    Daemon,
    Stopwatch,
    environment,
    quietPort,
    waitFor,
)
from tests.support.wires import Authority, TLSClient, ecKey, pem
from tests.system.test_operation import samples
from tests.system.test_twistd import run


def options(certificate: Path, key: Path, *more: str) -> list[str]:
    """
    What a daemon needs for TLS; before it there is a plain listener.
    """
    return [
        *("--listen", "tcp:0", "--listen", "tls:tcp:0"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}", *more),
    ]


@pytest.fixture
def identity(authority: Authority) -> tuple[Path, Path]:
    """
    The daemon's certificate and key.
    """
    return authority.issue("localhost")


@pytest.fixture
def daemon(tmp_path: Path, identity: tuple[Path, Path]) -> Iterator[Daemon]:
    """
    A daemon with TLS.
    """
    with Daemon(tmp_path, *options(*identity)) as daemon:
        yield daemon


def open_(daemon: Daemon, context: ssl.SSLContext) -> TLSClient:
    """
    Connect by TLS.
    """
    return TLSClient(connect(int(daemon.listening[1])), context)


def test_log(daemon: Daemon) -> None:
    """
    The log says what is listened on for what.
    """
    assert daemon.logs(f"Accepting connections on port {daemon.listening[1]} (tls)") == 1


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_versions(daemon: Daemon, authority: Authority, version: str) -> None:
    """
    TLS 1.2 and 1.3 are spoken.
    """
    context = authority.client()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with open_(daemon, context) as client:
        assert client.tls.version() == version.replace("_", ".")
        assert ask(client, b"hello\n") == b"hello\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_oldVersion(daemon: Daemon, authority: Authority) -> None:
    """
    What is older is not; that is logged, once for each source.
    """
    context = authority.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    for _ in range(3):
        with pytest.raises(ssl.SSLError):
            open_(daemon, context)
    daemon.waitForLog("TLS handshake with 127.0.0.1 failed: unsupported protocol")
    assert daemon.logs("TLS handshake") == 1


def test_noTLS(daemon: Daemon) -> None:
    """
    Who speaks no TLS is not answered, and logged.
    """
    with connect(int(daemon.listening[1])) as client:
        client.sendall(b"hello\n" * 10)
        while client.recv(1000):
            pass
    daemon.waitForLog("TLS handshake with 127.0.0.1 failed: ")


def test_mutual(tmp_path: Path, authority: Authority, identity: tuple[Path, Path]) -> None:
    """
    With an authority for clients only those get in that it has signed; the others are told by an
    alert, and the log says why.
    """
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger", "a stranger").issue("stranger")
    trusted = f"--tls-client-ca={authority.certificate}"
    with Daemon(tmp_path, *options(*identity, trusted)) as daemon:
        with open_(daemon, authority.client(authority.issue("client"))) as client:
            assert ask(client, b"hello\n") == b"hello\n"
        for context, alert, logged in (
            (authority.client(), "CERTIFICATE_REQUIRED", "peer did not return a certificate"),
            (authority.client(stranger), "UNKNOWN_CA", "certificate verify failed"),
        ):
            # Once a minute for each source: this is another one.
            raw = socket.create_connection(
                ("127.0.0.1", int(daemon.listening[1])),
                PATIENCE,
                source_address=("127.0.0.9" if alert == "UNKNOWN_CA" else "127.0.0.8", 0),
            )
            with pytest.raises(ssl.SSLError, match=alert), TLSClient(raw, context) as client:
                ask(client, b"hello\n")
            daemon.waitForLog(f"failed: {logged}")
        with connect(daemon.port) as plain:
            assert ask(plain, b"hello\n") == b"hello\n"
        assert daemon.logs("Traceback") == 0


def test_unansweredClose(tmp_path: Path, authority: Authority, identity: tuple[Path, Path]) -> None:
    """
    A peer that never answers our close_notify is aborted.
    """
    with (
        Daemon(tmp_path, *options(*identity, "--idle-timeout=1")) as daemon,
        open_(daemon, authority.client()) as client,
    ):
        assert ask(client, b"hello\n") == b"hello\n"
        assert client.recv(1) == b""
        assert daemon.descriptors() == daemon.idleDescriptors + 1
        waitFor(lambda: daemon.descriptors() == daemon.idleDescriptors, "it is aborted")


def test_endWithoutCloseNotify(daemon: Daemon, authority: Authority) -> None:
    """
    A client that sends FIN without a close_notify gets back everything, too.
    """
    text = LINES + b"the end"
    for _ in range(20):
        with open_(daemon, authority.client()) as client:
            sender = Sender(client, [text], lambda: client.raw.shutdown(socket.SHUT_WR))
            assert receive(client, 1 << 40) == text
            sender.join()


def test_tls12(daemon: Daemon, authority: Authority) -> None:
    """
    With TLS 1.2 nothing is lost at the end, either.
    """
    context = authority.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    text = LINES + b"the end"
    for _ in range(20):
        with open_(daemon, context) as client:
            assert exchange(client, [text]) == text


def test_echoReadLate(daemon: Daemon, authority: Authority) -> None:
    """
    A client that has said close_notify may take its time to read its echo.
    """
    with open_(daemon, authority.client()) as client:
        sender = Sender(client, [LINES] * 3)
        waitFor(sender.isStuck, "the daemon reads no more")
        # Enough is read for the client to send its last, and no more.
        came = 0
        while sender.is_alive():
            came += len(client.recv(1 << 16))
        time.sleep(7)
        assert came + len(receive(client, 1 << 40)) == 3 * len(LINES)


def test_brokenRecord(daemon: Daemon, authority: Authority) -> None:
    """
    A record that is none ends the connection, also when the daemon waits for its echo to be read.
    """
    for _ in range(3):
        with open_(daemon, authority.client()) as client:
            with client._engine:
                client.tls.write(b"x" * 65_000)
                client.tls.write(b"x" * 12_000 + b"\n")
                encrypted = client._outgoing.read()
            client.raw.sendall(encrypted + b"\x17\x03\x03\x00\x20" + bytes(32))
            time.sleep(0.2)
    waitFor(lambda: daemon.descriptors() == daemon.idleDescriptors, "all connections are closed")


def test_slowRecord(daemon: Daemon, authority: Authority) -> None:
    """
    A client in the middle of a record is not at rest.
    """
    with open_(daemon, authority.client()) as client:
        with client._engine:
            client.tls.write(b"x" * 15_999 + b"\n")
            encrypted = client._outgoing.read()
        for begin in range(0, len(encrypted), 1_000):
            client.raw.sendall(encrypted[begin : begin + 1_000])
            time.sleep(0.1)
            if begin == 3_000:
                daemon.process.send_signal(signal.SIGTERM)
        assert receive(client, 16_000) == b"x" * 15_999 + b"\n"


def test_stalledHandshakes(daemon: Daemon, authority: Authority) -> None:
    """
    1,000 clients that never begin the handshake are gone after its time-out, and others are served
    meanwhile.
    """
    with manyDescriptors(3_000), ExitStack() as stack:
        poll = select.poll()
        begun: dict[int, tuple[float, Stopwatch]] = {}
        for _ in range(1_000):
            begin, lives = time.monotonic(), Stopwatch(daemon)
            client = stack.enter_context(connect(int(daemon.listening[1])))
            begun[client.fileno()] = begin, lives
            poll.register(client, select.POLLIN)
        while begun:
            for descriptor, _ in poll.poll(100):
                poll.unregister(descriptor)
                begin, lives = begun.pop(descriptor)
                assert time.monotonic() - begin >= 10
                assert lives.seconds() < 13
            with open_(daemon, authority.client()) as other:
                assert ask(other, b"hello\n") == b"hello\n"
    assert daemon.logs("TLS handshake with 127.0.0.1 failed: not done within 10 s") == 1


@pytest.mark.slow
def test_stalledCostNothing(daemon: Daemon, authority: Authority) -> None:
    """
    1,000 handshakes and 1,000 records that have come in part cost no CPU.
    """
    with manyDescriptors(6_000), ExitStack() as stack:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hello = authority.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            hello.do_handshake()
        flight = outgoing.read()
        for _ in range(1_000):
            client = stack.enter_context(open_(daemon, authority.client()))
            with client._engine:
                client.tls.write(b"hello\n")
                encrypted = client._outgoing.read()
            client.raw.sendall(encrypted[:-1])
        for _ in range(1_000):
            raw = stack.enter_context(connect(int(daemon.listening[1])))
            raw.sendall(flight[:-1])
        waitFor(lambda: daemon.descriptors() == daemon.idleDescriptors + 2_000, "all are connected")
        with open_(daemon, authority.client()) as other:
            assert ask(other, b"hello\n") == b"hello\n"
        begin, before = time.monotonic(), daemon.cpu()
        time.sleep(2)
        assert daemon.cpu() - before < 0.05 * 1e9 * (time.monotonic() - begin)


def test_handshakeDuringDrain(daemon: Daemon, authority: Authority) -> None:
    """
    TERM in the middle of a handshake: it may end, and is served.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    flight = outgoing.read()
    with connect(int(daemon.listening[1])) as raw:
        raw.sendall(flight[:100])
        waitFor(lambda: daemon.descriptors() > daemon.idleDescriptors, "it is accepted")
        time.sleep(0.5)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.waitForLog("Draining 1 connection,")
        assert silent(raw, 1)
        raw.sendall(flight[100:])
        while True:
            incoming.write(raw.recv(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
        tls.write(b"hello\n")
        raw.sendall(outgoing.read())
        received = b""
        while chunk := raw.recv(1 << 16):
            incoming.write(chunk)
            with contextlib.suppress(ssl.SSLWantReadError):
                received += tls.read()
        assert received == b"hello\n"
    assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
    assert daemon.logs("aborted") == 0


def test_recordDuringDrain(daemon: Daemon, authority: Authority) -> None:
    """
    TERM in the middle of a record: the rest may take its time.
    """
    with open_(daemon, authority.client()) as client:
        assert ask(client, b"hello\n") == b"hello\n"
        with client._engine:
            client.tls.write(b"is it me\n")
            encrypted = client._outgoing.read()
        client.raw.sendall(encrypted[:10])
        time.sleep(0.5)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.waitForLog("Draining 1 connection,")
        assert silent(client.raw, 1)
        client.raw.sendall(encrypted[10:])
        assert receive(client, 100) == b"is it me\n"
    assert daemon.process.wait(PATIENCE) == -signal.SIGTERM
    assert daemon.logs("aborted") == 0


def test_metrics(tmp_path: Path, authority: Authority) -> None:
    """
    The metrics have the end of validity, also of what is loaded later. What they count never goes
    down, also for a client with short lines that reads slowly.
    """
    expiry = "kvserver_tls_certificate_expiry_timestamp_seconds"
    names = [f"kvserver_{name}_total" for name in ("lines", "received_bytes", "sent_bytes")]
    port = quietPort()
    identity = authority.issue("measured", days=30)
    with Daemon(tmp_path, *options(*identity), f"--metrics=tcp:{port}") as daemon:
        with open_(daemon, authority.client()) as client:
            count = 300_000
            sender = Sender(client, [b"x\n" * 500] * (count // 500))
            waitFor(sender.isStuck, "the daemon reads no more")
            before = dict.fromkeys(names, 0.0)
            came = 0
            while came < 2 * count:
                now = samples(port)
                assert all(now[name] >= before[name] for name in names), (before, now)
                assert now[names[2]] <= now[names[1]] <= 2 * count + len(b"hello\n")
                before = now
                came += len(receive(client, min(50_000, 2 * count - came)))
            assert abs(before[expiry] - time.time() - 30 * 86_400) < 60
        waitFor(lambda: samples(port)["kvserver_connections"] == 0, "it has left")
        now = samples(port)
        assert [now[name] for name in names] == [count + 1, 2 * count + 6, 2 * count + 6]
        authority.issue("measured", days=60)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.waitForLog("The certificates have been loaded again")
        assert abs(samples(port)[expiry] - time.time() - 60 * 86_400) < 60


def test_noExpiryWithoutTLS(tmp_path: Path) -> None:
    """
    Without TLS there is no such metric.
    """
    port = quietPort()
    with Daemon(tmp_path, "--port=0", f"--metrics=tcp:{port}"):
        assert not [name for name in samples(port) if "tls" in name]


def serial(client: TLSClient) -> object:
    """
    What tells the certificate that the daemon has shown from others.
    """
    certificate = client.tls.getpeercert()
    assert certificate
    return certificate["serialNumber"]


def test_reload(daemon: Daemon, authority: Authority, identity: tuple[Path, Path]) -> None:
    """
    HUP loads new certificates for new connections, and those that there are go on. Files that can't
    be used leave things as they are.
    """
    context = authority.client()
    stop = threading.Event()
    failures: list[Exception] = []
    rounds: list[int] = []

    def load() -> None:
        try:
            with open_(daemon, context) as client:
                while not stop.is_set():
                    assert ask(client, b"hello\n") == b"hello\n"
                    rounds.append(1)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(20)]
    for thread in threads:
        thread.start()
    with open_(daemon, context) as old:
        first = serial(old)
        authority.issue("localhost")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.waitForLog("The certificates have been loaded again")
        with open_(daemon, context) as new:
            second = serial(new)
        assert second != first
        for path, broken in (identity[0], b"nonsense"), (identity[1], b""):
            good = path.read_bytes()
            path.write_bytes(broken)
            before = daemon.logs("The certificates stay as they were: --tls-")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.waitForLog("The certificates stay as they were: --tls-", before + 1)
            with open_(daemon, context) as new:
                assert serial(new) == second
            path.write_bytes(good)
        assert ask(old, b"still here\n") == b"still here\n"
    count = len(rounds)
    waitFor(lambda: len(rounds) > count + 100, "the load goes on")
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []


def test_expired(tmp_path: Path, authority: Authority) -> None:
    """
    A certificate that has expired is a warning.
    """
    certificate, key = authority.issue("expired", days=-1)
    with Daemon(tmp_path, *options(certificate, key)) as daemon:
        assert daemon.logs(f"--tls-certificate: {certificate} has expired") == 1


@pytest.mark.slow
def test_wrongFiles(tmp_path: Path, authority: Authority, identity: tuple[Path, Path]) -> None:
    """
    Files that can't be used are named, with the reason, before anything listens.
    """
    certificate, key = identity
    _, otherKey = authority.issue("other")
    missing = tmp_path / "missing"
    for arguments, line in (
        (
            (missing, key),
            f"--tls-certificate: '{missing}' can't be read: No such file or directory",
        ),
        ((tmp_path, key), f"--tls-certificate: '{tmp_path}' can't be read: Is a directory"),
        ((key, key), f"--tls-certificate: '{key}' is no PEM file of a certificate"),
        ((certificate, missing), f"--tls-private-key: '{missing}' can't be read: No such file"),
        ((certificate, certificate), f"--tls-private-key: '{certificate}' is no PEM file of a key"),
        ((certificate, otherKey), f"--tls-private-key: '{otherKey}' is not the key of the cert"),
        (
            (certificate, key, f"--tls-client-ca={key}"),
            f"--tls-client-ca: '{key}' is no PEM file of a certificate",
        ),
    ):
        done = run(tmp_path, TWISTD, "-n", "kvserver", *options(*arguments), env=environment())
        assert done.returncode == 1
        assert done.stdout.startswith(f"kvserver: {line}")
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("which", ["key", slow("certificate"), slow("clients")])
def test_passphraseAtTerminal(tmp_path: Path, authority: Authority, which: str) -> None:
    """
    Nobody is asked for a passphrase, also if there is somebody at a terminal: there is a line, and
    an end.
    """
    key = ecKey()
    certificate, keyFile = authority.issue("one", key=key)
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate.read_bytes())
    encrypted = (
        b"Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n"
    )
    if which == "key":
        keyFile.write_bytes(pem(key, b"secret"))
    else:
        path = certificate if which == "certificate" else trusted
        first, rest = path.read_bytes().split(b"\n", 1)
        path.write_bytes(first + b"\n" + encrypted + rest)
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [
            *(TWISTD, "-n", "--pidfile=", "kvserver"),
            *options(certificate, keyFile, f"--tls-client-ca={trusted}"),
        ],
        cwd=tmp_path,
        env=environment(),
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        # It is the terminal that /dev/tty is.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(end)
    try:
        assert process.wait(PATIENCE) == 1
        screen = os.read(terminal, 1 << 16).decode()
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert screen.startswith("kvserver: --tls-")
    assert screen.count("\n") == 1


BLOCKED = ("OpenSSL", "cryptography", "service_identity", "cffi", "idna")
"""
What Twisted needs for TLS, and we do not.
"""


def test_standardLibrary(tmp_path: Path, authority: Authority, identity: tuple[Path, Path]) -> None:
    """
    TLS needs nothing that is not Python's own.
    """
    blocks = "".join(f"sys.modules[{name!r}] = None\n" for name in BLOCKED)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{blocks}")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    env = environment(PYTHONPATH=path)
    imported = run(tmp_path, sys.executable, "-c", "import OpenSSL", env=env)
    assert "ModuleNotFoundError" in imported.stdout
    trusted = f"--tls-client-ca={authority.certificate}"
    with Daemon(tmp_path, *options(*identity, trusted), env=env) as daemon:
        with open_(daemon, authority.client(authority.issue("client"))) as client:
            assert ask(client, b"hello\n") == b"hello\n"
        assert daemon.logs("Traceback") == 0
