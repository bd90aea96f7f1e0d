"""
TLS over a connection, by the standard library.
"""

import ssl
from collections.abc import Callable
from typing import Any

from kvserver.check.transport import READ_SIZE, IOwner, Transport


class TLSTransport(Transport):
    """
    TLS over such a connection.
    """

    _isShakingHands = False
    _endsSoon = False

    def __init__(
        self, reactor: Any, owner: IOwner, context: ssl.SSLContext, serverName: str | None
    ) -> None:
        super().__init__(reactor, owner)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=serverName)
        self._pending = b""

    def secure(self) -> None:
        """
        Begin the handshake. What is sent before goes out in plain text.
        """
        self._isShakingHands = True
        self._shakeHands()

    def send(self, data: bytes | memoryview) -> int:
        """
        See L{Transport}: what TLS has taken.
        """
        if not (self._isSecured and self._flush()):
            return super().send(data) if not self._isSecured and not self._isShakingHands else 0
        try:
            sent = self._tls.write(data[: 1 << 16])
        except ssl.SSLError as error:
            self._failedToWrite(error)
            return 0
        self._flush()
        if sent < len(data):
            self._reactor.addWriter(self)
        return sent

    _isSecured = False

    def sendEnd(self) -> None:
        """
        Send a close_notify. TLS goes on reading.
        """
        # OpenSSL drops what has come and was not read.
        self._decrypt()
        if self._isClosed:
            return
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._failedToWrite(error)
            return
        self._flush()

    def _shakeHands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLEOFError:
            self._owner.ended()
        except (ssl.SSLError, ssl.CertificateError) as error:
            # With the alert that OpenSSL has for the other side.
            self._flush()
            self._fail(error)
        else:
            self._isShakingHands = False
            self._isSecured = True
            self._flush()
            self._owner.secured()
            if self._incoming.pending:
                self._decrypt()

    def _received(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if self._isShakingHands:
            self._shakeHands()
        elif self._isSecured:
            self._decrypt()
        elif not data:
            self._owner.ended()

    def _decrypt(self) -> None:
        parts: list[bytes] = []
        end: Callable[[], None] | None = None
        try:
            while data := self._tls.read(READ_SIZE):
                parts.append(data)
            end = self._owner.ended
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            end = self._owner.ended
        except ssl.SSLError as error:
            failure = error
            self._flush()
            end = lambda: self._fail(failure)  # noqa: E731
        if parts:
            self._owner.dataReceived(b"".join(parts))
        if end is not None and not self._isClosed:
            self._reactor.removeReader(self)
            end()

    def _flush(self) -> bool:
        """
        Send what TLS has for the other side.

        @return: Has all of it gone?
        """
        self._pending += self._outgoing.read()
        if self._pending and not self._isClosed:
            assert self.socket is not None
            try:
                sent = self.socket.send(self._pending)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._failedToWrite(error)
                return False
            self._pending = self._pending[sent:]
            if self._pending:
                self._reactor.addWriter(self)
        return not self._pending

    def _writable(self) -> None:
        if self._flush() and self._isSecured:
            self._owner.writable()
