"""
Builds the echo protocol.
"""

from twisted.internet.protocol import ServerFactory

from kvserver.echo.protocol import EchoProtocol


class EchoFactory(ServerFactory):
    """
    Builds an L{EchoProtocol} for each connection.
    """

    protocol = EchoProtocol
    noisy = False
