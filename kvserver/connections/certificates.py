"""
The certificates for TLS: PEM files, checked and tried out.
"""

import errno
import os
import re
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from twisted.logger import Logger

_log = Logger(namespace="kvserver.certificates.Certificates")

_CERTIFICATE = re.compile(
    rb"-----BEGIN (CERTIFICATE|X509 CERTIFICATE)-----.*?(-----END \1-----|\Z)",
    re.S,
)

_PRIVATE_KEY = re.compile(rb"-----BEGIN [^\r\n]*PRIVATE KEY-----")

_MISMATCHES = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}
"""
OpenSSL's reasons when the key does not belong to the certificate. "No certificate assigned" is not
one of them: OpenSSL also gives it for the right key, if one of both is for RSA-PSS alone.
"""

_NO_CHECK_TIME = 0x200000
"""
OpenSSL's C{X509_V_FLAG_NO_CHECK_TIME}, for which Python has no name.
"""

_MAX_ROUNDS = 100
"""
The most rounds of a handshake in memory. It takes three, and a few more for a long chain.
"""


class BadCertificate(Exception):
    """
    A certificate or key can't be used. The message says which one and why.
    """


class _NeedsPassphrase(Exception):
    """
    A key needs a passphrase.
    """


class Certificates:
    """
    The certificate that we show to clients, and the authorities that must have signed theirs.

    @ivar context: The context for TLS on new connections.

    @ivar expiry: When our certificate expires, in seconds since the epoch.
    """

    def __init__(
        self,
        certificate: str,
        privateKey: str,
        clientCA: str | None = None,
        read: Callable[[str, str], bytes] | None = None,
    ) -> None:
        """
        @param certificate: The path of a PEM file: our certificate, followed by its chain to the
            root.

        @param privateKey: The path of a PEM file: its private key. It may be the same file.

        @param clientCA: The path of a PEM file: the authorities that must have signed the
            certificates of clients. An intermediate authority is enough. None: clients are not
            asked for a certificate.

        @param read: Reads the file of an option; by default from its path.

        @raise BadCertificate: A file can't be used.
        """
        self.paths = certificate, privateKey, clientCA
        self.files: dict[str, bytes] = {}
        self._read = read or _read
        self._certificate = certificate
        self._privateKey = privateKey
        self._clientCA = clientCA
        self.load()

    def load(self) -> None:
        """
        Read the files, for new connections.

        @raise BadCertificate: A file can't be used. What was in use before stays in use.
        """
        self.context, self.expiry = self._load()

    def _load(self) -> tuple[ssl.SSLContext, float]:
        files: dict[str, bytes] = {}

        def read(option: str, path: str) -> bytes:
            files[option] = self._read(option, path)
            return files[option]

        certificate = read("--tls-certificate", self._certificate)
        chain = _certificates("--tls-certificate", self._certificate, certificate)
        key = read("--tls-private-key", self._privateKey)
        if not _PRIVATE_KEY.search(key):
            raise BadCertificate(f"--tls-private-key: {self._privateKey!r} is no PEM file of a key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # After a FIN without a close_notify, the rest of the echo must still be sent. OpenSSL
        # before version 3 needs no option for that, and Python does not define one there.
        context.options |= ssl.OP_NO_RENEGOTIATION | getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        try:
            text = "\n".join(chain).encode()
            with _asFile(text) as certificateFile, _asFile(key) as keyFile:
                context.load_cert_chain(certificateFile, keyFile, _refusePassphrase)
            notBefore, notAfter = _tryOut(context, chain[0])
        except _NeedsPassphrase:
            raise BadCertificate(
                f"--tls-private-key: {self._privateKey!r} needs a passphrase, and must not"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None)
            if reason in _MISMATCHES:
                fault = (
                    f"--tls-private-key: {self._privateKey!r} is not the key of the certificate in "
                    f"{self._certificate!r}"
                )
            elif isinstance(error, ssl.SSLError) and reason is None:
                # OpenSSL says only "PEM lib". It must be about the key: the certificates have been
                # parsed before.
                fault = f"--tls-private-key: {self._privateKey!r} can't be read"
            else:
                fault = (
                    f"--tls-certificate: {self._certificate!r} can't be used with "
                    f"--tls-private-key: {self._privateKey!r}"
                )
            raise BadCertificate(f"{fault}: {reasonOf(error)}") from None
        if self._clientCA is not None:
            self._trust(context, self._clientCA, read("--tls-client-ca", self._clientCA))
        now = time.time()
        if now > notAfter:
            self.warn("has expired: its validity ended at {time}", notAfter)
        elif now < notBefore:
            self.warn("is not valid yet: its validity begins at {time}", notBefore)
        self.files = files
        return context, notAfter

    def _trust(self, context: ssl.SSLContext, path: str, text: bytes) -> None:
        """
        Require a client certificate that one of the authorities in the file at C{path} has signed.
        """
        trusted = _certificates("--tls-client-ca", path, text)
        for number, one in enumerate(trusted, 1):
            if not _stored(one).cert_store_stats()["x509_ca"]:
                raise BadCertificate(
                    f"--tls-client-ca: {path!r}: certificate {number} of {len(trusted)} is not "
                    "that of an authority, by its basicConstraints and keyUsage"
                )
            context.load_verify_locations(cadata=one)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_mode = ssl.CERT_REQUIRED

    def warn(self, what: str, when: float) -> None:
        """
        Log that our certificate is not valid now.

        @param what: Why.

        @param when: The time that it names, in seconds since the epoch.
        """
        _log.warn(
            "--tls-certificate: {path} " + what,
            path=self._certificate,
            time=datetime.fromtimestamp(when, timezone.utc).isoformat(),
        )

    def reload(self) -> None:
        """
        Read the files again, for new connections. If they can't be used, the old ones stay in use.
        """
        try:
            self.load()
        except BadCertificate as error:
            _log.error("The certificates stay as they were: {reason}", reason=error)
        else:
            _log.info("The certificates have been loaded again")


_SOURCE = re.compile(r"^\[\w+\] |: cadata does not contain a certificate|\s*\(_ssl\.c:\d+\)")
"""
What Python adds to OpenSSL's message.
"""


def reasonOf(error: Exception) -> str:
    """
    Return the reason that OpenSSL or the kernel gives for an error.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return _SOURCE.sub("", getattr(error, "strerror", None) or str(error))


def _read(option: str, path: str) -> bytes:
    """
    Return the content of a file. A FIFO or a terminal is refused: the event loop would wait for it.
    """
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            mode = os.fstat(opened).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                raise BadCertificate(f"{option}: {path!r} is no regular file")
            with open(opened, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(opened)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadCertificate(f"{option}: {path!r} can't be read: {reason}") from error


def _certificates(option: str, path: str, text: bytes) -> list[str]:
    """
    Return the certificates in a file, after OpenSSL has parsed each of them.
    """
    # A byte that is not ASCII is damage like any other. OpenSSL will find it.
    found = [match[0].decode("ascii", "backslashreplace") for match in _CERTIFICATE.finditer(text)]
    if not found:
        raise BadCertificate(f"{option}: {path!r} is no PEM file of a certificate")
    for number, one in enumerate(found, 1):
        if "Proc-Type:" in one:
            # OpenSSL would ask for a passphrase at the terminal, as for an encrypted key.
            raise BadCertificate(
                f"{option}: {path!r}: certificate {number} of {len(found)} is encrypted, and must "
                "not be"
            )
        try:
            _stored(one)
        except (ssl.SSLError, ValueError) as error:
            raise BadCertificate(
                f"{option}: {path!r}: certificate {number} of {len(found)} can't be read: "
                f"{reasonOf(error)}"
            ) from None
    return found


def _stored(certificate: str) -> ssl.SSLContext:
    """
    Return the context of a client that trusts this certificate alone.

    @raise ssl.SSLError: The certificate can't be parsed.

    @raise ValueError: The same.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate)
    return context


@contextmanager
def _asFile(data: bytes) -> Iterator[str]:
    """
    Yield the path of a file that exists only in memory. OpenSSL takes paths only, and it must load
    exactly the bytes that were read and checked.
    """
    with open(os.memfd_create("kvserver"), "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _refusePassphrase() -> str:
    """
    Refuse to give a passphrase. Without this, OpenSSL would ask for one at the terminal.
    """
    raise _NeedsPassphrase


def _tryOut(context: ssl.SSLContext, certificate: str) -> tuple[float, float]:
    """
    Do a handshake, in memory, with a client that trusts our certificate.

    @param certificate: Our certificate.

    @return: The start and the end of its validity, in seconds since the epoch.

    @raise ssl.SSLError: No client can be served with this context.
    """
    trusting = _stored(certificate)
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    toClient, toServer = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(toServer, toClient, server_side=True)
    client = trusting.wrap_bio(toClient, toServer)
    waiting = [client, server]
    for _ in range(_MAX_ROUNDS):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
        if not waiting:
            break
    shown = client.getpeercert() or {}
    return (
        ssl.cert_time_to_seconds(str(shown["notBefore"])),
        ssl.cert_time_to_seconds(str(shown["notAfter"])),
    )
