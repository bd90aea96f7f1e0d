"""
TLS: a kind of transport, by the standard library's C{ssl} on the socket.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from fcntl import ioctl
from termios import FIONREAD
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from kvserver.certificates import Certificates, reasonOf
from kvserver.record import Ending
from kvserver.stage import DONE, LOST, READ_SIZE, Stage
from kvserver.transport import WRITE_SIZE, Transport

HANDSHAKE_TIMEOUT = 10.0
"""
How long a client may take for the handshake, in seconds.
"""

RECORD_SIZE = 16 * 1024
"""
The most bytes that a record of TLS holds (RFC 8446, section 5.1). No more are given to OpenSSL at
once: it says how many it has taken only when it has taken all.
"""


SINGLES = 8
"""
After so many records that came by themselves the kernel is asked only now and then if there are
more: to ask takes a tenth of what a line costs.
"""

_NOTHING = bytes(4)


class TLSTransport(Transport):
    """
    An accepted connection with TLS.

    TLS has no half-close as TCP has: what the peer has sent before its close_notify, or before a
    FIN without one, comes back.
    """

    socket: ssl.SSLSocket
    # Has a record come in part?
    _hasFragment = False
    # Reading may need to write, and writing to read (SSL_get_error(3)).
    _readWantsWrite = False
    _writeWantsRead = False
    # How many records in a row have come by themselves?
    _singles = 0

    def doRead(self) -> Exception | None:
        """
        Give the protocol all that has come, at once.
        """
        if self._writeWantsRead:
            self._writeWantsRead = False
            self.poller.addWriter(self)
        # A record is always read whole: of what OpenSSL has decrypted no epoll would tell.
        try:
            data = self.socket.recv(READ_SIZE)
        except OSError as error:
            return self._readFails(error)
        if not data:
            return CONNECTION_DONE
        self._hasFragment = False
        why = None
        self._singles += 1
        if self._singles <= SINGLES or not self._singles % SINGLES:
            more = ioctl(self.fileno(), FIONREAD, _NOTHING) != _NOTHING
            if more:
                self._singles = 0
                data, why = self._readMore(data)
        self._deliver(data)
        return why

    def _readMore(self, data: bytes) -> tuple[bytes, Exception | None]:
        """
        There are more records: read them, too.

        @param data: What the first one held.

        @return: What all of them hold, and why nothing more will come.
        """
        chunks = [data]
        size = len(data)
        while size < READ_SIZE and self.queued(FIONREAD):
            try:
                data = self.socket.recv(READ_SIZE)
            except OSError as error:
                return b"".join(chunks), self._readFails(error)
            if not data:
                return b"".join(chunks), CONNECTION_DONE
            chunks.append(data)
            size += len(data)
        return b"".join(chunks), None

    def _readFails(self, error: OSError) -> Exception | None:
        """
        Nothing could be read.

        @return: Why nothing more will come, if that is so.
        """
        if isinstance(error, ssl.SSLWantReadError):
            self._hasFragment = True
            self.steps += 1
        elif isinstance(error, ssl.SSLWantWriteError):
            self._readWantsWrite = True
            self.poller.removeReader(self)
            self.poller.addWriter(self)
        elif isinstance(error, ssl.SSLError):
            self._broken(error)
        else:
            return CONNECTION_LOST
        return None

    def doWrite(self) -> Exception | None:
        """
        Send what waits, or go on with what had to wait until something could be sent.
        """
        if not self._readWantsWrite:
            return super().doWrite()
        self._readWantsWrite = False
        if not self._buffer:
            self.poller.removeWriter(self)
        self._read()
        why = self.doRead()
        if why is CONNECTION_DONE:
            # The poller would take it for the end of both halves.
            self.readConnectionLost(DONE)
            return None
        return why

    def _flush(self) -> Exception | None:
        try:
            # What OpenSSL could not send it must get again, with no fewer bytes: they are the first
            # of those that wait, whatever has come after them.
            for _ in range(WRITE_SIZE // RECORD_SIZE):
                with memoryview(self._buffer) as waiting, waiting[:RECORD_SIZE] as first:
                    sent = self.socket.send(first)
                self.record.sent += sent
                del self._buffer[:sent]
                if not self._buffer:
                    break
        except ssl.SSLWantWriteError:
            return None
        except ssl.SSLWantReadError:
            self._writeWantsRead = True
            self.poller.removeWriter(self)
            self.poller.addReader(self)
        except OSError:
            return CONNECTION_LOST
        return None

    def write(self, data: bytes) -> None:
        """
        Send now what TLS takes, and the rest later.
        """
        sent = 0
        if self._mayWriteNow and data:
            try:
                if len(data) <= RECORD_SIZE:
                    sent = self.socket.send(data)
                else:
                    view = memoryview(data)
                    while sent < len(data):
                        sent += self.socket.send(view[sent : sent + RECORD_SIZE])
            except OSError:
                # Either it takes nothing now, or there is an error, which comes again in doWrite.
                pass
            self.record.sent += sent
            if sent == len(data):
                self._mayWriteNow = not self._isCorked
                return
        self._hold(memoryview(data)[sent:])

    def isIdle(self) -> bool:
        """
        A record that has come in part is a line that has begun.
        """
        return not self._hasFragment and super().isIdle()

    def _close(self) -> Exception | None:
        """
        Send close_notify. If the peer has not ended its own half yet, wait for that, but not for
        ever.
        """
        try:
            self.socket.unwrap()
        except ssl.SSLWantWriteError:
            self.poller.addWriter(self)
            return None
        except ssl.SSLError:
            # It is sent; the peer's has not come yet, or something else has come.
            pass
        except OSError:
            return CONNECTION_LOST
        if self._inputEnded and not self.queued(FIONREAD):
            return CONNECTION_DONE
        self.sayFarewell()
        return None

    def _endOutput(self) -> None:
        """
        Our half can't be ended alone.
        """
        self.disconnecting = True
        self.poller.addWriter(self)

    def _broken(self, error: ssl.SSLError) -> None:
        """
        What the peer has sent can't be decrypted; OpenSSL has told it so by an alert.
        """
        self.record.ends(Ending.RESET)
        self.connections.warnOfSource(
            self.getPeer(), "TLS with {source} is broken: {reason}", reason=reasonOf(error)
        )
        self.sayFarewell()


class Handshake(Stage):
    """
    The handshake of TLS.
    """

    timeout = HANDSHAKE_TIMEOUT

    def __init__(
        self,
        transport: Transport,
        certificates: Certificates,
        done: Callable[[Transport], None],
    ) -> None:
        """
        @param certificates: What we show.

        @param done: Is called with the transport when the handshake is over.
        """
        super().__init__(transport)
        self._context = certificates.context
        self._done = done

    def begin(self) -> None:
        """
        Wait for the client's hello.
        """
        transport = self.transport
        try:
            transport.setSocket(
                self._context.wrap_socket(
                    transport.socket, server_side=True, do_handshake_on_connect=False
                )
            )
        except OSError:
            # The client is gone already.
            transport.connectionLost(LOST)
            return
        super().begin()

    def doRead(self) -> Exception | None:
        """
        Go on.
        """
        transport = self.transport
        tls: Any = transport.socket
        poller = transport.poller
        try:
            transport.steps += 1
            # A client that goes without a word is a health check.
            self.begun = self.begun or transport.queued(FIONREAD) > 0
            tls.do_handshake()
            subject = _subject(tls.getpeercert() or {})
        except ssl.SSLWantReadError:
            poller.removeWriter(self)
            poller.addReader(self)
        except ssl.SSLWantWriteError:
            poller.removeReader(self)
            poller.addWriter(self)
        except ssl.SSLError as error:
            if not self.begun:
                return CONNECTION_DONE
            self._fail(reasonOf(error))
            # OpenSSL has told the client by an alert, which it is to read.
            self.end()
            transport.sayFarewell()
        except OSError:
            return CONNECTION_LOST
        else:
            transport.record.tls = tls.version()
            transport.record.subject = subject
            self.end()
            self._done(transport)
        return None

    def late(self) -> None:
        """
        The client has not come to an end with it in time.
        """
        self._fail(f"not done within {self.timeout:g} s")
        super().late()

    def _fail(self, reason: str) -> None:
        self.transport.record.ends(Ending.HANDSHAKE_FAILED)
        self.transport.connections.warnOfSource(
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
Those of RFC 4514, section 3, by OpenSSL's names.
"""


def _subject(certificate: Mapping[str, Any]) -> str | None:
    """
    The subject of a certificate, as RFC 4514 writes it: the last part first.

    @param certificate: As C{SSLSocket.getpeercert} has it.
    """
    parts = [
        "+".join(f"{_SHORT_NAMES.get(name, name)}={_escaped(value)}" for name, value in part)
        for part in certificate.get("subject", ())
    ]
    return ",".join(reversed(parts)) if certificate else None


def _escaped(value: str) -> str:
    """
    RFC 4514, section 2.4.
    """
    escaped = re.sub(r'([\\"+,;<>])', r"\\\1", value).replace("\0", "\\00")
    if escaped.startswith((" ", "#")):
        escaped = f"\\{escaped}"
    if escaped.endswith(" ") and len(value) > 1:
        escaped = f"{escaped[:-1]}\\ "
    return escaped
