"""
An accepted connection.
"""

import socket
from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.tcp import Port, Server

from kvserver.address import addressOf


class Transport(Server):
    """
    An accepted connection, of TCP or UNIX, that shows its addresses as people know them: an IPv4
    peer of an IPv6 socket as IPv4, the client of a balancer as the balancer saw it.
    """

    def __init__(
        self,
        accepted: socket.socket,
        peer: IAddress,
        protocol: IProtocol,
        number: int,
        reactor: Any,
    ) -> None:
        """
        @param accepted: The socket.

        @param peer: The other end.

        @param protocol: Speaks with it.

        @param number: Tells it from others in the log.

        @param reactor: Provides C{IReactorFDSet}.
        """
        # There is no Port: that is None where Twisted itself adopts a connection, too.
        port = cast(Port, None)
        super().__init__(accepted, protocol, (_shown(peer), 0), port, number, reactor)
        self._peer = peer
        self._host: IAddress | None = None

    def __repr__(self) -> str:
        return f"<{self.logPrefix()}>"

    def getPeer(self) -> IAddress:
        """
        The client's end of this connection.
        """
        return self._peer

    def getHost(self) -> IAddress:
        """
        The server's end of this connection.
        """
        return self._host or addressOf(self.socket.getsockname())

    def seenAs(self, peer: IAddress, host: IAddress | None) -> None:
        """
        Show the addresses that a balancer has named.
        """
        self._peer = peer
        self._host = host
        self.hostname = _shown(peer)
        self.logstr = f"{self.logstr},{self.hostname}"


def _shown(address: IAddress) -> str:
    return address.host if isinstance(address, IPv4Address | IPv6Address) else "unix"
