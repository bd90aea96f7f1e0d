"""
A protocol for each connection.
"""

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory

from kvserver.connections import Connections
from kvserver.protocol import EchoProtocol


class EchoFactory(ServerFactory):
    """
    Builds an L{EchoProtocol} for each connection, and lets L{Connections} know it.
    """

    noisy = False

    def __init__(self, connections: Connections) -> None:
        """
        @param connections: Where each connection is kept while it lives.
        """
        self.connections = connections

    def buildProtocol(self, addr: IAddress | None) -> EchoProtocol | None:
        """
        Build the protocol for one new connection.

        @param addr: The address of the peer.

        @return: None if there are too many connections from there already.
        """
        if not self.connections.admits(addr):
            return None
        protocol = EchoProtocol(self.connections)
        protocol.factory = self
        return protocol
