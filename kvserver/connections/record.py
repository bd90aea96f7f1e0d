"""
What is known of one connection.
"""

from enum import Enum

from twisted.internet.interfaces import IAddress


class CloseReason(Enum):
    """
    Why a connection has ended.
    """

    CLIENT_CLOSED = "client_closed"
    """The client has said that it sends no more, and got all of its echo."""

    RESET = "reset"
    """The client, or the network, has cut it."""

    IDLE_TIMEOUT = "idle_timeout"
    """Nothing came or went for C{--idle-timeout}."""

    WRITE_TIMEOUT = "write_timeout"
    """The client left its echo unread for C{--write-timeout}."""

    DRAINED = "drained"
    """The daemon stopped, and it was at rest."""

    ABORTED = "aborted"
    """The daemon stopped, and it did not come to rest."""

    REFUSED = "refused"
    """There were as many from there as C{--max-connections-per-source} allows."""

    HANDSHAKE_FAILED = "handshake_failed"
    """TLS did not come about."""

    PROXY_HEADER = "proxy_header"
    """No PROXY header came, or a broken one, or from somebody who may send none."""

    ERROR = "error"
    """Something here is wrong, and the log has it."""


class ConnectionRecord:
    """
    One connection, from its begin to its end.

    @ivar id: Tells it from all others of this process.

    @ivar listener: The name of the listener that accepted it.

    @ivar peer: The other end.

    @ivar client: The client, if a balancer has named one.

    @ivar acceptedAt: When, by the reactor's clock, in seconds.

    @ivar tls: The version of TLS, if there is TLS.

    @ivar subject: That of the client's certificate, if it has shown one (RFC 4514).

    @ivar reason: Why it has ended, or is going to; None as long as nobody but the client would end
        it.

    @ivar received: How many bytes have come in, for the protocol.

    @ivar sent: How many of its bytes the kernel has taken; with TLS, how many TLS has taken for it.

    @ivar unit: What the protocol counts, if it does.

    @ivar work: How much the protocol had done at the end, by its own count.

    @ivar duration: How long it has lasted; None while it does.
    """

    __slots__ = (
        *("acceptedAt", "client", "reason", "listener", "id", "peer", "received"),
        *("duration", "sent", "subject", "tls", "unit", "work"),
    )

    id: int
    acceptedAt: float
    unit: str | None

    def __init__(self, listener: str, peer: IAddress) -> None:
        self.listener = listener
        self.peer = peer
        self.client: IAddress | None = None
        self.tls: str | None = None
        self.subject: str | None = None
        self.reason: CloseReason | None = None
        self.received = 0
        self.sent = 0
        self.work = 0
        self.duration: float | None = None

    def closeWith(self, reason: CloseReason) -> None:
        """
        It is going to end, for that reason; if there is one already, that remains.
        """
        if self.reason is None:
            self.reason = reason
