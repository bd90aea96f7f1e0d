"""
One listening socket, as a service that notices its own death.
"""

import errno
import os
import selectors
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import LoopingCall
from twisted.internet.tcp import Port, Server
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.connections import Connections

BACKLOG = 1024
"""
How many connections wait in the kernel to be accepted: enough for a burst. Linux takes no more than
C{net.core.somaxconn}.
"""

ACCEPTS = 100
"""
How many connections are accepted in one turn of the reactor, so that those who are connected get
theirs.
"""

PAUSE = 0.1
"""
For how long nothing is accepted when accept(2) can't, in seconds: what Ranch, Thousand Island,
OpenSSH and HAProxy wait.
"""

CALM = 1.0
"""
For how long accept(2) must have worked before its trouble is said to be over, in seconds.
"""

CHECK_INTERVAL = 0.5
"""
How often a listener looks whether it still listens, in seconds.
"""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
"""
accept(2): no file descriptor, or no memory, for one more connection.
"""

_OF_ONE_CONNECTION = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
}
"""
accept(2): the connection that was next is gone, or a firewall forbids it. The one after it may be
well.
"""

_MAPPED = "::ffff:"
"""
What stands before the IPv4 address of a peer that comes in by an IPv6 socket (RFC 4291, section
2.5.5.2).
"""


def address(name: tuple[Any, ...]) -> IPv4Address | IPv6Address:
    """
    What Twisted calls what the socket module calls C{name}; IPv4 is IPv4, also if an IPv6 socket
    has it.
    """
    host, port, *more = name
    # An address that is translated (RFC 7915) begins in the same way, and goes on without dots.
    if host.startswith(_MAPPED) and "." in host:
        return IPv4Address("TCP", host.removeprefix(_MAPPED), port)
    if not more:
        return IPv4Address("TCP", host, port)
    if more[-1]:
        # With the name of the network interface, without which a link-local address is nobody's.
        host, _ = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return IPv6Address("TCP", host, port, *more)


class CannotListen(CannotListenError):
    """
    A L{CannotListenError} that says where, and why, in words.
    """

    def __str__(self) -> str:
        where = f"{self.interface} port {self.port}" if self.interface else f"port {self.port}"
        return f"Cannot listen on {where}: {self.socketError.strerror}"


class Address:
    """
    Where to listen.

    @ivar port: The TCP port. 0 lets the kernel choose, once: the port that it chose is kept.

    @ivar interface: The one IPv4 or IPv6 address to listen on. None: all of them, IPv4 and IPv6
        with one socket; IPv4 alone where the host has no IPv6.
    """

    def __init__(self, port: int, interface: str = "") -> None:
        self.port = port
        self.interface = interface

    def listen(self) -> socket.socket:
        """
        Make a socket that listens there, and does not block.

        The connections that it accepts inherit C{TCP_NODELAY} (an echo is not to wait for more
        bytes to join it), C{SO_KEEPALIVE} (a peer that has vanished is found out) and
        C{SO_OOBINLINE} (an urgent byte, as telnet sends with its Synch, stays where it is in the
        stream; else the kernel would take it out, and its echo were missing).

        @raise CannotListenError: The address can't be had.
        """
        dualStack = not self.interface and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dualStack or ":" in self.interface else socket.AF_INET
        try:
            with ExitStack() as undo:
                listening = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listening.setblocking(False)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dualStack)
                listening.bind((self.interface, self.port))
                listening.listen(BACKLOG)
                undo.pop_all()
        except OSError as error:
            raise CannotListen(self.interface, self.port, error) from error
        self.port = listening.getsockname()[1]
        return listening


class Transport(Server):
    """
    An accepted connection, that shows the addresses of an IPv4 peer as IPv4.
    """

    def __repr__(self) -> str:
        return f"<{self.logPrefix()}>"

    def getHost(self) -> IPv4Address | IPv6Address:
        """
        The server's end of this connection.
        """
        return address(self.socket.getsockname())


