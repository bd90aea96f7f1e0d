"""
What a listener listens on: a TCP port, a UNIX socket, or what a Twisted endpoint binds.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, NoReturn

from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import ServerFactory
from twisted.internet.tcp import Port
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.interfaces import IBinding
from kvserver.listening.sockets import (
    BACKLOG,
    CannotListen,
    ListeningSocket,
    setSocketOptions,
)


def _wildcardFor(interface: str) -> str:
    return "::" if ":" in interface else "0.0.0.0"


@implementer(IBinding)
class TCPBinding:
    """
    A TCP port. The first L{listen} decides whether it uses IPv6, and that does not change.

    @ivar port: The port. 0: the kernel chooses one at the first L{listen}, and that one is kept.

    @ivar interface: The one IPv4 or IPv6 address to listen on. Empty: all of them, IPv4 and IPv6
        with one socket; IPv4 alone if the host has no IPv6.
    """

    def __init__(self, port: int, interface: str = "", backlog: int = BACKLOG) -> None:
        self.port = port
        self.interface = interface
        self.backlog = backlog
        self._dualStack: bool | None = None

    def __str__(self) -> str:
        return f"port {self.port}"

    def conflictsWith(self, other: object) -> bool:
        """
        Return whether both have the same port on addresses that overlap.
        """
        return (
            isinstance(other, TCPBinding)
            and 0 != self.port == other.port
            and any(one in ("", two, _wildcardFor(two)) for one, two in self._pairs(other))
        )

    def _pairs(self, other: "TCPBinding") -> Iterator[tuple[str, str]]:
        yield self.interface, other.interface
        yield other.interface, self.interface

    def listen(self) -> socket.socket:
        """
        Make a non-blocking socket that listens on the port.

        @raise CannotListenError: It can't listen on the address.
        """
        dualStack = self._dualStack
        if dualStack is None:
            dualStack = not self.interface and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dualStack or ":" in self.interface else socket.AF_INET
        try:
            with ExitStack() as undo:
                listening = undo.enter_context(ListeningSocket(family, socket.SOCK_STREAM))
                setSocketOptions(listening)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dualStack)
                listening.bind((self.interface, self.port))
                listening.listen(self.backlog)
                undo.pop_all()
        except OSError as error:
            raise CannotListen(self.interface, self.port, error) from error
        self.port = listening.getsockname()[1]
        self._dualStack = dualStack
        return listening

    def isBound(self) -> bool:
        """
        Return true: nobody can take the port away from its socket.
        """
        return True

    def unbind(self) -> None:
        """
        Do nothing: the kernel releases the port by itself.
        """


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _unlink(path: str, identity: tuple[int, int]) -> None:
    """
    Remove a path, unless another file, or a link, has taken its place.

    @raise OSError: The path can't be removed.
    """
    folder, name = os.path.split(path)
    # Somebody may put another folder in the place of this one between lstat(2) and unlink(2).
    descriptor = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        if _identity(os.lstat(name, dir_fd=descriptor)) == identity:
            os.unlink(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


@implementer(IBinding)
class UNIXBinding:
    """
    A UNIX socket.

    @ivar path: Its path.

    @ivar mode: Who may connect, as a file mode.
    """

    def __init__(self, path: str, mode: int = 0o666, backlog: int = BACKLOG) -> None:
        self.path = path
        self.mode = mode
        self.backlog = backlog
        self._identity: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.path

    def conflictsWith(self, other: object) -> bool:
        """
        Return whether both have the same path.
        """
        return isinstance(other, UNIXBinding) and os.path.realpath(self.path) == os.path.realpath(
            other.path
        )

    def listen(self) -> socket.socket:
        """
        Make a non-blocking socket that listens at the path. If a killed daemon has left the path
        behind, it is taken over. If a living daemon listens there, or the path is a symbolic link,
        it is not.

        @raise CannotListenError: It can't listen at the path.
        """
        try:
            self._removeStalePath()
            with ExitStack() as undo:
                listening = undo.enter_context(ListeningSocket(socket.AF_UNIX, socket.SOCK_STREAM))
                setSocketOptions(listening)
                self._bind(listening)
                listening.listen(self.backlog)
                undo.pop_all()
        except OSError as error:
            raise CannotListen(self.path, None, error) from error
        return listening

    def _bind(self, listening: socket.socket) -> None:
        """
        Bind the socket, so that the path has its mode from the first moment. A chmod(2) of the path
        afterwards would follow a link that somebody has put in its place.
        """
        # bind(2) gives the path the mode of the socket, without the bits of the umask.
        os.fchmod(listening.fileno(), self.mode)
        umask = os.umask(0)
        try:
            listening.bind(self.path)
        finally:
            os.umask(umask)
        self._identity = _identity(os.lstat(self.path))

    def isBound(self) -> bool:
        """
        Return whether the path still leads to our socket. Somebody may have removed or replaced it.
        """
        try:
            # This follows a link, as clients do.
            return _identity(os.stat(self.path)) == self._identity
        except OSError:
            return False

    def _removeStalePath(self) -> None:
        """
        Remove the path if it is a socket on which nobody listens.

        @raise OSError: The path is a symbolic link. Its target is not ours.
        """
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(status.st_mode):
            raise OSError(errno.EEXIST, "There is a symbolic link")
        if not stat.S_ISSOCK(status.st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            if probe.connect_ex(self.path) == errno.ECONNREFUSED:
                _unlink(self.path, _identity(status))

    def unbind(self) -> None:
        """
        Remove the path, unless somebody has replaced it.
        """
        if self._identity is not None:
            with suppress(OSError):
                _unlink(self.path, self._identity)


_DOES_MORE = "this endpoint does more than to listen on a socket"


class _NoProtocols(ServerFactory):
    """
    Given to an endpoint whose socket we take over: the endpoint must not serve anybody itself.
    """

    def buildProtocol(self, addr: object) -> NoReturn:
        """
        Fail. Some endpoints, such as C{stdio:}, ask for a protocol as soon as they listen.

        @raise OSError: Always.
        """
        raise OSError(_DOES_MORE)


@implementer(IBinding)
class EndpointBinding:
    """
    What any other Twisted server endpoint listens on, such as one from a plugin.

    @ivar description: The description of the endpoint, as C{serverFromString} takes it.
    """

    def __init__(self, description: str, reactor: Any = None) -> None:
        """
        @param reactor: The reactor that the endpoint listens with; by default the global one.
        """
        from twisted.internet.endpoints import serverFromString

        if reactor is None:
            from twisted.internet import reactor

        self.description = description
        self.backlog = BACKLOG
        self._endpoint = serverFromString(reactor, description)
        self._port: Any = None

    def __str__(self) -> str:
        return self.description

    def conflictsWith(self, other: object) -> bool:
        """
        Return whether both have the same description.
        """
        return isinstance(other, EndpointBinding) and self.description == other.description

    def listen(self) -> socket.socket:
        """
        Let the endpoint listen, and take the socket from the port that it returns: the listener
        accepts the connections itself.

        @raise CannotListenError: The endpoint can't listen, or not at once, or its port has no
            socket.
        """
        factory = _NoProtocols()
        outcome: list[Any] = []
        maybeDeferred(self._endpoint.listen, factory).addBoth(outcome.append)
        if outcome and isinstance(outcome[0], Failure):
            error = outcome[0].value
            reason = getattr(error, "socketError", error)
            raise CannotListen(self.description, None, reason) from error
        if not (outcome and isinstance(outcome[0], Port) and outcome[0].factory is factory):
            raise CannotListen(self.description, None, OSError(_DOES_MORE))
        # Keep the port: it may hold something else, such as a lock file.
        (self._port,) = outcome
        self._port.stopReading()
        listening = ListeningSocket(fileno=self._port.socket.detach())
        setSocketOptions(listening)
        return listening

    def isBound(self) -> bool:
        """
        Return true: an endpoint does not tell.
        """
        return True

    def unbind(self) -> None:
        """
        Let go of the endpoint's port.
        """
        self._port = None
