"""
One listening socket, as a service.
"""

import socket
from contextlib import ExitStack
from typing import Any

from twisted.application.service import Service
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocol, IReactorFDSet, IReactorSocket
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

BACKLOG = 1024
"""
How many connections wait in the kernel to be accepted: enough for a burst. Linux takes no more than
C{net.core.somaxconn}.
"""

_MAPPED = "::ffff:"
"""
What stands before the IPv4 address of a peer that comes in by an IPv6 socket (RFC 4291, section
2.5.5.2).
"""


def bind(port: int, interface: str = "") -> socket.socket:
    """
    Make a listening TCP socket.

    The connections that it accepts inherit C{TCP_NODELAY} (an echo is not to wait for more bytes to
    join it) and C{SO_KEEPALIVE} (a peer that has vanished is found out).

    @param port: The TCP port; 0 lets the kernel choose.

    @param interface: The one IPv4 or IPv6 address to listen on. None: all of them, IPv4 and IPv6
        with one socket; IPv4 alone where the host has no IPv6.

    @raise CannotListenError: The address can't be had.
    """
    dualStack = not interface and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dualStack or ":" in interface else socket.AF_INET
    try:
        with ExitStack() as undo:
            listening = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dualStack)
            listening.bind((interface, port))
            listening.listen(BACKLOG)
            undo.pop_all()
    except OSError as error:
        raise CannotListen(interface, port, error) from error
    return listening


class CannotListen(CannotListenError):
    """
    A L{CannotListenError} that says where, and why, in words.
    """

    def __str__(self) -> str:
        address = f"{self.interface} port {self.port}" if self.interface else f"port {self.port}"
        return f"Cannot listen on {address}: {self.socketError.strerror}"


class DualStackTransport(tcp.Server):
    """
    A connection that came in by an IPv6 socket, and shows the addresses of an IPv4 peer as IPv4.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: IProtocol,
        client: tuple[Any, ...],
        server: tcp.Port,
        sessionno: int,
        reactor: IReactorFDSet,
    ) -> None:
        host, port, *_ = client
        if host.startswith(_MAPPED):
            client = host.removeprefix(_MAPPED), port
        super().__init__(sock, protocol, client, server, sessionno, reactor)

    def getHost(self) -> IPv4Address | IPv6Address:
        """
        The server's end of this connection.
        """
        host, port, *rest = self.socket.getsockname()
        if host.startswith(_MAPPED):
            return IPv4Address("TCP", host.removeprefix(_MAPPED), port)
        return IPv6Address("TCP", host, port, *rest)


class Listener(Service):
    """
    One listening socket; the place of the guide's acceptor.
    """

    _log = Logger()
    _port: IListeningPort | None = None

    def __init__(
        self, reactor: IReactorSocket, factory: ServerFactory, port: int, interface: str = ""
    ) -> None:
        """
        @param reactor: Accepts the connections.

        @param factory: Builds a protocol for each of them.

        @param port: See L{bind}.

        @param interface: See L{bind}.
        """
        self._reactor = reactor
        self._factory = factory
        self._address = port, interface
        self.setName(f"tcp:{port}")

    def privilegedStartService(self) -> None:
        """
        Listen: while C{twistd} has not shed its privileges, for a port below 1024.

        @raise CannotListenError: The address can't be had.
        """
        with bind(*self._address) as listening:
            port = self._reactor.adoptStreamPort(
                listening.fileno(), listening.family, self._factory
            )
            realPort = listening.getsockname()[1]
        if isinstance(port, tcp.Port) and port.addressFamily == socket.AF_INET6:
            port.transport = DualStackTransport
        self._port = port
        self._log.info("Accepting connections on port {port}", port=realPort)

    def startService(self) -> None:
        """
        Listen, if we don't yet: C{twist} never calls L{privilegedStartService}.

        @raise CannotListenError: The address can't be had.
        """
        if self._port is None:
            self.privilegedStartService()
        super().startService()

    def stopService(self) -> Deferred[object]:
        """
        Stop listening. Connections that were accepted go on.

        @return: Fires when the socket is closed.
        """
        super().stopService()
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening if port else lambda: None)
