"""
What a connection passes between accept(2) and its protocol.
"""

import socket
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from twisted.internet.protocol import Factory
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from kvserver.connections.addresses import formatAddress
from kvserver.connections.certificates import Certificates
from kvserver.connections.connection import DONE
from kvserver.connections.handshake import Handshake
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.registry import Connections
from kvserver.connections.tls import TLSTransport
from kvserver.connections.transport import Transport
from kvserver.listening.proxy import ProxyStage

_log = Logger(namespace="kvserver.route.Route")


class Route:
    """
    The stages of the connections of one listener: the PROXY header, the limits, the TLS handshake,
    the protocol. The limits apply as soon as the client is known.
    """

    def __init__(
        self,
        factory: Factory,
        connections: Connections,
        poller: Any,
        trusted: tuple[IPv4Network | IPv6Network, ...] | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """
        @param factory: Builds a protocol for each connection. The listener tells it when it starts
            and stops.

        @param connections: The registry of connections.

        @param poller: Watches the connections.

        @param trusted: The networks that may send a PROXY header. None: connections begin without
            one.

        @param certificates: The certificates for TLS. None: there is no TLS.
        """
        self.factory = factory
        self._connections = connections
        self._poller = poller
        self._trusted = trusted
        self._certificates = certificates

    def enter(self, accepted: socket.socket, record: ConnectionRecord) -> None:
        """
        Start a connection on its route. If that fails, only this connection fails.

        @param accepted: The socket. It must be non-blocking.

        @param record: The record of the connection, which is completed on the way.
        """
        connections = self._connections
        kind = Transport if self._certificates is None else TLSTransport
        transport = kind(accepted, record, self._poller, connections.ended, connections.sourceLog)
        connections.accepted(transport)
        try:
            if self._trusted is None:
                self._admit(transport)
            else:
                ProxyStage(transport, self._trusted, self._admit).begin()
        except Exception as error:
            _log.failure(
                "The connection from {peer} could not begin",
                peer=formatAddress(record.peer),
                level=LogLevel.error,
            )
            record.closeWith(CloseReason.ERROR)
            self._poller.lose(transport, Failure(error))

    def _admit(self, transport: Transport) -> None:
        # If the PROXY header has no address, the connection is a health check of the balancer's, or
        # that of a client whom the balancer does not name. The balancer itself is not a client.
        isClient = self._trusted is None or transport.record.client is not None
        if isClient and not self._connections.admits(transport):
            transport.record.closeWith(CloseReason.REFUSED)
            transport.connectionLost(DONE)
        elif self._certificates is None:
            self._connect(transport)
        else:
            Handshake(transport, self._certificates, self._connect).begin()

    def _connect(self, transport: Transport) -> None:
        protocol = self.factory.buildProtocol(transport.getPeer())
        if protocol is None:
            transport.record.closeWith(CloseReason.REFUSED)
            transport.connectionLost(DONE)
        else:
            transport.connect(protocol)
