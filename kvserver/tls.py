"""
TLS: a kind of transport, by the standard library's C{ssl}.
"""

import re
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from termios import FIONREAD
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from kvserver.certificates import Certificates, reasonOf
from kvserver.record import Ending
from kvserver.stage import DONE, READ_SIZE, Stage
from kvserver.transport import Transport

HANDSHAKE_TIMEOUT = 10.0
"""
How long a client may take for the handshake, in seconds.
"""

RECEIVE_SIZE = READ_SIZE + 2 * 1024
"""
How many bytes are received at once, at most: what a line of 64 KiB may take in records.
"""

SEAL_SIZE = 64 * 1024
"""
How many bytes are encrypted at once, at most, and counted together when they have been sent.
"""

RECORD_SIZE = 8 * 1024
"""
How many bytes we put into one record, at most: half of what TLS allows. Of a longer one ncat (7.93)
reads 8 KiB, and looks for the rest only when more comes.
"""

HEADER_SIZE = 5
"""
The size of the header of a record, of which the last two bytes are the length of the rest (RFC
8446, section 5.1).
"""


class TLSTransport(Transport):
    """
    An accepted connection with TLS.

    It reads from the socket itself, and OpenSSL gets the bytes from memory. On the socket, OpenSSL
    would go on to read as long as records come that hold nothing for us: one client with a stream
    of KeyUpdates would stop all others.

    TLS has no half-close as TCP has: what the peer has sent before its close_notify, or before a
    FIN without one, comes back.

    @ivar tls: Encrypts and decrypts; None before the handshake.
    """

    tls: ssl.SSLObject
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO
    # What has come of a record that is not complete: a part of its header, or all of that, and then
    # how much is missing of the rest.
    _header = b""
    _missing = 0
    _hasSaidGoodbye = False

    def secure(self, context: ssl.SSLContext) -> None:
        """
        Speak TLS from now on.
        """
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # Of each part that waits to be sent: how many bytes are left of it, and how many it is in
        # plain text.
        self._parts: deque[tuple[int, int]] = deque()

    def receive(self) -> bytes:
        """
        Let OpenSSL have what has come to the socket.

        @return: That; nothing: the peer has sent FIN.

        @raise OSError: Nothing has come, or the connection is gone.
        """
        data = self.socket.recv(RECEIVE_SIZE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return data

    def hasMore(self) -> bool:
        """
        Is there anything that OpenSSL has not read?
        """
        return self._incoming.pending > 0

    def doRead(self) -> Exception | None:
        """
        Give the protocol all that has come, at once.
        """
        try:
            data = self.receive()
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        return self.decrypt(data)

    def decrypt(self, data: bytes) -> Exception | None:
        """
        Give the protocol what is complete of that which has been received.

        @param data: What was received last.

        @return: Why nothing more will come, if that is so.
        """
        chunks = []
        why: Exception | None = None
        broken: ssl.SSLError | None = None
        try:
            while True:
                chunk = self.tls.read(READ_SIZE)
                if not chunk:
                    why = CONNECTION_DONE
                    break
                chunks.append(chunk)
                if not self._incoming.pending:
                    # OpenSSL has read this record, and nothing of another.
                    self._header, self._missing = b"", 0
                    break
        except ssl.SSLWantReadError:
            self.measure(data)
            self.steps += 1
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            why = CONNECTION_DONE
        except ssl.SSLError as error:
            broken = error
        if chunks and broken is None:
            self._deliver(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if self._outgoing.pending and not (self.disconnected or self._aborting):
            # The answer to a KeyUpdate, or an alert.
            self._send(self._outgoing.read(), 0)
        if broken is not None and not (self.disconnected or self._aborting):
            self._break(broken)
        return why

    def measure(self, data: bytes) -> None:
        """
        Find out whether a record has come in part.

        @param data: What was received last.
        """
        place, size = 0, len(data)
        while place < size:
            if self._missing:
                step = min(self._missing, size - place)
                self._missing -= step
                place += step
                continue
            part = data[place : place + HEADER_SIZE - len(self._header)]
            place += len(part)
            self._header += part
            if len(self._header) == HEADER_SIZE:
                self._missing = int.from_bytes(self._header[-2:], "big")
                self._header = b""

    def _break(self, error: ssl.SSLError) -> None:
        """
        What the peer has sent can't be decrypted; OpenSSL has told it so by an alert.
        """
        self.record.ends(Ending.RESET)
        self.connections.warnOfSource(
            self.getPeer(), "TLS with {source} is broken: {reason}", reason=reasonOf(error)
        )
        self.sayFarewell()

    def write(self, data: bytes) -> None:
        """
        Send now what the socket takes, and the rest later.
        """
        if len(data) > SEAL_SIZE:
            view = memoryview(data)
            for begin in range(0, len(data), SEAL_SIZE):
                self.write(view[begin : begin + SEAL_SIZE])  # type: ignore[arg-type]
        elif data and not (self.disconnected or self._outputEnded or self._aborting):
            if len(data) <= RECORD_SIZE:
                self.tls.write(data)
            else:
                view = memoryview(data)
                for begin in range(0, len(data), RECORD_SIZE):
                    self.tls.write(view[begin : begin + RECORD_SIZE])
            self._send(self._outgoing.read(), len(data))

    def _send(self, sealed: bytes, size: int) -> None:
        """
        Send what is encrypted.

        @param size: How many bytes of plain text it is.
        """
        sent = 0
        if self._mayWriteNow:
            try:
                sent = self.socket.send(sealed)
            except OSError:
                # Either it takes nothing now, or there is an error, which comes again in doWrite.
                sent = 0
            if sent == len(sealed):
                self.record.sent += size
                self._mayWriteNow = not self._isCorked
                return
        self._parts.append((len(sealed) - sent, size))
        self._hold(memoryview(sealed)[sent:])

    def _count(self, sent: int) -> None:
        """
        So much of what had waited has been sent: a part counts when all of it has.
        """
        while sent:
            left, size = self._parts[0]
            if sent < left:
                self._parts[0] = left - sent, size
                return
            sent -= left
            self.record.sent += size
            self._parts.popleft()

    def isIdle(self) -> bool:
        """
        A record that has come in part is a line that has begun.
        """
        return not (self._header or self._missing) and super().isIdle()

    def shakeHands(self) -> None:
        """
        Go on with the handshake.

        @raise ssl.SSLError: It waits for the peer, or has failed.
        """
        try:
            self.tls.do_handshake()
        finally:
            self._send(self._outgoing.read(), 0)

    def _close(self) -> Exception | None:
        """
        Send close_notify. If the peer has not ended its own half yet, wait for that, but not for
        ever.
        """
        if not self._hasSaidGoodbye:
            self._hasSaidGoodbye = True
            # The peer's own has not come yet, or something else has come.
            with suppress(ssl.SSLError):
                self.tls.unwrap()
            self._mayWriteNow = True
            self._send(self._outgoing.read(), 0)
            if self._buffer:
                return None
        if self._inputEnded:
            self.record.ends(Ending.CLIENT_CLOSED)
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


class Handshake(Stage):
    """
    The handshake of TLS.
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
        super().begin()
        self.transport.secure(self._context)

    def doRead(self) -> Exception | None:
        """
        Go on.
        """
        transport = self.transport
        try:
            data = transport.receive()
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            if not self.begun:
                # A client that goes without a word is a health check.
                return CONNECTION_DONE
            self._fail("the client has ended the connection")
            return CONNECTION_DONE
        self.begun = True
        transport.steps += 1
        transport.measure(data)
        try:
            transport.shakeHands()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            self._fail(reasonOf(error))
            # OpenSSL has told the client by an alert, which it is to read.
            self.end()
            transport.sayFarewell()
            return None
        transport.record.tls = transport.tls.version()
        transport.record.subject = _subjectOf(transport.tls)
        self.end()
        transport.goOnWriting()
        self._done(transport)
        return self._goOn()

    def doWrite(self) -> Exception | None:
        """
        Send what the socket had not taken.
        """
        why = self.transport.doWrite()
        if self.transport.stage is self and self.transport.isFlushed():
            self.transport.poller.addReader(self)
        return why

    def _goOn(self) -> Exception | None:
        """
        The first lines may have come together with the end of the handshake: no event would tell.
        """
        transport = self.transport
        if transport.protocol is None or not transport.hasMore():
            return None
        why = transport.decrypt(b"")
        if why is CONNECTION_DONE:
            # The poller would take it for the end of both halves.
            transport.readConnectionLost(DONE)
            return None
        return why

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


def _subjectOf(tls: ssl.SSLObject) -> str | None:
    """
    The subject of the peer's certificate; None if there is none, or Python can't read it.
    """
    try:
        return _subject(tls.getpeercert() or {})
    except ValueError:
        # Some text in it is not what it says it is.
        return None


def _subject(certificate: Mapping[str, Any]) -> str | None:
    """
    The subject of a certificate, as RFC 4514 writes it: the last part first.

    @param certificate: As C{SSLObject.getpeercert} has it.
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
