"""
What a connection passes between accept(2) and its protocol.
"""

import socket
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from kvserver.connections.connection import DONE, Connection
from kvserver.connections.handover import begin
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.registry import Connections
from kvserver.interfaces import IHandover
from kvserver.listening.proxy import ProxyStage


class Route:
    """
    The way of the connections of one listener: the PROXY header, the limits, the hand-over. The
    limits apply as soon as the client is known.
    """

    def __init__(
        self,
        connections: Connections,
        poller: Any,
        handover: IHandover,
        trusted: tuple[IPv4Network | IPv6Network, ...] | None = None,
    ) -> None:
        """
        @param connections: The registry of connections.

        @param poller: Watches the connections.

        @param handover: Takes the connections that are admitted. The listener tells it when it
            starts and stops.

        @param trusted: The networks that may send a PROXY header. None: connections begin without
            one.
        """
        self.handover = handover
        self._connections = connections
        self._poller = poller
        self._trusted = trusted

    def enter(self, accepted: socket.socket, record: ConnectionRecord) -> None:
        """
        Start a connection on its route. If that fails, only this connection fails.

        @param accepted: The socket. It must be non-blocking.

        @param record: The record of the connection, which is completed on the way.
        """
        connections = self._connections
        connection = self.handover.kind(
            accepted, record, self._poller, connections.ended, connections.sourceLog
        )
        connections.accepted(connection)
        begin(connection, self._start)

    def _start(self, connection: Connection) -> None:
        if self._trusted is None:
            self._admit(connection)
        else:
            ProxyStage(connection, self._trusted, self._admit).begin()

    def _admit(self, connection: Connection) -> None:
        # If the PROXY header has no address, the connection is a health check of the balancer's, or
        # that of a client whom the balancer does not name. The balancer itself is not a client.
        isClient = self._trusted is None or connection.record.client is not None
        if not isClient or self._connections.admits(connection):
            self.handover.handOver(connection)
        else:
            connection.record.closeWith(CloseReason.REFUSED)
            connection.connectionLost(DONE)
