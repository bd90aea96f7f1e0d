"""
The hand-over of a connection to its protocol, in this process.
"""

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.connections.addresses import formatAddress
from kvserver.connections.banner import Banner
from kvserver.connections.certificates import Certificates
from kvserver.connections.connection import DONE, Connection
from kvserver.connections.handshake import Handshake
from kvserver.connections.record import CloseReason
from kvserver.connections.tls import TLSTransport
from kvserver.connections.transport import Transport
from kvserver.interfaces import IHandover

_log = Logger(namespace="kvserver.route.Route")


def begin(connection: Connection, start: Callable[[Any], None]) -> None:
    """
    Start a connection on its way. If that fails, only this connection fails.

    @param start: Called with the connection.
    """
    try:
        start(connection)
    except BaseException as error:
        _log.failure(
            "The connection from {peer} could not begin",
            peer=formatAddress(connection.record.peer),
            level=LogLevel.error,
        )
        connection.record.closeWith(CloseReason.ERROR)
        connection.poller.lose(connection, Failure(error))


@implementer(IHandover)
class LocalHandover:
    """
    Serves connections in this process: the TLS handshake, then the protocol.
    """

    def __init__(
        self,
        factory: Factory,
        certificates: Certificates | None = None,
        banner: Banner | None = None,
    ) -> None:
        """
        @param factory: Builds a protocol for each connection.

        @param certificates: The certificates for TLS. None: there is no TLS.

        @param banner: The line that each connection begins with. None: there is none.
        """
        self._factory = factory
        self._certificates = certificates
        self._banner = banner
        self.kind = Transport if certificates is None else TLSTransport

    def start(self) -> None:
        """
        Tell the factory that a listener listens.
        """
        self._factory.doStart()

    def stop(self) -> None:
        """
        Tell the factory that a listener has ceased to listen.
        """
        self._factory.doStop()

    def handOver(self, connection: Transport) -> None:
        """
        Serve the connection.

        @param connection: One of the C{kind} of this.
        """
        if self._certificates is None:
            self._connect(connection)
        else:
            Handshake(connection, self._certificates, self._connect).begin()

    def _connect(self, transport: Transport) -> None:
        protocol = self._factory.buildProtocol(transport.getPeer())
        if protocol is None:
            transport.record.closeWith(CloseReason.REFUSED)
            transport.connectionLost(DONE)
        else:
            if self._banner is not None:
                transport.write(self._banner.line(transport))
            transport.connect(protocol)
