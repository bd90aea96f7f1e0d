"""
TLS: a kind of transport, by the standard library's C{ssl}.
"""

import ssl
from collections import deque
from contextlib import suppress
from termios import FIONREAD

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from kvserver.connections.certificates import reasonOf
from kvserver.connections.record import CloseReason
from kvserver.connections.stage import READ_SIZE
from kvserver.connections.transport import Transport

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
        self.record.closeWith(CloseReason.RESET)
        self.sourceLog.warn(
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
        self._bufferData(memoryview(sealed)[sent:])

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
            self.record.closeWith(CloseReason.CLIENT_CLOSED)
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
