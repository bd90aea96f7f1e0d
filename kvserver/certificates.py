"""
TLS, of one end of which the echo contract holds: what the peer sends before its close_notify comes
back.
"""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.ssl import Certificate as TrustedCertificate
from twisted.internet.ssl import CertificateOptions, TLSVersion, trustRootFromCertificates
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.connections import Connections
from kvserver.protocol import EchoProtocol
from kvserver.record import Ending
from kvserver.transport import Transport

HANDSHAKE_TIMEOUT = 10.0
"""
How long a client may take for the handshake, in seconds.
"""

CLOSE_TIMEOUT = 5.0
"""
How long a client may take to answer our close_notify, in seconds.
"""


class BadCertificate(Exception):
    """
    A certificate or key can't be used. Says which, and why.
    """


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """
    What we show to clients, and what we ask them to show.
    """

    _log = Logger()

    def __init__(self, certificate: str, privateKey: str, clientCA: str | None = None) -> None:
        """
        @param certificate: A PEM file: our certificate, and those that lead from it to the root.

        @param privateKey: A PEM file: its key.

        @param clientCA: A PEM file: who must have signed the certificate that a client shows. None:
            no client is asked for one.

        @raise BadCertificate: One of them can't be used.
        """
        self._certificate = certificate
        self._privateKey = privateKey
        self._clientCA = clientCA
        self._context = self._load()

    def _load(self) -> SSL.Context:
        chain = _certificates("--tls-certificate", self._certificate)
        if chain[0].has_expired():
            self._log.warn("--tls-certificate: {path} has expired", path=self._certificate)
        key = _read("--tls-private-key", self._privateKey)
        try:
            loaded: Any = load_pem_private_key(key, None)
            privateKey = crypto.PKey.from_cryptography_key(loaded)
        except Exception:
            raise BadCertificate(
                f"--tls-private-key: {self._privateKey!r} is no PEM file of a key that needs no "
                "passphrase"
            ) from None
        trust = None
        if self._clientCA is not None:
            trust = trustRootFromCertificates(
                TrustedCertificate(one) for one in _certificates("--tls-client-ca", self._clientCA)
            )
        try:
            context = CertificateOptions(
                privateKey=privateKey,
                certificate=chain[0],
                extraCertChain=chain[1:],
                raiseMinimumTo=TLSVersion.TLSv1_2,
                trustRoot=trust,
            ).getContext()
            context.check_privatekey()
        except (SSL.Error, ValueError) as error:
            raise BadCertificate(
                f"--tls-private-key: {self._privateKey!r} is not the key of the certificate in "
                f"{self._certificate!r}, or OpenSSL does not accept them: {_reasons(error)}"
            ) from None
        except MemoryError:
            raise BadCertificate(
                "--listen: tls: pyOpenSSL needs memory that is both written and executed, "
                "which this process is denied (systemd: MemoryDenyWriteExecute=)"
            ) from None
        assert isinstance(context, SSL.Context)
        return context

    def reload(self) -> None:
        """
        Read the files again, for the connections from now on. Files that can't be used are not.
        """
        try:
            self._context = self._load()
        except BadCertificate as error:
            self._log.error("The certificates stay as they were: {reason}", reason=error)
        else:
            self._log.info("The certificates have been loaded again")

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> "_Session":
        """
        See L{IOpenSSLServerConnectionCreator}.
        """
        assert isinstance(tlsProtocol, TLSLayer)
        return _Session(self._context, tlsProtocol)


def _reasons(error: Exception) -> str:
    """
    What OpenSSL says.
    """
    if error.args and isinstance(error.args[0], list):
        return ", ".join(reason for _, _, reason in error.args[0])
    return str(error)


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadCertificate(f"{option}: {path!r} can't be read: {reason}") from error


def _certificates(option: str, path: str) -> list[crypto.X509]:
    try:
        chain = load_pem_x509_certificates(_read(option, path))
    except ValueError:
        raise BadCertificate(f"{option}: {path!r} is no PEM file of a certificate") from None
    return [crypto.X509.from_cryptography(certificate) for certificate in chain]


class _Session(SSL.Connection):
    """
    Tells when the handshake is over, and when the peer has said that it will send no more: Twisted
    has no public way to hear of the second before it has closed.
    """

    def __init__(self, context: SSL.Context, layer: "TLSLayer") -> None:
        super().__init__(context, None)
        self._layer = layer

    def do_handshake(self) -> None:
        """
        Go on with the handshake.
        """
        try:
            super().do_handshake()
        except SSL.WantReadError:
            raise
        except SSL.Error as error:
            self._layer.handshakeFailed(error)
            raise
        self._layer.handshakeDone(self.get_protocol_version_name(), self._subject())

    def _subject(self) -> str | None:
        """
        That of the client's certificate, if it has shown one.
        """
        certificate = self.get_peer_certificate()
        if certificate is None:
            return None
        try:
            return certificate.to_cryptography().subject.rfc4514_string()
        except ValueError:
            # OpenSSL takes names in encodings that this library does not.
            return None

    def recv(self, bufsiz: int, flags: int | None = None) -> bytes:
        """
        Receive.
        """
        try:
            return super().recv(bufsiz, flags)
        except SSL.ZeroReturnError:
            self._layer.endOfInput()
            raise
        except SSL.WantReadError:
            raise
        except SSL.Error as error:
            self._layer.broken(error)
            raise


