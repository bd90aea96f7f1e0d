"""
Plain Twisted: what one writes first.

    PORT=4040 twistd -ny linereceiver.tac
"""

import os

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver


class Echo(LineReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def connectionMade(self):
        self.transport.setTcpNoDelay(True)

    def lineReceived(self, line):
        self.sendLine(line)


endpoint = TCP4ServerEndpoint(
    reactor, int(os.environ["PORT"]), backlog=1024, interface="127.0.0.1"
)
application = Application("echo")
StreamServerEndpointService(endpoint, Factory.forProtocol(Echo)).setServiceParent(application)
