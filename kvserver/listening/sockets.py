"""
A listening socket: its options, and what is said if it can't be had.
"""

import os
import socket

from twisted.internet.error import CannotListenError

BACKLOG = 1024
"""
How many connections wait in the kernel's backlog to be accepted, by default: enough for a burst.
Linux limits this to C{net.core.somaxconn}.
"""


class ListeningSocket(socket.socket):
    """
    A listening socket. L{socket.socket} looks up the names of its family and type each time that it
    accepts a connection: 3 us of the 60 that a short connection takes. Here they stay numbers.
    """

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]


class CannotListen(CannotListenError):
    """
    A L{CannotListenError} whose message says where and why, in words.
    """

    def __str__(self) -> str:
        where = f"{self.interface} port {self.port}" if self.port is not None else self.interface
        return f"Cannot listen on {where.strip()}: {reasonOf(self.socketError)}"


def reasonOf(error: BaseException) -> str:
    """
    Return what an exception says. If it says nothing, return the name of its class.
    """
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def setSocketOptions(listening: socket.socket) -> None:
    """
    Make a listening socket non-blocking, and set the options that its connections inherit.

    With C{SO_KEEPALIVE} the kernel finds out that a peer has vanished. With C{SO_OOBINLINE} an
    urgent byte, which telnet sends with its Synch, keeps its place in the stream; otherwise the
    kernel would take it out, and it would be missing in the echo. With C{TCP_NODELAY} an echo does
    not wait for more bytes to join it.
    """
    listening.setblocking(False)
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def identityOf(opened: socket.socket) -> tuple[int, int]:
    """
    Return what identifies an open file. A file descriptor alone does not: it may come to stand for
    another file.
    """
    status = os.fstat(opened.fileno())
    return status.st_dev, status.st_ino


def placeOf(listening: socket.socket) -> dict[str, object]:
    """
    Return the port or the path of a socket, as a field of a log event.
    """
    name = listening.getsockname()
    return {"port": name[1]} if isinstance(name, tuple) else {"path": os.fsdecode(name)}
