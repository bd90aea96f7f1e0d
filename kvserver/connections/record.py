"""
The record of one connection.
"""

from enum import Enum

from twisted.internet.interfaces import IAddress


class CloseReason(Enum):
    """
    Why a connection has ended.
    """

    CLIENT_CLOSED = "client_closed"
    """The client has ended its half, and got all of its echo."""

    RESET = "reset"
    """The client or the network has cut the connection."""

    IDLE_TIMEOUT = "idle_timeout"
    """No byte moved for C{--idle-timeout}."""

    WRITE_TIMEOUT = "write_timeout"
    """The client left its echo unread for C{--write-timeout}."""

    DRAINED = "drained"
    """The daemon stopped, and the connection was at rest."""

    ABORTED = "aborted"
    """The daemon stopped, and the connection did not come to rest in time."""

    REFUSED = "refused"
    """Its source already had C{--max-connections-per-source} connections."""

    HANDSHAKE_FAILED = "handshake_failed"
    """The TLS handshake failed or timed out."""

    PROXY_HEADER = "proxy_header"
    """The PROXY header was missing, malformed, or from an untrusted peer."""

    WORKER_DIED = "worker_died"
    """The worker process that served it has ended."""

    PROTOCOL_ABORTED = "protocol_aborted"
    """The protocol has reset it."""

    ERROR = "error"
    """The daemon is at fault; the log has the details."""


class ConnectionRecord:
    """
    What is known of one connection, from its start to its end.

    @ivar id: A number that no other connection of this process has.

    @ivar listener: The name of the listener that accepted it.

    @ivar peer: The address of the other end of the socket.

    @ivar client: The address of the client, if a balancer has named it.

    @ivar acceptedAt: When it was accepted, in seconds by the reactor's clock.

    @ivar tls: The version of TLS. None: there is no TLS.

    @ivar subject: The subject of the client's certificate, if it has shown one (RFC 4514).

    @ivar reason: Why it has ended or is about to end. None as long as the daemon has no reason to
        end it.

    @ivar received: How many bytes have been received for the protocol.

    @ivar sent: How many bytes of the protocol were handed to the kernel. With TLS these are bytes
        of plain text, counted when the kernel has taken what they were encrypted to.

    @ivar unacknowledged: How many bytes the peer's kernel had not acknowledged when the connection
        was reset or aborted; 0 if the kernel can't say. With TLS these are encrypted bytes.

    @ivar unit: What the protocol counts. None: it counts nothing.

    @ivar work: How much work the protocol had done at the end, by its own count.

    @ivar worker: The number of the worker that serves it. None: there are no workers.

    @ivar endedAt: When it ended, in seconds by the reactor's clock; a worker reports it some time
        later. None until it has ended.

    @ivar duration: How long it lasted, in seconds. None until it has ended.
    """

    __slots__ = (
        *("acceptedAt", "client", "duration", "endedAt", "id", "listener", "peer", "reason"),
        *("received", "sent", "subject", "tls", "unacknowledged", "unit", "work", "worker"),
    )

    unit: str | None

    def __init__(self, listener: str, peer: IAddress) -> None:
        self.id = 0
        self.acceptedAt = 0.0
        self.worker: int | None = None
        self.listener = listener
        self.peer = peer
        self.client: IAddress | None = None
        self.tls: str | None = None
        self.subject: str | None = None
        self.reason: CloseReason | None = None
        self.received = 0
        self.sent = 0
        self.unacknowledged = 0
        self.work = 0
        self.endedAt: float | None = None
        self.duration: float | None = None

    @property
    def delivered(self) -> int:
        """
        A lower bound of how many bytes of the protocol have reached the peer's kernel.
        """
        return max(0, self.sent - self.unacknowledged)

    def closeWith(self, reason: CloseReason) -> None:
        """
        Set the reason of the end. The first reason stays.
        """
        if self.reason is None:
            self.reason = reason
