"""
An accepted connection.
"""

import socket
from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.tcp import Port, Server
from twisted.python.failure import Failure

from kvserver.address import addressOf


class Transport(Server):
    """
    An accepted connection, of TCP or UNIX, that shows its addresses as people know them: an IPv4
    peer of an IPv6 socket as IPv4, the client of a balancer as the balancer saw it.
    """

    _unsent = False

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

    def write(self, data: bytes) -> None:
        """
        Send now what the socket takes, and the rest later.

        Twisted would wait until the reactor says that the socket takes something, which is a system
        call to ask for that, one to take it back, and one more turn of the reactor for each line.
        """
        if self._unsent or not self.connected:
            super().write(data)
            return
        try:
            sent = self.socket.send(data)
        except OSError:
            # Either it takes nothing now, or there is an error, which comes again in its own turn.
            sent = 0
        if sent < len(data):
            self._unsent = True
            super().write(data[sent:])
            producer: Any = self.producer
            if producer is not None and not self.producerPaused:
                # Twisted would wait until a buffer is full. Nothing is read while anything waits.
                self.producerPaused = True
                producer.pauseProducing()

    def stopWriting(self) -> None:
        """
        All has been sent.
        """
        self._unsent = False
        super().stopWriting()

    def readConnectionLost(self, reason: Failure) -> None:
        """
        The peer sends no more. If then everything has been sent, and the protocol has closed, the
        connection ends now, and not in another turn of the reactor.
        """
        super().readConnectionLost(reason)
        if self.disconnecting and self.connected and not self._unsent:
            self.connectionLost(reason)

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