@implementer(IHalfCloseableProtocol)
class TLSLayer(TLSMemoryBIOProtocol):
    """
    The TLS of one connection. It lets the protocol above it send its last bytes when the peer has
    sent its own, by close_notify or by FIN.

    @ivar received: How many bytes have come in, as they are on the wire.
    """

    factory: "TLSFactory"
    transport: Transport
    wrappedProtocol: EchoProtocol
    _handshake: IDelayedCall | None = None
    _close: IDelayedCall | None = None
    _ended = False
    _lost = False
    received = 0

    def makeConnection(self, transport: Any) -> None:
        """
        Begin with the handshake.
        """
        super().makeConnection(transport)
        if self.connected:
            self._handshake = self.factory.reactor.callLater(HANDSHAKE_TIMEOUT, self._late)

    def dataReceived(self, data: bytes) -> None:
        """
        Decrypt.
        """
        self.received += len(data)
        # Each line may come in a record of its own, and go back in one; not each in a segment.
        self.transport.cork()
        try:
            super().dataReceived(data)
        finally:
            self.transport.uncork()

    def handshakeDone(self, version: str, subject: str | None) -> None:
        """
        The handshake is over.

        @param version: The version of TLS that was agreed on.

        @param subject: That of the client's certificate, if it has shown one.
        """
        self.transport.record.tls = version
        self.transport.record.subject = subject
        if self._handshake is not None and self._handshake.active():
            self._handshake.cancel()

    def handshakeFailed(self, error: SSL.Error) -> None:
        """
        The handshake has failed; the peer is told by an alert.
        """
        self.transport.record.ends(Ending.HANDSHAKE_FAILED)
        self.factory.connections.warnOfSource(
            self.getPeer(),
            "TLS handshake with {source} failed: {reason}",
            reason=_reasons(error),
        )

    def broken(self, error: SSL.Error) -> None:
        """
        What the peer has sent can't be decrypted. Twisted closes now, which a transport does not do
        while it has a producer.
        """
        if self._lost:
            # Twisted has looked whether there was more when the connection was gone already.
            return
        self.transport.record.ends(Ending.RESET)
        self.factory.connections.warnOfSource(
            self.getPeer(), "TLS with {source} is broken: {reason}", reason=_reasons(error)
        )
        self.unregisterProducer()

    def _late(self) -> None:
        self.transport.record.ends(Ending.HANDSHAKE_FAILED)
        self.factory.connections.warnOfSource(
            self.getPeer(),
            "TLS handshake with {source} failed: {reason}",
            reason=f"not done within {HANDSHAKE_TIMEOUT:g} s",
        )
        self.abortConnection()

    def endOfInput(self) -> None:
        """
        The peer will send no more.
        """
        if not self._ended:
            self._ended = True
            record = self.transport.record
            if record.tls is None and self.received:
                record.ends(Ending.HANDSHAKE_FAILED)
            else:
                # Without a byte it was a health check.
                record.ends(Ending.CLIENT_CLOSED)
            self.wrappedProtocol.readConnectionLost()

    def readConnectionLost(self) -> None:
        """
        The peer has sent FIN, be it after a close_notify or without one.
        """
        self.endOfInput()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """
        Our own half was closed alone. That never happens.
        """

    def loseConnection(self) -> None:
        """
        Say close_notify, and wait for the peer's, but not for ever.
        """
        super().loseConnection()
        # If it has said it already, we wait for our echo to be read: that has its own time-out.
        if self.connected and self._close is None and not self._ended:
            self._close = self.factory.reactor.callLater(CLOSE_TIMEOUT, self.abortConnection)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone.
        """
        self._lost = True
        super().connectionLost(reason)
        for call in self._handshake, self._close:
            if call is not None and call.active():
                call.cancel()


class TLSFactory(TLSMemoryBIOFactory):
    """
    Puts TLS under the protocols of another factory.
    """

    protocol = TLSLayer

    def __init__(
        self,
        reactor: Any,
        wrapped: Factory,
        connections: Connections,
        certificates: Certificates,
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param wrapped: Builds the protocols.

        @param connections: Logs the handshakes that fail.

        @param certificates: What we show.
        """
        super().__init__(certificates, False, wrapped)
        self.reactor = reactor
        self.connections = connections

    def buildProtocol(self, addr: Any) -> TLSLayer | None:  # type: ignore[override]
        """
        Build the TLS of one connection.

        @return: None if the other factory refuses it.
        """
        wrapped = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else TLSLayer(self, wrapped)
