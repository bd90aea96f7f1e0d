"""
What is known of one connection.
"""

from enum import Enum

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress


def shown(address: IAddress) -> str:
    """
    An address as people write it; what is no IP is a UNIX socket.
    """
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    return "unix"


class Ending(Enum):
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


class Record:
    """
    One connection, from its begin to its end.

    @ivar number: Tells it from all others of this process.

    @ivar listener: The name of the listener that accepted it.

    @ivar peer: The other end.

    @ivar client: The client, if a balancer has named one.

    @ivar begun: When, by the reactor's clock, in seconds.

    @ivar tls: The version of TLS, if there is TLS.

    @ivar subject: That of the client's certificate, if it has shown one (RFC 4514).

    @ivar ending: Why it has ended, or is going to; None as long as nobody but the client would end
        it.

    @ivar received: How many bytes have come in, for the protocol.

    @ivar sent: How many of its bytes the kernel has taken; with TLS, how many TLS has taken for it.

    @ivar unit: What the protocol counts, if it does.

    @ivar work: How much the protocol had done at the end, by its own count.

    @ivar seconds: How long it has lasted; None while it does.
    """

    __slots__ = (
        *("begun", "client", "ending", "listener", "number", "peer", "received"),
        *("seconds", "sent", "subject", "tls", "unit", "work"),
    )

    number: int
    begun: float
    unit: str | None

    def __init__(self, listener: str, peer: IAddress) -> None:
        self.listener = listener
        self.peer = peer
        self.client: IAddress | None = None
        self.tls: str | None = None
        self.subject: str | None = None
        self.ending: Ending | None = None
        self.received = 0
        self.sent = 0
        self.work = 0
        self.seconds: float | None = None

    def ends(self, ending: Ending) -> None:
        """
        It is going to end, for that reason; if there is one already, that remains.
        """
        if self.ending is None:
            self.ending = ending
