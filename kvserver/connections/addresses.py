"""
Addresses: conversion, formatting, and what counts as one source.
"""

import os
import socket
from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

_IPV4_MAPPED = "::ffff:"
"""
The prefix of the IPv4 address of a peer that connects through an IPv6 socket (RFC 4291, section
2.5.5.2).
"""


def fromSockaddr(name: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    """
    Convert an address of the socket module to one of Twisted's. An IPv4 address stays one even if
    the peer connects through an IPv6 socket.
    """
    if not isinstance(name, tuple):
        return UNIXAddress(os.fsencode(name) or None)
    host, port, *more = name
    # A translated address (RFC 7915) has the same prefix, but no dots after it.
    if host.startswith(_IPV4_MAPPED) and "." in host:
        return IPv4Address("TCP", host.removeprefix(_IPV4_MAPPED), port)
    if not more:
        return IPv4Address("TCP", host, port)
    if more[-1]:
        # Add the name of the network interface: without it, a link-local address is ambiguous.
        host, _ = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return IPv6Address("TCP", host, port, *more)


def sourceKey(address: IAddress) -> str | None:
    """
    Return the key of the source that an address belongs to. An IPv4 address is a source by itself.
    An IPv6 address belongs to its /64, which is what one subscriber has. Any other address has no
    source: None.
    """
    if isinstance(address, IPv4Address):
        return address.host
    if isinstance(address, IPv6Address):
        host, _, _ = address.host.partition("%")
        return str(ip_network((host, 64), strict=False))
    return None


def formatAddress(address: IAddress) -> str:
    """
    Format an address as people write it. Any address that is not IP becomes C{unix}.
    """
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    return "unix"
