"""
What a transport makes of what the kernel says.
"""

import socket
import struct

import pytest
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from kvserver.check.transport import IOwner, Transport


@implementer(IOwner)
class Owner:
    """
    Keeps what it is told.
    """

    transport: Transport

    def __init__(self) -> None:
        self.told: list[object] = []

    def connected(self) -> None:
        """
        See L{IOwner}.
        """
        self.told.append("connected")

    secured = writable = connected

    def dataReceived(self, data: bytes) -> None:
        """
        See L{IOwner}.
        """
        self.told.append(data)

    def ended(self) -> None:
        """
        See L{IOwner}.
        """
        self.told.append("ended")
        self.transport.close()

    def failed(self, error: OSError) -> None:
        """
        See L{IOwner}.
        """
        self.told.append(type(error))


@pytest.mark.parametrize("isReset", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("reads", [True, False], ids=["read first", "told first"])
def test_writeFails(isReset: bool, reads: bool) -> None:
    """
    When a write finds that the other side has reset the connection, it was reset, although the next
    read looks like FIN. After a FIN, it has ended.
    """
    owner = Owner()
    reactor = MemoryReactorClock()
    transport = owner.transport = Transport(reactor, owner)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        transport.connect(socket.AF_INET, listening.getsockname())
        accepted, _ = listening.accept()
    transport.doWrite()
    linger = struct.pack("ii", isReset, 0)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    accepted.close()
    for _ in range(3):
        transport.send(b"hello\n")
    if reads:
        transport.doRead()
    reactor.advance(0)
    assert owner.told == ["connected", ConnectionResetError if isReset else "ended"]
    transport.close()
