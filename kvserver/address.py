"""
Where to listen.
"""

import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from ipaddress import IPv6Address as IPv6
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import ServerFactory
from twisted.internet.tcp import Port
from twisted.python.failure import Failure

_ENVIRONMENT = dict(os.environ)
"""
The environment of the process, with what systemd says in it of the sockets that it passes: Twisted
takes that out as soon as its endpoints are imported.
"""

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

_FIRST_FD = 3
"""
The first file descriptor that systemd passes (sd_listen_fds(3)).
"""


def addressOf(name: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    """
    What Twisted calls what the socket module calls C{name}; IPv4 is IPv4, also if an IPv6 socket
    has it.
    """
    if not isinstance(name, tuple):
        return UNIXAddress(os.fsencode(name) or None)
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


class ListeningSocket(socket.socket):
    """
    A socket that listens. L{socket.socket} looks up the names of its family and type, each time
    that it accepts a connection: 3 us of the 60 that a short one takes. Here they are numbers.
    """

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]


class CannotListen(CannotListenError):
    """
    A L{CannotListenError} that says where, and why, in words.
    """

    def __str__(self) -> str:
        where = f"{self.interface} port {self.port}" if self.port is not None else self.interface
        return f"Cannot listen on {where.strip()}: {self.socketError.strerror}"


def _all(interface: str) -> str:
    return "::" if ":" in interface else "0.0.0.0"


def _prepare(listening: socket.socket) -> None:
    """
    Set what the connections inherit that a listening socket accepts: C{SO_KEEPALIVE} (a peer that
    has vanished is found out), C{SO_OOBINLINE} (an urgent byte, as telnet sends with its Synch,
    stays where it is in the stream; else the kernel would take it out, and its echo were missing)
    and C{TCP_NODELAY} (an echo is not to wait for more bytes to join it).
    """
    listening.setblocking(False)
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class TCP:
    """
    A TCP port. What it is once listened on with, IPv6 or not, it stays.

    @ivar port: 0 lets the kernel choose, once: the port that it chose is kept.

    @ivar interface: The one IPv4 or IPv6 address to listen on. None: all of them, IPv4 and IPv6
        with one socket; IPv4 alone where the host has no IPv6.
    """

    def __init__(self, port: int, interface: str = "") -> None:
        self.port = port
        self.interface = interface
        self._dualStack: bool | None = None

    def __str__(self) -> str:
        return f"port {self.port}"

    def overlaps(self, other: object) -> bool:
        """
        Can't both be listened on?
        """
        return (
            isinstance(other, TCP)
            and 0 != self.port == other.port
            and any(one in ("", two, _all(two)) for one, two in self._pairs(other))
        )

    def _pairs(self, other: "TCP") -> Iterator[tuple[str, str]]:
        yield self.interface, other.interface
        yield other.interface, self.interface

    def listen(self) -> socket.socket:
        """
        Make a socket that listens there, and does not block.

        @raise CannotListenError: The address can't be had.
        """
        dualStack = self._dualStack
        if dualStack is None:
            dualStack = not self.interface and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dualStack or ":" in self.interface else socket.AF_INET
        try:
            with ExitStack() as undo:
                listening = undo.enter_context(ListeningSocket(family, socket.SOCK_STREAM))
                _prepare(listening)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dualStack)
                listening.bind((self.interface, self.port))
                listening.listen(BACKLOG)
                undo.pop_all()
        except OSError as error:
            raise CannotListen(self.interface, self.port, error) from error
        self.port = listening.getsockname()[1]
        self._dualStack = dualStack
        return listening

    def release(self) -> None:
        """
        It is listened on no more: the kernel forgets it by itself.
        """


