"""
TLS: a transport that uses C{ssl} from the standard library.
"""

import ssl
from collections import deque
from contextlib import suppress
from termios import FIONREAD

from twisted.internet.interfaces import ISSLTransport
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from zope.interface import implementer

from kvserver.connections.certificates import reasonOf
from kvserver.connections.record import CloseReason
from kvserver.connections.stage import READ_SIZE
from kvserver.connections.transport import Transport

RECEIVE_SIZE = READ_SIZE + 2 * 1024
"""
The most bytes that are received at once: as many as a line of 64 KiB may take in TLS records.
"""

SEAL_SIZE = 64 * 1024
"""
The most bytes of plain text that are encrypted at once. They are counted together, when all of them
have been sent.
"""

RECORD_SIZE = 8 * 1024
"""
The most bytes of plain text that we put into one record: half of what TLS allows. ncat (7.93) reads
8 KiB of a longer record, and looks for the rest only when more bytes arrive.
"""

HEADER_SIZE = 5
"""
The size of the header of a record, in bytes. Its last two bytes are the length of the rest (RFC
8446, section 5.1).
"""


@implementer(ISSLTransport)
class TLSTransport(Transport):
    """
    An accepted connection with TLS.

    It reads from the socket itself, and passes the bytes to OpenSSL in memory. If OpenSSL read from
    the socket, it would go on reading as long as records arrive that hold nothing for us: one
    client with a stream of KeyUpdates would stop all others.

    TLS has no half-close as TCP has. Everything that the peer has sent before its close_notify, or
    before a FIN without one, comes back.

    @ivar tls: Encrypts and decrypts. Set by L{secure}.
    """

    tls: ssl.SSLObject
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO
    # The state of a record that is not complete: the part of its header that has arrived, or, once
    # the header is complete, how many bytes of the rest are missing.
    _header = b""
    _missing = 0
    _hasSaidGoodbye = False
    # Has OpenSSL bytes that came together with the end of the handshake?
    _hasEarly = False

    def getPeerCertificate(self) -> bytes | None:
        """
        Return the certificate of the client, in DER. None: it has shown none.
        """
        return self.tls.getpeercert(binary_form=True)

    def secure(self, context: ssl.SSLContext) -> None:
        """
        Use TLS from now on.
        """
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # For each part that the kernel has not taken: how many encrypted bytes are left of it, and
        # its size in plain text.
        self._parts: deque[tuple[int, int]] = deque()

    def receive(self) -> bytes:
        """
        Receive bytes from the socket, and pass them to OpenSSL.

        @return: The bytes. No bytes: the peer has sent FIN.

        @raise OSError: No bytes have arrived, or the connection is lost.
        """
        data = self.socket.recv(RECEIVE_SIZE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return data

    def hasMore(self) -> bool:
        """
        Return whether there are bytes that OpenSSL has not read.
        """
        return self._incoming.pending > 0

    def readEarly(self) -> None:
        """
        Give the protocol the bytes that came together with the end of the handshake, unless it has
        paused or closed already. No event announces them.
        """
        self._hasEarly = self.hasMore()
        if self._hasEarly:
            self.poller.readNow(self)

    def _read(self) -> None:
        super()._read()
        if self._hasEarly:
            # Not at once: the protocol may be in the middle of something.
            self.poller.callLater(0, self.poller.readNow, self)

    def doRead(self) -> Exception | None:
        """
        Give the protocol everything that has arrived, at once.
        """
        if self._hasEarly:
            self._hasEarly = False
            return self.decrypt(b"")
        try:
            data = self.receive()
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        return self.decrypt(data)

    def decrypt(self, data: bytes) -> Exception | None:
        """
        Decrypt the records that are complete, and give the plain text to the protocol.

        @param data: The bytes that were received last.

        @return: Why no more bytes will come; None if they may.
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
                    # OpenSSL has read this record completely, and no part of another.
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
            # This is the answer to a KeyUpdate, or an alert.
            self._send(self._outgoing.read(), 0)
        if broken is not None and not (self.disconnected or self._aborting):
            self._break(broken)
        return why

    def measure(self, data: bytes) -> None:
        """
        Find out whether a record has arrived only in part.

        @param data: The bytes that were received last.
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
        The peer has sent bytes that can't be decrypted, and OpenSSL has sent it an alert: log that,
        and close.
        """
        self.record.closeWith(CloseReason.RESET)
        self.sourceLog.warn(
            self.getPeer(), "TLS with {source} is broken: {reason}", reason=reasonOf(error)
        )
        self.sayFarewell()

    def write(self, data: bytes) -> None:
        """
        Send what the socket takes now, and the rest later.
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
        Send encrypted bytes.

        @param size: Their size in plain text.
        """
        if sealed:
            self._parts.append((len(sealed), size))
            super().write(sealed)

    def _count(self, sent: int) -> None:
        """
        Count bytes that the kernel has taken. A part is counted when all of it was taken.
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
        Return whether the connection is idle. A record that has arrived in part counts as a line
        that has begun.
        """
        hasBegun = self._header or self._missing or self._hasEarly
        return not hasBegun and super().isIdle()

    def shakeHands(self) -> None:
        """
        Go on with the handshake.

        @raise ssl.SSLError: The handshake waits for the peer, or has failed.
        """
        try:
            self.tls.do_handshake()
        finally:
            self._send(self._outgoing.read(), 0)

    def _close(self) -> Exception | None:
        """
        Send close_notify. If the peer has not ended its half yet, wait until it does or the wait
        times out.
        """
        if not self._hasSaidGoodbye:
            self._hasSaidGoodbye = True
            # The peer's close_notify has not arrived yet, or other bytes have.
            with suppress(ssl.SSLError):
                self.tls.unwrap()
            self._mayWriteNow = True
            self._send(self._outgoing.read(), 0)
            if self._buffer:
                return None
        if self._inputEnded:
            self.record.closeWith(CloseReason.CLIENT_CLOSED)
        if self._inputEnded and not self.queued(FIONREAD):
            return CONNECTION_DONE
        self.sayFarewell()
        return None

    def _endOutput(self) -> None:
        """
        Close both halves: with TLS, our half can't be ended alone.
        """
        self.disconnecting = True
        self.poller.addWriter(self)
