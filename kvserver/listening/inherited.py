"""
A socket that systemd listens on and passes to this process.
"""

import os
import socket
import struct
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import ExitStack, suppress
from pathlib import Path

from twisted.internet.address import UNIXAddress
from zope.interface import implementer

from kvserver.connections.addresses import fromSockaddr
from kvserver.interfaces import IBinding
from kvserver.listening.sockets import BACKLOG, CannotListen, ListeningSocket, setSocketOptions

_FIRST_FD = 3
"""
The first file descriptor that systemd passes (sd_listen_fds(3)).
"""

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""
The environment variables of sd_listen_fds(3).
"""

_INITIAL_ENVIRONMENT = Path("/proc/self/environ")
"""
The environment that the process was started with (proc(5)). It keeps the variables that the process
removes later.
"""

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

_PROTOCOLS = (0, socket.IPPROTO_TCP)
"""
The protocols of the sockets that can be served; 0 is that of a UNIX socket. Multipath TCP
(C{SocketProtocol=mptcp}) has no C{SO_OOBINLINE}, so an echo over it would lose urgent bytes.
"""


class NotPassed(ValueError):
    """
    The service manager has not passed the socket, or the socket can't be served. The message says
    why.
    """


def passedNames(environment: Mapping[str, str]) -> list[str]:
    """
    Return the names of the sockets that the service manager passes (sd_listen_fds_with_names(3)). A
    socket without a name has an empty one.

    L{twisted.internet.endpoints} removes the variables from the environment when it is imported,
    and any Twisted plugin may import it before this is called. Therefore the initial environment
    counts if the variables are missing.

    @param environment: The environment of the process.

    @raise ValueError: A variable has a wrong value. The message names it.
    """
    if "LISTEN_FDS" not in environment:
        environment = _initialEnvironment()
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "0")
    if not (count.isascii() and count.isdigit() and len(count) <= 6):
        raise ValueError(f"LISTEN_FDS (environment): {count!r} is not a number of sockets")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return [*names, *[""] * int(count)][: int(count)]


def _initialEnvironment() -> dict[str, str]:
    try:
        content = _INITIAL_ENVIRONMENT.read_bytes()
    except OSError:
        # Without /proc only the present environment is known.
        return {}
    assignments = (os.fsdecode(line).partition("=") for line in content.split(b"\0"))
    return {name: value for name, _, value in assignments}


def forgetEnvironment(environment: MutableMapping[str, str]) -> None:
    """
    Remove the variables of sd_listen_fds(3): the sockets are not for child processes.
    """
    for name in _VARIABLES:
        environment.pop(name, None)


def findSocket(environment: Mapping[str, str], index: int, name: str | None) -> int:
    """
    Find a socket among those that the service manager has passed.

    @param environment: The environment of the process.

    @param index: The index of the socket. It counts if C{name} is None.

    @return: The index of the socket, from 0.

    @raise NotPassed: There is no such socket.

    @raise ValueError: Several sockets have that name.
    """
    passed = passedNames(environment)
    if not passed:
        raise NotPassed("systemd passed no sockets. Was this started by kvserver.socket?")
    everything = ", ".join(map(_label, range(len(passed)), passed))
    if name is None:
        if index >= len(passed):
            raise NotPassed(f"systemd passed {everything}, but no socket {index}")
        return index
    found = [number for number, other in enumerate(passed) if other == name != ""]
    if not found:
        raise NotPassed(f"systemd passed {everything}, but none named {name!r}")
    if len(found) > 1:
        choice = " or ".join(f"index={number}" for number in found)
        raise ValueError(f"systemd passed {len(found)} sockets named {name!r}: say {choice}")
    return found[0]


def unusedSockets(environment: Mapping[str, str], bindings: Iterable[IBinding]) -> list[str]:
    """
    Find the sockets that the service manager has passed and no listener uses: their clients would
    wait for ever.

    @param environment: The environment of the process.

    @param bindings: The bindings of all listeners.

    @return: The sockets, as people would name them.
    """
    used = {binding.index for binding in bindings if isinstance(binding, InheritedBinding)}
    try:
        passed = passedNames(environment)
    except ValueError:
        # An option that names such a socket has been refused for this already.
        return []
    return [_label(index, name) for index, name in enumerate(passed) if index not in used]


def _label(index: int, name: str) -> str:
    return f"socket {index} ({name!r})" if name else f"socket {index}"


@implementer(IBinding)
class InheritedBinding:
    """
    A socket that systemd listens on and passes to this process (sd_listen_fds(3)).

    @ivar index: Its index among the sockets that systemd passes, from 0.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.backlog = BACKLOG
        self._descriptor = _FIRST_FD + index
        self._where = f"socket {index} from systemd"
        self._identity: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self._where

    def conflictsWith(self, other: object) -> bool:
        """
        Return whether both are the same socket.
        """
        return isinstance(other, InheritedBinding) and self.index == other.index

    def check(self) -> None:
        """
        Check the socket, without any change to it.

        @raise NotPassed: The socket can't be served. The message says why.
        """
        try:
            passed = socket.socket(fileno=self._descriptor)
        except OSError as error:
            raise NotPassed(f"{self}: {error.strerror}") from error
        try:
            reason = _whyNot(passed)
            self._identity = self._identify()
        finally:
            # The file descriptor stays open.
            passed.detach()
        if reason:
            raise NotPassed(f"{self}: {reason}")

    def _identify(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def listen(self) -> socket.socket:
        """
        Take the socket, for the first time or again.

        @raise CannotListenError: The socket can't be used.
        """
        try:
            with ExitStack() as undo:
                # The socket is not for child processes.
                os.set_inheritable(self._descriptor, False)
                if self._identity not in (None, self._identify()):
                    raise OSError(0, f"file descriptor {self._descriptor} is another one by now")
                descriptor = os.dup(self._descriptor)
                listening = undo.enter_context(ListeningSocket(fileno=descriptor))
                setSocketOptions(listening)
                if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    # Somebody has shut the socket down. As long as it listens, listen(2) would only
                    # replace the backlog that the administrator has set.
                    listening.listen(self.backlog)
                undo.pop_all()
        except OSError as error:
            raise CannotListen(str(self), None, error) from error
        self.backlog = _backlogOf(listening)
        name = fromSockaddr(listening.getsockname())
        # The name of an abstract socket begins with a byte 0, which people write as @ (unix(7)).
        self._where = (
            os.fsdecode(name.name or b"").replace("\0", "@")
            if isinstance(name, UNIXAddress)
            else f"port {name.port}"
        )
        return listening

    def isBound(self) -> bool:
        """
        Return true: systemd keeps the socket bound.
        """
        return True

    def unbind(self) -> None:
        """
        Do nothing: the socket belongs to systemd, and stays.
        """


def _whyNot(passed: socket.socket) -> str | None:
    """
    Return why a socket can't be served; None if it can.
    """
    if passed.family not in _FAMILIES:
        family = getattr(passed.family, "name", passed.family)
        return f"its address family is {family}, not AF_INET, AF_INET6 or AF_UNIX"
    if passed.type != socket.SOCK_STREAM:
        kind = getattr(passed.type, "name", passed.type)
        return f"its type is {kind}, not SOCK_STREAM (ListenStream=)"
    if passed.proto not in _PROTOCOLS:
        return f"its protocol is number {passed.proto}, not TCP"
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "it does not listen (Accept=no)"
    return None


def _backlogOf(listening: socket.socket) -> int:
    """
    Return the backlog of a socket that listens. The kernel does not tell that of a UNIX socket.
    """
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            # tcp_info of linux/tcp.h, where tcpi_sacked of a listening socket is its backlog.
            info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
            (backlog,) = struct.unpack("28xI", info)
            return int(backlog)
    return BACKLOG
