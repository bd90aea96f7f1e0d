"""
Addresses: as Twisted has them, as people write them, and what counts as one source.
"""

import os
import socket
from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

_IPV4_MAPPED = "::ffff:"
"""
What stands before the IPv4 address of a peer that comes in by an IPv6 socket (RFC 4291, section
2.5.5.2).
"""


def fromSockaddr(name: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    """
    What Twisted calls what the socket module calls C{name}; IPv4 is IPv4, also if an IPv6 socket
    has it.
    """
    if not isinstance(name, tuple):
        return UNIXAddress(os.fsencode(name) or None)
    host, port, *more = name
    # An address that is translated (RFC 7915) begins in the same way, and goes on without dots.
    if host.startswith(_IPV4_MAPPED) and "." in host:
        return IPv4Address("TCP", host.removeprefix(_IPV4_MAPPED), port)
    if not more:
        return IPv4Address("TCP", host, port)
    if more[-1]:
        # With the name of the network interface, without which a link-local address is nobody's.
        host, _ = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return IPv6Address("TCP", host, port, *more)


def sourceKey(address: IAddress) -> str | None:
    """
    What counts as one source: an IPv4 address; of an IPv6 address its /64, which is what one
    subscriber has; none for what is no IP.
    """
    if isinstance(address, IPv4Address):
        return address.host
    if isinstance(address, IPv6Address):
        host, _, _ = address.host.partition("%")
        return str(ip_network((host, 64), strict=False))
    return None


def formatAddress(address: IAddress) -> str:
    """
    An address as people write it; what is no IP is a UNIX socket.
    """
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    return "unix"
