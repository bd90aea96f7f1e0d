"""
The hand-over of a connection to its protocol, in this process.
"""

from twisted.internet.protocol import Factory
from zope.interface import implementer

from kvserver.connections.certificates import Certificates
from kvserver.connections.connection import DONE
from kvserver.connections.handshake import Handshake
from kvserver.connections.record import CloseReason
from kvserver.connections.tls import TLSTransport
from kvserver.connections.transport import Transport
from kvserver.interfaces import IHandover


@implementer(IHandover)
class LocalHandover:
    """
    Serves connections in this process: the TLS handshake, then the protocol.
    """

    def __init__(self, factory: Factory, certificates: Certificates | None = None) -> None:
        """
        @param factory: Builds a protocol for each connection.

        @param certificates: The certificates for TLS. None: there is no TLS.
        """
        self._factory = factory
        self._certificates = certificates
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
            transport.connect(protocol)
