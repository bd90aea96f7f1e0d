"""
Parses endpoint descriptions, which say where to listen.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import IPv6Address as IPv6
from ipaddress import ip_address
from typing import Any

from kvserver.interfaces import IBinding
from kvserver.listening.bindings import EndpointBinding, TCPBinding, UNIXBinding
from kvserver.listening.grammar import escape, parseArguments
from kvserver.listening.inherited import InheritedBinding, findSocket
from kvserver.listening.sockets import BACKLOG, reasonOf

_MAX_BACKLOG = 65535

_BARE_IPV6 = re.compile(r"(interface=)([0-9A-Fa-f]*:[0-9A-Fa-f:.]*[0-9A-Fa-f:])(?=:\w+=|$)")
"""
An IPv6 address whose colons are not escaped.
"""


def parseEndpoint(
    description: str,
    environment: Mapping[str, str] = os.environ,
    reactor: Any = None,
    interface: str = "",
) -> IBinding:
    """
    Parse a server endpoint description. Its grammar, and the names and the order of its arguments,
    are Twisted's.

    @param environment: The environment of the process, which names the sockets that the service
        manager has passed.

    @param reactor: The reactor for an endpoint that is not ours; by default the global one.

    @param interface: The interface to suggest, if what is given is no endpoint but a port. Empty:
        all.

    @raise NotPassed: The service manager has not passed the socket. The message says which ones it
        has passed.

    @raise ValueError: The description is wrong. The message says why.
    """
    positional, named = parseArguments(description)
    # Twisted ignores the case of the prefixes that plugins add, among them tcp6 and systemd.
    kind = positional.pop(0).lower() if positional else ""
    if kind in _USE_A_LAYER:
        raise ValueError(f"{kind}: is {_USE_A_LAYER[kind]} here")
    if kind not in _GRAMMAR:
        return _endpoint(description, reactor, interface)
    names, build = _GRAMMAR[kind]
    # Arguments without a key get one by their position, as in a Python call.
    arguments = dict(zip(names, positional, strict=False))
    unknown = positional[len(names) :]
    for key, value in named:
        if key not in names or key in arguments:
            unknown.append(f"{key}={value}")
        arguments[key] = value
    if unknown:
        hint = r"inside a value write \: for a colon, \= for an equals sign"
        if match := _BARE_IPV6.search(description):
            meant = f"{match[1]}{escape(match[2])}"
            hint = f"in a value colons are escaped: write '{meant}', in quotes"
        raise ValueError(
            f"{kind}: takes {', '.join(names)}, each once, and no {unknown[0]!r} ({hint})"
        )
    return build(arguments, environment)


parseLocalEndpoint = partial(parseEndpoint, interface="127.0.0.1")
"""
Parses the description of an endpoint for which a loopback address is a good choice.
"""


def _endpoint(description: str, reactor: Any, interface: str) -> EndpointBinding:
    try:
        return EndpointBinding(description, reactor)
    except Exception as error:
        meant = _meant(description, interface)
        reason = (
            f"instead of {description!r} write {meant}"
            if meant
            else f"{reasonOf(error)} (as tcp:4040, unix:/run/echo.sock or systemd:name=echo)"
        )
        raise ValueError(f"not an endpoint: {reason}") from error


def _meant(description: str, interface: str) -> str | None:
    """
    Guess the endpoint description that was meant; None if it could be anything.

    @param interface: The interface that was meant if there is only a port. Empty: all.
    """
    if description.startswith("/"):
        return f"unix:{escape(description)}"
    host, _, port = description.rpartition(":")
    try:
        _portNumber(port)
        if host == "*":
            interface = ""
        elif host:
            interface = parseInterface(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    if not interface:
        return f"tcp:{port}"
    return f"tcp:{port}:interface={escape(interface)}"


def _portNumber(port: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"{port!r} is not a TCP port from 0 to 65535")
    return int(port)


def _backlog(arguments: Mapping[str, str]) -> int:
    text = arguments.get("backlog", str(BACKLOG))
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= _MAX_BACKLOG:
        return int(text)
    raise ValueError(f"{text!r} is not a backlog from 1 to {_MAX_BACKLOG}")


def _tcp(
    arguments: Mapping[str, str], environment: Mapping[str, str], interface: str = ""
) -> TCPBinding:
    try:
        port = _portNumber(arguments.get("port", ""))
    except ValueError as error:
        # As clients have it: the address, and then the port.
        meant = _meant(f"{arguments.get('port', '')}:{arguments.get('interface', '')}", "")
        raise ValueError(f"{error}: write {meant}" if meant else str(error)) from None
    if "interface" in arguments:
        interface = parseInterface(arguments["interface"])
    return TCPBinding(port, interface, _backlog(arguments))


def _tcp6(arguments: Mapping[str, str], environment: Mapping[str, str]) -> TCPBinding:
    binding = _tcp(arguments, environment, "::")
    if ":" not in binding.interface:
        raise ValueError(f"{binding.interface} is not an IPv6 address")
    return binding


def _unix(arguments: Mapping[str, str], environment: Mapping[str, str]) -> UNIXBinding:
    path = arguments.get("address", "")
    # The size of sun_path (unix(7)), with its final NUL.
    if not 0 < len(os.fsencode(path)) < 108:
        raise ValueError("a UNIX socket has a path of 1 to 107 bytes")
    mode = arguments.get("mode", "666")
    if not re.fullmatch("[0-7]{3,4}", mode):
        raise ValueError(f"{mode!r} is not the mode of a file, as 660")
    # Twisted's lock file finds out whether a path is stale. UNIXBinding does that without one.
    if (lockfile := arguments.get("lockfile", "0")) not in ("0", "1"):
        raise ValueError(f"{lockfile!r} is not 0 or 1, for lockfile")
    return UNIXBinding(path, int(mode, 8), _backlog(arguments))


def _systemd(arguments: Mapping[str, str], environment: Mapping[str, str]) -> InheritedBinding:
    # The domain is only a hint. The kernel knows the family of the socket, and on a host without
    # IPv6 the same socket unit passes one of IPv4.
    domain = arguments.get("domain", "INET")
    if domain not in ("INET", "INET6", "UNIX"):
        raise ValueError(f"{domain!r} is not INET, INET6 or UNIX, for domain")
    index = arguments.get("index")
    name = arguments.get("name")
    if index is not None and name is not None:
        raise ValueError("systemd: takes index or name, not both")
    if index is not None and not (index.isascii() and index.isdigit() and len(index) <= 5):
        raise ValueError(f"{index!r} is not the index of a socket, from 0")
    binding = InheritedBinding(findSocket(environment, int(index or 0), name))
    binding.check()
    return binding


_Build = Callable[[Mapping[str, str], Mapping[str, str]], IBinding]

_GRAMMAR: dict[str, tuple[tuple[str, ...], _Build]] = {
    "tcp": (("port", "interface", "backlog"), _tcp),
    "tcp6": (("port", "backlog", "interface"), _tcp6),
    "unix": (("address", "mode", "backlog", "lockfile"), _unix),
    "systemd": (("domain", "index", "name"), _systemd),
}
"""
The endpoints that are ours. Each has the names of its arguments, in Twisted's order, and what
builds the binding from their values and the environment.
"""

_USE_A_LAYER = {"ssl": "tls:tcp:", "haproxy": "proxy:"}
"""
Endpoints of Twisted's that put more than a socket before the protocol, and the layers to use
instead.
"""


def parseInterface(text: str) -> str:
    """
    Return the address to bind for an interface.

    @raise ValueError: It is not an address.
    """
    try:
        text.encode("ascii")
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address, as 127.0.0.1 or ::1") from None
    if isinstance(address, IPv6) and address.ipv4_mapped:
        # This is an IPv4 address. A socket for IPv6 alone could not serve it.
        return str(address.ipv4_mapped)
    return text
