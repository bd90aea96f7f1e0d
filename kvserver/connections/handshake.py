"""
The TLS handshake.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from kvserver.connections.certificates import Certificates, reasonOf
from kvserver.connections.record import CloseReason
from kvserver.connections.stage import Stage
from kvserver.connections.tls import TLSTransport
from kvserver.connections.transport import Transport

HANDSHAKE_TIMEOUT = 10.0
"""
How long a client may take for the handshake, in seconds.
"""


class Handshake(Stage):
    """
    The stage of the TLS handshake.
    """

    timeout = HANDSHAKE_TIMEOUT
    transport: TLSTransport

    def __init__(
        self,
        transport: Transport,
        certificates: Certificates,
        done: Callable[[Transport], None],
    ) -> None:
        """
        @param transport: A L{TLSTransport}.

        @param certificates: The certificates for the handshake.

        @param done: Called with the transport when the handshake has succeeded.
        """
        super().__init__(transport)
        self._context = certificates.context
        self._done = done

    def begin(self) -> None:
        """
        Wait for the ClientHello.
        """
        super().begin()
        self.transport.secure(self._context)

    def doRead(self) -> Exception | None:
        """
        Go on with the handshake.
        """
        transport = self.transport
        try:
            data = transport.receive()
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            if not self.hasReceived:
                # A client that closes without a byte is a health check, and causes no warning.
                return CONNECTION_DONE
            self._fail("the client has ended the connection")
            return CONNECTION_DONE
        self.hasReceived = True
        transport.steps += 1
        transport.measure(data)
        try:
            transport.shakeHands()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            self._fail(reasonOf(error))
            # OpenSSL has written an alert for the client. It must reach the client before the
            # close.
            self.end()
            transport.sayFarewell()
            return None
        transport.record.tls = transport.tls.version()
        transport.record.subject = _subjectOf(transport.tls)
        self.end()
        transport.goOnWriting()
        self._done(transport)
        transport.readEarly()
        return None

    def doWrite(self) -> Exception | None:
        """
        Send the bytes that the socket did not take before.
        """
        why = self.transport.doWrite()
        if self.transport.stage is self and self.transport.isFlushed():
            self.transport.poller.addReader(self)
        return why

    def late(self) -> None:
        """
        The handshake has timed out.
        """
        self._fail(f"not done within {self.timeout:g} s")
        super().late()

    def _fail(self, reason: str) -> None:
        self.transport.record.closeWith(CloseReason.HANDSHAKE_FAILED)
        self.transport.sourceLog.warn(
            self.transport.getPeer(), "TLS handshake with {source} failed: {reason}", reason=reason
        )


_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
"""
The short names in RFC 4514, section 3, by OpenSSL's names.
"""


def _subjectOf(tls: ssl.SSLObject) -> str | None:
    """
    Return the subject of the peer's certificate. None: there is no certificate, or Python can't
    decode it.
    """
    try:
        return _subject(tls.getpeercert() or {})
    except ValueError:
        # A text in the certificate is not in the encoding that it claims.
        return None


def _subject(certificate: Mapping[str, Any]) -> str | None:
    """
    Format the subject of a certificate as in RFC 4514: the last part first.

    @param certificate: The certificate, as C{SSLObject.getpeercert} returns it.
    """
    parts = [
        "+".join(f"{_SHORT_NAMES.get(name, name)}={_escaped(value)}" for name, value in part)
        for part in certificate.get("subject", ())
    ]
    return ",".join(reversed(parts)) if certificate else None


def _escaped(value: str) -> str:
    """
    Escape a value as in RFC 4514, section 2.4.
    """
    escaped = re.sub(r'([\\"+,;<>])', r"\\\1", value).replace("\0", "\\00")
    if escaped.startswith((" ", "#")):
        escaped = f"\\{escaped}"
    if escaped.endswith(" ") and len(value) > 1:
        escaped = f"{escaped[:-1]}\\ "
    return escaped
