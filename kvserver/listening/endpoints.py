"""
Parses endpoint descriptions, which say where to listen.
"""

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address as IPv6
from ipaddress import ip_address
from typing import Any

from kvserver.interfaces import IBinding
from kvserver.listening.bindings import EndpointBinding, TCPBinding, UNIXBinding, reasonOf
from kvserver.listening.inherited import InheritedBinding, passedNames

_ENVIRONMENT = dict(os.environ)
"""
A copy of the environment. In it, systemd describes the sockets that it passes. Twisted removes that
description as soon as its endpoints are imported.
"""


def parseEndpoint(description: str, reactor: Any = None) -> IBinding:
    """
    Parse a server endpoint description. As in Twisted, colons separate its parts, and a backslash
    makes the next character an ordinary one.

    @param reactor: The reactor for an endpoint that is not ours; by default the global one.

    @raise ValueError: The description is wrong. The message says why.
    """
    kind, *parts = re.split(r"(?<!\\):", description)
    if kind in _USE_A_LAYER:
        raise ValueError(f"{kind}: is {_USE_A_LAYER[kind]} here")
    if kind not in _GRAMMAR:
        try:
            return EndpointBinding(description, reactor)
        except Exception as error:
            raise ValueError(f"not an endpoint: {reasonOf(error)}") from error
    first, optional, build = _GRAMMAR[kind]
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


def _tcp(named: Mapping[str, str], interface: str = "") -> TCPBinding:
    port = named.get("port", "")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"{port!r} is not a TCP port from 0 to 65535")
    if "interface" in named:
        interface = parseInterface(named["interface"])
    return TCPBinding(int(port), interface)


def _tcp6(named: Mapping[str, str]) -> TCPBinding:
    address = _tcp(named, "::")
    if ":" not in address.interface:
        raise ValueError(f"{address.interface} is not an IPv6 address")
    return address


def _unix(named: Mapping[str, str]) -> UNIXBinding:
    path = named.get("address", "")
    # The size of sun_path (unix(7)), with its final NUL.
    if not 0 < len(os.fsencode(path)) < 108:
        raise ValueError("a UNIX socket has a path of 1 to 107 bytes")
    mode = named.get("mode", "666")
    if not re.fullmatch("[0-7]{3,4}", mode):
        raise ValueError(f"{mode!r} is not the mode of a file, as 660")
    return UNIXBinding(path, int(mode, 8))


def _systemd(named: Mapping[str, str]) -> InheritedBinding:
    passed = passedNames(_ENVIRONMENT)
    if "name" in named:
        if named["name"] not in passed:
            raise ValueError(f"systemd passes no socket {named['name']!r}, but {passed}")
        return InheritedBinding(passed.index(named["name"]))
    index = named.get("index", "0")
    if not (index.isascii() and index.isdigit() and int(index) < len(passed)):
        raise ValueError(f"systemd passes {len(passed)} sockets, none is number {index}, from 0")
    return InheritedBinding(int(index))


_GRAMMAR: dict[str, tuple[str, tuple[str, ...], Callable[[Mapping[str, str]], IBinding]]] = {
    "tcp": ("port", ("interface",), _tcp),
    "tcp6": ("port", ("interface",), _tcp6),
    "unix": ("address", ("mode",), _unix),
    "systemd": ("domain", ("index", "name"), _systemd),
}
"""
The endpoints that are ours. Each has the name of its first argument, the names of the others, and
what builds the binding.
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
