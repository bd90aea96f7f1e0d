"""
What twistd costs by itself: it says READY, and does nothing.

    NOTIFY_SOCKET=/tmp/socket twistd -ny empty.tac
"""

import os
import socket

from twisted.application.service import Application
from twisted.internet import reactor


def ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])


application = Application("empty")
reactor.callWhenRunning(ready)