@implementer(IReadDescriptor)
class Listener(Service):
    """
    One listening socket; the place of the guide's acceptor.

    The reactor watches the socket through a selector of its own. If the socket were closed or
    replaced behind its back, the reactor could not forget the file descriptor any more, and would
    take the connection that gets the same number next for one that it watches already. A selector
    can be thrown away.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: Address,
        factory: ServerFactory,
        connections: Connections,
        died: Callable[[Exception], None],
    ) -> None:
        """
        @param reactor: Provides C{IReactorFDSet} and C{IReactorTime}.

        @param address: Where to listen.

        @param factory: Builds a protocol for each connection.

        @param connections: Says when there are too many.

        @param died: Is called when the socket listens no more, unless it was stopped.
        """
        self._reactor = reactor
        self.address = address
        self._factory = factory
        self._connections = connections
        self._died = died
        self._socket: socket.socket | None = None
        self._accepted = 0
        self._refusals = 0
        self._pause: IDelayedCall | None = None
        self._calm: IDelayedCall | None = None
        self._checking = LoopingCall(self._check)
        self._checking.clock = reactor

    def privilegedStartService(self) -> None:
        """
        Listen: while C{twistd} has not shed its privileges, for a port below 1024.

        @raise CannotListenError: The address can't be had.
        """
        self._socket = self.address.listen()
        self._inode = os.fstat(self._socket.fileno()).st_ino
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._reactor.addReader(self)
        self._log.info("Accepting connections on port {port}", port=self.address.port)

    def startService(self) -> None:
        """
        Listen, if we don't yet: C{twist} never calls L{privilegedStartService}.

        @raise CannotListenError: The address can't be had.
        """
        if self._socket is None:
            self.privilegedStartService()
        super().startService()
        self._checking.start(CHECK_INTERVAL)

    def stopService(self) -> None:
        """
        Stop listening. Connections that were accepted go on; so do those that wait to be accepted:
        what they have sent has reached this machine.
        """
        super().stopService()
        listening, self._socket = self._socket, None
        if listening is None:
            return
        self._deaf()
        self._selector.close()
        for call in self._pause, self._calm:
            if call is not None and call.active():
                call.cancel()
        if not self._isOurs(listening):
            # What has that number now is not ours to close.
            listening.detach()
            return
        with listening:
            # The kernel lets one more wait than it was told.
            for _ in range(BACKLOG + 1):
                try:
                    accepted, name = listening.accept()
                except OSError as error:
                    if error.errno in _OF_ONE_CONNECTION:
                        continue
                    break
                self._connect(accepted, name)

    def isListening(self) -> bool:
        """
        Does the kernel take connections for us? The number of a socket that was closed may be that
        of another one by now, and a socket that was shut down is still open.
        """
        return (
            self._socket is not None
            and self._isOurs(self._socket)
            and bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        )

    def _isOurs(self, listening: socket.socket) -> bool:
        try:
            return os.fstat(listening.fileno()).st_ino == self._inode
        except OSError:
            return False

    def _check(self) -> None:
        if not self.isListening():
            self._die(OSError("its socket listens no more"))

    def _die(self, reason: Exception) -> None:
        self._deaf()
        self._died(reason)

    def _deaf(self) -> None:
        if self._checking.running:
            self._checking.stop()
        self._reactor.removeReader(self)

    def fileno(self) -> int:
        """
        The selector's.
        """
        return self._selector.fileno()

    def logPrefix(self) -> str:
        """
        The name of this listener.
        """
        return str(self.name)

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor can't watch the selector any more.
        """
        self._die(OSError(reason.getErrorMessage()))

    def doRead(self) -> None:
        """
        Accept who is waiting.
        """
        assert self._socket is not None
        failed: OSError | None = None
        for _ in range(ACCEPTS):
            if not self._connections.whenRoom(self._resume):
                self._reactor.removeReader(self)
                return
            try:
                accepted, name = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._wait(error)
                    return
                if error.errno not in _OF_ONE_CONNECTION:
                    self._die(error)
                    return
                failed = error
            else:
                failed = None
                self._connect(accepted, name)
        if failed:
            # So many in a row, and there is no end of them: that is no trouble of one connection.
            self._wait(failed)

    def _wait(self, trouble: OSError) -> None:
        """
        accept(2) can't, and would not let us sleep: leave it alone for a while.
        """
        if not self._refusals:
            self._log.warn(
                "Can't accept: {reason}. Trying again every {seconds} s",
                reason=trouble.strerror,
                seconds=PAUSE,
            )
        self._refusals += 1
        self._reactor.removeReader(self)
        self._pause = self._reactor.callLater(PAUSE, self._resume)
        if self._calm is not None and self._calm.active():
            self._calm.reset(CALM)
        else:
            self._calm = self._reactor.callLater(CALM, self._recovered)

    def _recovered(self) -> None:
        self._log.info("Accepting again, after {count} failures", count=self._refusals)
        self._refusals = 0

    def _resume(self) -> None:
        waits = self._pause is not None and self._pause.active()
        if self._socket is not None and not waits:
            self._reactor.addReader(self)

    def _connect(self, accepted: socket.socket, name: tuple[Any, ...]) -> None:
        """
        Serve a connection. If that fails, it fails alone.
        """
        peer = address(name)
        try:
            protocol = self._factory.buildProtocol(peer)
        except Exception:
            self._log.failure("No protocol could be built for {peer}", peer=peer)
            protocol = None
        if protocol is None:
            accepted.close()
            return
        client: tuple[Any, ...] = peer.host, peer.port
        if isinstance(peer, IPv6Address):
            client += peer.flowInfo, peer.scopeID
        # There is no Port: that is None where Twisted itself adopts a connection, too.
        port = cast(Port, None)
        transport = Transport(accepted, protocol, client, port, self._accepted, self._reactor)
        self._accepted += 1
        try:
            protocol.makeConnection(transport)
        except Exception:
            self._log.failure("The connection from {peer} could not begin", peer=peer)
            transport.abortConnection()
