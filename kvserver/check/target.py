"""
Where to connect, and through which layers.
"""

import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

GRAMMAR = (
    "[proxy:][tls:]tcp:HOST:PORT or [proxy:][tls:]unix:PATH; tcp: may be left out after a layer"
)

_LAYERS = ((), ("proxy",), ("tls",), ("proxy", "tls"))

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""
What a PROXY header of version 2 begins with.
"""

Address = tuple[socket.AddressFamily, Any]
"""
A family, and an address as the socket module has it.
"""


@dataclass(frozen=True)
class Target:
    """
    What to connect to.

    @ivar name: Its description, as given.

    @ivar layers: C{proxy}, C{tls}: what comes before the first line, in the order of the wire.

    @ivar host: Its name or address; empty for a UNIX socket.

    @ivar port: Its TCP port.

    @ivar path: The path of a UNIX socket.
    """

    name: str
    layers: tuple[str, ...]
    host: str = ""
    port: int = 0
    path: str = ""


def parseTarget(description: str) -> Target:
    """
    What a description says: layers, and then a client endpoint. As Twisted has it, colons part it,
    and a backslash takes the meaning from what follows.

    @raise ValueError: It is none. Says what is accepted.
    """
    layers: list[str] = []
    rest = description
    while rest.startswith(("proxy:", "tls:")):
        layer, _, rest = rest.partition(":")
        layers.append(layer)
    kind, *parts = re.split(r"(?<!\\):", rest)
    if layers and kind not in ("tcp", "unix"):
        kind, parts = "tcp", [kind, *parts]
    names = {"tcp": ("host", "port"), "unix": ("path",)}.get(kind, ())
    named = dict(_named(part, names[number : number + 1]) for number, part in enumerate(parts))
    if tuple(layers) not in _LAYERS or not names or {*named} != {*names} or len(parts) > len(names):
        raise ValueError(f"{description!r} is not {GRAMMAR} (in an IPv6 address write \\: for :)")
    if kind == "unix":
        # sun_path of unix(7).
        if not 0 < len(named["path"].encode()) < 108:
            raise ValueError(f"{description!r}: a UNIX socket has a path of 1 to 107 bytes")
        return Target(description, tuple(layers), path=named["path"])
    port = named["port"]
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError(f"{description!r}: {port!r} is not a TCP port from 1 to 65535")
    if not named["host"] or not named["host"].isprintable():
        raise ValueError(f"{description!r}: {named['host']!r} is not the name of a host")
    return Target(description, tuple(layers), named["host"], int(port))


def _named(part: str, expected: tuple[str, ...]) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals:
        key, value = (expected[0] if expected else part), part
    return key, re.sub(r"\\(.)", r"\1", value)


def parseSource(text: str) -> tuple[str, int]:
    """
    An address, and a port if there is one: C{192.0.2.1}, C{192.0.2.1:1024}, C{[2001:db8::1]:1024}.

    @return: The port is 0 if none is given.

    @raise ValueError: It is none.
    """
    match = re.fullmatch(
        r"\[([^]]+)\](?::(\d{1,5}))?|([\d.]+)(?::(\d{1,5}))?|([\da-fA-F:.]+)", text
    )
    if match:
        host = match[1] or match[3] or match[5]
        port = int(match[2] or match[4] or 0)
        try:
            if port < 65536:
                return str(ip_address(host)), port
        except ValueError:
            pass
    raise ValueError(
        f"{text!r} is not an address, as 192.0.2.1, 192.0.2.1:1024 or [2001:db8::1]:1024"
    )


def proxySource(given: tuple[str, int] | None, name: Any) -> tuple[str, int] | None:
    """
    The client that a PROXY header names.

    @param given: An address, and a port; 0 is that of our end. None: our end.

    @param name: Our end, as the socket module has it.

    @return: None if it has no address.
    """
    port: int = name[1] if isinstance(name, tuple) else 0
    if given is not None:
        return given[0], given[1] or port
    return (name[0], port) if isinstance(name, tuple) else None


def proxyHeader(version: int, source: Any, destination: Any) -> bytes:
    """
    A header of the PROXY protocol ("The PROXY protocol", HAProxy's C{proxy-protocol.txt}).

    @param source: The client's address and port. None: it has none.

    @param destination: What it is connected to. If it is of another family than the client it is
        all zeros.
    """
    if source is None:
        return b"PROXY UNKNOWN\r\n" if version == 1 else SIGNATURE + b"\x21\x00\x00\x00"
    client = ip_address(source[0].partition("%")[0])
    server: IPv4Address | IPv6Address = type(client)(0)
    port = 0
    if destination is not None:
        port = destination[1]
        there = ip_address(destination[0].partition("%")[0])
        server = there if there.version == client.version else server
    if version == 1:
        return f"PROXY TCP{client.version} {client} {server} {source[1]} {port}\r\n".encode("ascii")
    addresses = client.packed + server.packed + struct.pack("!HH", source[1], port)
    family = 0x11 if client.version == 4 else 0x21
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(addresses)) + addresses


def clientContext(
    authority: str | None, certificate: str | None, key: str | None, insecure: bool
) -> ssl.SSLContext:
    """
    What TLS needs: whom we trust, and what we show.

    @raise ValueError: A file can't be used. Names the option.
    """

    def noPassphrase() -> str:
        raise ValueError("it has a passphrase")

    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        option, value = "--ca", authority
        if authority is not None:
            context.load_verify_locations(authority)
            # An intermediate authority will do.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        option, value = "--certificate", certificate
        if certificate is not None:
            text = Path(certificate).read_bytes()
            if key is None and b"PRIVATE KEY" not in text and b"CERTIFICATE" in text:
                raise ValueError("it has no private key: name that by --private-key")
            if key is not None:
                option, value = "--private-key", key
                Path(key).read_bytes()
                option, value = "--certificate", f"{certificate}, {key}"
            context.load_cert_chain(certificate, key, noPassphrase)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ValueError(f"{option}: {value}: no usable PEM file: {reason}") from None
    return context


def resolve(reactor: Any, target: Target, done: Callable[[list[Address] | str], None]) -> None:
    """
    Find the addresses of a target, in a thread: a name server may take its time.

    @param done: Called in the thread of the reactor with the addresses, or with why there are none.
    """
    if target.path:
        done([(socket.AF_UNIX, target.path)])
        return

    def find() -> None:
        found: list[Address] | str
        try:
            infos = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            found = [(family, address) for family, _, _, _, address in infos]
        except (OSError, UnicodeError) as error:
            found = getattr(error, "strerror", None) or str(error)
        reactor.callFromThread(done, found)

    # A daemon, so that one that hangs does not hold up the end of the process.
    threading.Thread(target=find, daemon=True).start()


def formatAddress(address: Any) -> str:
    """
    An address as the log of the other end has it; what is no IP is a UNIX socket.
    """
    if not isinstance(address, tuple):
        return "unix"
    host, port = address[:2]
    if host.startswith("::ffff:") and "." in host:
        host = host.removeprefix("::ffff:")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
