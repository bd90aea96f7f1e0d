"""
Plain Twisted: what one writes first.

    PORT=4040 [TLS_CERTIFICATE=FILE TLS_PRIVATE_KEY=FILE] twistd -ny linereceiver.tac
"""

import os

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver


class Echo(LineReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def connectionMade(self):
        self.transport.setTcpNoDelay(True)

    def lineReceived(self, line):
        self.sendLine(line)


where = f"{os.environ['PORT']}:backlog=1024:interface=127.0.0.1"
if "TLS_CERTIFICATE" in os.environ:
    files = f"certKey={os.environ['TLS_CERTIFICATE']}:privateKey={os.environ['TLS_PRIVATE_KEY']}"
    endpoint = serverFromString(reactor, f"ssl:{where}:{files}")
else:
    endpoint = serverFromString(reactor, f"tcp:{where}")
application = Application("echo")
StreamServerEndpointService(endpoint, Factory.forProtocol(Echo)).setServiceParent(application)
