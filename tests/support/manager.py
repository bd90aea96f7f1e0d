"""
The service manager, as far as the daemon speaks to it.
"""

import contextlib
import socket

from tests.support.daemon import PATIENCE


class Ear:
    """
    The manager's socket.

    @ivar address: Where it is.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE)

    def hear(self) -> str:
        """
        The next thing that is said.
        """
        return self.socket.recv(4096).decode()

    def heard(self) -> list[str]:
        """
        All that has been said, and was not heard yet.
        """
        said: list[str] = []
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(self.hear())
        self.socket.settimeout(PATIENCE)
        return said
