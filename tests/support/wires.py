"""
The wires that a client may come by: what the daemon has to listen on, and how to connect.
"""

import contextlib
import datetime
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from tests.support.clients import HAS_IPV6, Stream, connect, needsIPv6, program
from tests.support.daemon import PATIENCE, Daemon

PROXY_V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 1024 4040\r\n"
PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + struct.pack(
    "!4s4sHH", bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), 1024, 4040
)
"""
Headers of a client at C{192.0.2.1}, port 1024.
"""


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
"""
What certificates are issued for here, and OpenSSL's RSA-PSS besides.
"""


def ecKey() -> ec.EllipticCurvePrivateKey:
    """
    A key that is quickly made.
    """
    return ec.generate_private_key(ec.SECP256R1())


def pem(
    key: PrivateKey,
    passphrase: bytes | None = None,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    """
    What a file of this key has in it.
    """
    return key.private_bytes(
        serialization.Encoding.PEM,
        form,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


class Authority:
    """
    Makes certificates, in a folder.

    @ivar certificate: The PEM file of its own.
    """

    def __init__(
        self, folder: Path, name: str = "test authority", issuer: "Authority | None" = None
    ) -> None:
        """
        @param folder: Is made if there is none.

        @param issuer: Who has signed its certificate: this one is an intermediate. None: itself.
        """
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._key = ecKey()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = folder / "authority.pem"
        signed = (issuer or self)._sign(self._name, self._key, 365, authority=True)
        self.certificate.write_bytes(signed)

    def issue(
        self,
        name: str,
        days: int = 365,
        key: PrivateKey | None = None,
        begins: int | None = None,
    ) -> tuple[Path, Path]:
        """
        Issue a certificate for C{localhost}.

        @param days: For how many more it is valid.

        @param key: Its key; None: a new one.

        @param begins: In how many days it becomes valid; None: it is, or was.

        @return: The PEM files of the certificate and its key.
        """
        key = key or ecKey()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, keyFile = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(self._sign(subject, key, days, False, begins))
        keyFile.write_bytes(pem(key))
        return certificate, keyFile

    def issuePSS(self, name: str) -> tuple[Path, Path]:
        """
        Issue a certificate for C{localhost} with a key for RSA-PSS alone, which only OpenSSL's
        program makes. Without that the test is skipped.

        @return: The PEM files of the certificate and its key.
        """
        files = {ending: str(self.folder / f"{name}.{ending}") for ending in ("pem", "key", "csr")}
        own, extensions = self.folder / "authority.key", self.folder / "extensions"
        own.write_bytes(pem(self._key))
        extensions.write_text(
            "subjectAltName=DNS:localhost\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        request = ["req", "-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048", "-nodes"]
        request += ["-subj", f"/CN={name}", "-keyout", files["key"], "-out", files["csr"]]
        sign = ["x509", "-req", "-in", files["csr"], "-out", files["pem"], "-CAcreateserial"]
        sign += ["-CA", str(self.certificate), "-CAkey", str(own), "-extfile", str(extensions)]
        for command in request, sign:
            subprocess.run([program("openssl"), *command], check=True, capture_output=True)
        return Path(files["pem"]), Path(files["key"])

    def _sign(
        self,
        subject: x509.Name,
        key: PrivateKey,
        days: int,
        authority: bool,
        begins: int | None = None,
    ) -> bytes:
        now = datetime.datetime.now(datetime.timezone.utc)
        if begins is None:
            begins = -1 if days > 0 else days - 1
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=begins))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            # RFC 5280, on which Python insists from 3.13 on.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
            )
            .add_extension(_usage(authority), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def client(
        self, identity: tuple[Path, Path] | None = None, partial: bool = False
    ) -> ssl.SSLContext:
        """
        What a client needs that trusts this authority, and shows a certificate if it has one.

        @param partial: Is it enough to trust an intermediate?
        """
        context = ssl.create_default_context(cafile=self.certificate)
        if partial:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if identity is not None:
            context.load_cert_chain(*identity)
        return context


class TLSClient:
    """
    A TLS client that one thread may send with while another receives, as they may not with an
    C{SSLSocket}. A half-close is a close_notify, without FIN.
    """

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self.raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._early = bytearray()
        self._engine, self._sending = threading.Lock(), threading.Lock()
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                break

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self.raw.sendall(data)

    def _fill(self) -> None:
        data = self.raw.recv(1 << 16)
        with self._engine:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def sendall(self, data: bytes) -> None:
        """
        Send all.
        """
        with self._sending:
            for begin in range(0, len(data), 1 << 16):
                with self._engine:
                    self.tls.write(data[begin : begin + (1 << 16)])
                    encrypted = self._outgoing.read()
                self.raw.sendall(encrypted)

    def recv(self, size: int) -> bytes:
        """
        Receive; nothing means that the other side has said close_notify.
        """
        while True:
            with self._engine:
                if self._early:
                    data = bytes(self._early[:size])
                    del self._early[:size]
                    return data
                try:
                    return self.tls.read(size)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    return b""
            self._fill()

    def shutdown(self, how: int) -> None:
        """
        Say close_notify.
        """
        with self._sending:
            with self._engine:
                # From here on OpenSSL waits for the other's close_notify: take what came before.
                with contextlib.suppress(ssl.SSLWantReadError):
                    while True:
                        self._early += self.tls.read(1 << 16)
                with contextlib.suppress(ssl.SSLWantReadError):
                    self.tls.unwrap()
                encrypted = self._outgoing.read()
            self.raw.sendall(encrypted)

    def settimeout(self, seconds: float | None) -> None:
        """
        See C{socket}.
        """
        self.raw.settimeout(seconds)

    def close(self) -> None:
        """
        Close without a word.
        """
        self.raw.close()

    def __enter__(self) -> "TLSClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Wire:
    """
    A way to the daemon.

    @ivar listen: What the daemon has to listen on.

    @ivar connect: Connects, to the port or path that it says it listens on.
    """

    listen: str
    connect: Callable[[str], Stream]


def unix(path: str) -> socket.socket:
    """
    Connect to a UNIX socket.
    """
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(path)
    return client


def after(header: bytes) -> Callable[[str], socket.socket]:
    """
    Connect as a balancer does that sends a PROXY header.
    """

    def connected(port: str) -> socket.socket:
        client = connect(int(port))
        client.sendall(header)
        return client

    return connected


def wires(folder: Path, authority: Authority) -> dict[str, Wire]:
    """
    All of them.

    @param folder: For the UNIX socket.

    @param authority: Whom the TLS clients trust.
    """
    context = authority.client()
    identity = authority.client(authority.issue("client"))
    return {
        "tcp4": Wire("tcp:0", lambda port: connect(int(port))),
        "tcp6": Wire("tcp6:0", lambda port: connect(int(port), "::1")),
        "unix": Wire(f"unix:{folder}/echo.sock", unix),
        "tls": Wire("tls:tcp:0", lambda port: TLSClient(connect(int(port)), context)),
        "mutual tls": Wire("tls:tcp:0", lambda port: TLSClient(connect(int(port)), identity)),
        "proxy v1": Wire("proxy:tcp:0", after(PROXY_V1)),
        "proxy v2": Wire("proxy:tcp:0", after(PROXY_V2)),
        "proxy tls": Wire(
            "proxy:tls:tcp:0", lambda port: TLSClient(after(PROXY_V2)(port), context)
        ),
    }


class Way:
    """
    A wire, and a daemon at its end.

    @ivar daemon: The daemon.
    """

    def __init__(self, daemon: Daemon, wire: Wire, where: str) -> None:
        self.daemon = daemon
        self._wire = wire
        self._where = where

    def connect(self) -> Stream:
        """
        One more client.
        """
        return self._wire.connect(self._where)


@contextlib.contextmanager
def opened(name: str, authority: Authority, folder: Path, *more: str) -> Iterator[Way]:
    """
    A daemon that listens at the end of that wire.

    @param more: What else it is told.
    """
    certificate, key = authority.issue("localhost")
    wire = wires(folder, authority)[name]
    options = ["--listen", "tcp:0", "--listen", wire.listen, *more]
    if "tls" in name:
        options += [f"--tls-certificate={certificate}", f"--tls-private-key={key}"]
    if name == "mutual tls":
        options += [f"--tls-client-ca={authority.certificate}"]
    with Daemon(folder, *options) as daemon:
        yield Way(daemon, wire, daemon.listening[1])


@contextlib.contextmanager
def allOpened(authority: Authority, folder: Path, *more: str) -> Iterator[dict[str, Way]]:
    """
    All wires at once. They end at one daemon, and the one with mutual TLS at another, for it asks
    all its TLS clients for a certificate.

    @param more: What else the daemons are told.
    """
    certificate, key = authority.issue("localhost")
    more += (f"--tls-certificate={certificate}", f"--tls-private-key={key}")
    those = {name: w for name, w in wires(folder, authority).items() if name != "mutual tls"}
    if not HAS_IPV6:
        del those["tcp6"]
    options = ["--listen", "tcp:0"]
    for wire in those.values():
        options += ["--listen", wire.listen]
    (folder / "all").mkdir()
    (folder / "mutual").mkdir()
    with (
        Daemon(folder / "all", *options, *more) as daemon,
        opened("mutual tls", authority, folder / "mutual", *more) as mutual,
    ):
        ways = {
            name: Way(daemon, wire, where)
            for (name, wire), where in zip(those.items(), daemon.listening[1:], strict=True)
        }
        yield ways | {"mutual tls": mutual}


_NAMES = (
    *("tcp4", "tcp6", "unix", "tls", "mutual tls"),
    *("proxy v1", "proxy v2", "proxy tls"),
)

_QUICK = ("tcp4", "proxy tls")

WIRES = [pytest.param(name, marks=needsIPv6 if name == "tcp6" else ()) for name in _NAMES]

SOME_WIRES = [
    pytest.param(
        name,
        marks=[
            *([needsIPv6] if name == "tcp6" else []),
            *([] if name in _QUICK else [pytest.mark.slow]),
        ],
    )
    for name in _NAMES
]
"""
All wires, of which most are tried by CI alone.
"""