class UNIX:
    """
    A UNIX socket.

    @ivar path: Its path.

    @ivar mode: Who may connect, as the mode of a file.
    """

    def __init__(self, path: str, mode: int = 0o666) -> None:
        self.path = path
        self.mode = mode
        self._inode: int | None = None

    def __str__(self) -> str:
        return self.path

    def overlaps(self, other: object) -> bool:
        """
        Can't both be listened on?
        """
        return isinstance(other, UNIX) and os.path.realpath(self.path) == os.path.realpath(
            other.path
        )

    def listen(self) -> socket.socket:
        """
        Make a socket that listens there, and does not block. A path that a daemon has left behind
        which was killed is taken; one that a living daemon listens on is not.

        @raise CannotListenError: The address can't be had.
        """
        try:
            self._takeOver()
            with ExitStack() as undo:
                listening = undo.enter_context(ListeningSocket(socket.AF_UNIX, socket.SOCK_STREAM))
                _prepare(listening)
                listening.bind(self.path)
                os.chmod(self.path, self.mode)
                listening.listen(BACKLOG)
                undo.pop_all()
        except OSError as error:
            raise CannotListen(self.path, None, error) from error
        self._inode = os.stat(self.path).st_ino
        return listening

    def isThere(self) -> bool:
        """
        Can we be reached there? Somebody may have removed the path.
        """
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    def _takeOver(self) -> None:
        if not os.path.exists(self.path) or not stat.S_ISSOCK(os.stat(self.path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            if probe.connect_ex(self.path) == errno.ECONNREFUSED:
                os.unlink(self.path)

    def release(self) -> None:
        """
        It is listened on no more: remove the path, unless it is somebody else's by now.
        """
        if self.isThere():
            with suppress(OSError):
                os.unlink(self.path)


class Systemd:
    """
    A socket that systemd listens on and passes to us (sd_listen_fds(3)).

    @ivar index: Which of those that it passes, from 0.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._where = f"socket {index} from systemd"

    def __str__(self) -> str:
        return self._where

    def overlaps(self, other: object) -> bool:
        """
        Can't both be listened on?
        """
        return isinstance(other, Systemd) and self.index == other.index

    @staticmethod
    def passed(environment: Mapping[str, str]) -> list[str]:
        """
        The names of the sockets that systemd passes; empty are those that have none.

        @param environment: Where it says so.
        """
        if environment.get("LISTEN_PID") != str(os.getpid()):
            return []
        count = int(environment.get("LISTEN_FDS", "0"))
        names = environment.get("LISTEN_FDNAMES", "").split(":")
        return [*names, *[""] * count][:count]

    def listen(self) -> socket.socket:
        """
        Take the socket, or take it again.

        @raise CannotListenError: It can't be had.
        """
        try:
            with ExitStack() as undo:
                descriptor = os.dup(_FIRST_FD + self.index)
                listening = undo.enter_context(ListeningSocket(fileno=descriptor))
                _prepare(listening)
                # It listens already, unless somebody has shut it down.
                listening.listen(BACKLOG)
                undo.pop_all()
        except OSError as error:
            raise CannotListen(str(self), None, error) from error
        name = addressOf(listening.getsockname())
        self._where = (
            os.fsdecode(name.name or b"") if isinstance(name, UNIXAddress) else f"port {name.port}"
        )
        return listening

    def release(self) -> None:
        """
        It is systemd's, and stays.
        """


class Endpoint:
    """
    What any other Twisted server endpoint listens on, as one that a plugin adds.

    @ivar description: The description of the endpoint, as C{serverFromString} takes it.
    """

    def __init__(self, reactor: Any, description: str) -> None:
        from twisted.internet.endpoints import serverFromString

        self.description = description
        self._endpoint = serverFromString(reactor, description)
        self._port: Any = None

    def __str__(self) -> str:
        return self.description

    def overlaps(self, other: object) -> bool:
        """
        Can't both be listened on?
        """
        return isinstance(other, Endpoint) and self.description == other.description

    def listen(self) -> socket.socket:
        """
        Let the endpoint listen, and take the socket from the port that it gives: we accept
        ourselves.

        @raise CannotListenError: The address can't be had, or not at once, or the port has no
            socket.
        """
        factory = ServerFactory()
        outcome: list[Any] = []
        maybeDeferred(self._endpoint.listen, factory).addBoth(outcome.append)
        if outcome and isinstance(outcome[0], Failure):
            error = outcome[0].value
            reason = getattr(error, "socketError", error)
            raise CannotListen(self.description, None, OSError(0, str(reason))) from error
        if not (outcome and isinstance(outcome[0], Port) and outcome[0].factory is factory):
            reason = "this endpoint does more than to listen on a socket"
            raise CannotListen(self.description, None, OSError(0, reason))
        # The port is kept, for what else it may hold, as the lock of a file.
        (self._port,) = outcome
        self._port.stopReading()
        listening = ListeningSocket(fileno=self._port.socket.detach())
        _prepare(listening)
        return listening

    def release(self) -> None:
        """
        It is listened on no more.
        """
        self._port = None


Address = TCP | UNIX | Systemd | Endpoint
"""
Where to listen.
"""


def parse(reactor: Any, description: str) -> Address:
    """
    What a server endpoint description says: as Twisted has it, colons part it, and a backslash
    takes the meaning from what follows.

    @param reactor: Is what an endpoint listens with that is none of ours.

    @raise ValueError: It says nothing that can be listened on. Says why.
    """
    kind, *parts = re.split(r"(?<!\\):", description)
    if kind in _OURS:
        raise ValueError(f"{kind}: is {_OURS[kind]} here")
    if kind not in _KINDS:
        try:
            return Endpoint(reactor, description)
        except Exception as error:
            raise ValueError(f"not an endpoint: {error}") from error
    first, optional, build = _KINDS[kind]
    named: dict[str, str] = {}
    for number, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = (first, part) if number == 0 else (part, "")
        if key not in (first, *optional) or key in named:
            raise ValueError(
                f"{kind}: takes {', '.join((first, *optional))}, once, and no {key!r} "
                "(a colon that parts nothing needs a backslash)"
            )
        named[key] = re.sub(r"\\(.)", r"\1", value)
    return build(named)


def _tcp(named: Mapping[str, str], interface: str = "") -> TCP:
    port = named.get("port", "")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"{port!r} is not a TCP port from 0 to 65535")
    if "interface" in named:
        interface = parseInterface(named["interface"])
    return TCP(int(port), interface)


def _tcp6(named: Mapping[str, str]) -> TCP:
    address = _tcp(named, "::")
    if ":" not in address.interface:
        raise ValueError(f"{address.interface} is not an IPv6 address")
    return address


def _unix(named: Mapping[str, str]) -> UNIX:
    path = named.get("address", "")
    # sun_path of unix(7).
    if not 0 < len(os.fsencode(path)) < 108:
        raise ValueError("a UNIX socket has a path of 1 to 107 bytes")
    mode = named.get("mode", "666")
    if not re.fullmatch("[0-7]{3,4}", mode):
        raise ValueError(f"{mode!r} is not the mode of a file, as 660")
    return UNIX(path, int(mode, 8))


def _systemd(named: Mapping[str, str]) -> Systemd:
    passed = Systemd.passed(_ENVIRONMENT)
    if "name" in named:
        if named["name"] not in passed:
            raise ValueError(f"systemd passes no socket {named['name']!r}, but {passed}")
        return Systemd(passed.index(named["name"]))
    index = named.get("index", "0")
    if not (index.isascii() and index.isdigit() and int(index) < len(passed)):
        raise ValueError(f"systemd passes {len(passed)} sockets, none is number {index}, from 0")
    return Systemd(int(index))


_KINDS: dict[str, tuple[str, tuple[str, ...], Callable[[Mapping[str, str]], Address]]] = {
    "tcp": ("port", ("interface",), _tcp),
    "tcp6": ("port", ("interface",), _tcp6),
    "unix": ("address", ("mode",), _unix),
    "systemd": ("domain", ("index", "name"), _systemd),
}
"""
The endpoints that are ours: what comes first, what else there may be, what it makes.
"""


_OURS = {"ssl": "tls:tcp:", "haproxy": "proxy:"}
"""
Endpoints of Twisted that put more than a socket before the protocol: for that there are layers.
"""


def parseInterface(text: str) -> str:
    """
    What is bound for this interface.

    @raise ValueError: It is no address.
    """
    try:
        text.encode("ascii")
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address, as 127.0.0.1 or ::1") from None
    if isinstance(address, IPv6) and address.ipv4_mapped:
        # IPv4, and not by a socket for IPv6 alone.
        return str(address.ipv4_mapped)
    return text
