"""
The PROXY protocol: the balancer in front of us names the client before the first byte.

It is written here, not taken from a library. A header may be cut at any byte, its length must be
limited, and nothing in it may raise an exception. That would have to be done here anyway, and the
rest is two short formats.
"""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address as IPv4
from ipaddress import IPv4Network, IPv6Network, ip_address
from ipaddress import IPv6Address as IPv6

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from kvserver.connections.connection import Connection
from kvserver.connections.record import CloseReason
from kvserver.connections.stage import Stage

HEADER_TIMEOUT = 5.0
"""
How long a balancer may take for the header, in seconds.
"""

MAX_LENGTH_V1 = 107
"""
The longest header of version 1, in bytes, in the specification's worst case.
"""

MAX_LENGTH_V2 = 4096
"""
The most bytes that a header of version 2 may announce, addresses and TLVs together.
"""

_MAX_LENGTH = 16 + MAX_LENGTH_V2
"""
The longest header that is accepted, in bytes.
"""

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_V1 = b"PROXY "

_FAMILIES: dict[int, str] = {0x11: "!4s4sHH", 0x21: "!16s16sHH", 0x31: "!108s108s"}

_WITHOUT_ADDRESS = (0x00, 0x12, 0x22, 0x32)
"""
The families of version 2 without addresses of a stream: C{UNSPEC}, and those of datagrams.
According to the specification the connection may be served under the balancer's own address.
"""


class BadHeader(Exception):
    """
    The bytes are no PROXY header. The message says why.
    """


@dataclass(frozen=True)
class ProxyHeader:
    """
    A PROXY header.

    @ivar length: Its length, in bytes.

    @ivar peer: The client's address, as the balancer sees it. None: the balancer speaks for itself
        (C{LOCAL}, a health check), does not know (C{UNKNOWN}), or names no address of a stream.

    @ivar host: The address that the client is connected to.
    """

    length: int
    peer: IAddress | None = None
    host: IAddress | None = None


def parseHeader(data: bytes) -> ProxyHeader | None:
    """
    Parse a header of version 1 or 2 ("The PROXY protocol", HAProxy's C{proxy-protocol.txt}).

    @param data: The bytes that have arrived so far.

    @return: None as long as the header is not complete.

    @raise BadHeader: The bytes can't become a header.
    """
    if _SIGNATURE.startswith(data[:12]):
        return _parseV2(data)
    if _V1.startswith(data[:6]):
        return _parseV1(data)
    raise BadHeader("no PROXY header. Does the balancer send one (send-proxy)?")


def _parseV1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_LENGTH_V1)
    if end < 0:
        if len(data) < MAX_LENGTH_V1:
            return None
        raise BadHeader(f"version 1 does not end within {MAX_LENGTH_V1} bytes")
    _, family, *rest = data[:end].split(b" ")
    if family == b"UNKNOWN":
        return ProxyHeader(end + 2)
    try:
        version = {b"TCP4": 4, b"TCP6": 6}[family]
        source, destination, sourcePort, destinationPort = (part.decode("ascii") for part in rest)
        return ProxyHeader(
            end + 2,
            _address(ip_address(source), _port(sourcePort), version),
            _address(ip_address(destination), _port(destinationPort), version),
        )
    except (KeyError, ValueError):
        raise BadHeader("version 1 names no addresses") from None


def _address(address: IPv4 | IPv6, port: int, version: int) -> IPv4Address | IPv6Address:
    """
    Convert an address.

    @raise ValueError: It is of another version of IP, or has a scope (a network interface).
    """
    if address.version != version:
        raise ValueError
    if isinstance(address, IPv6):
        if address.scope_id is not None:
            raise ValueError
        address = address.ipv4_mapped or address
    kind = IPv4Address if address.version == 4 else IPv6Address
    return kind("TCP", str(address), port)


def _port(text: str) -> int:
    if not (text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError
    return int(text)


def _parseV2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    if command not in (0x20, 0x21):
        raise BadHeader("version 2 has an unknown command")
    if length > MAX_LENGTH_V2:
        raise BadHeader(f"version 2 announces more than {MAX_LENGTH_V2} bytes")
    if len(data) < 16 + length:
        return None
    if command == 0x20 or family in _WITHOUT_ADDRESS:
        return ProxyHeader(16 + length)
    form = _FAMILIES.get(family)
    if form is None or struct.calcsize(form) > length:
        raise BadHeader("version 2 names no addresses of a known family")
    fields = struct.unpack_from(form, data, 16)
    if family == 0x31:
        paths = (UNIXAddress(path.rstrip(b"\0") or None) for path in fields)
        return ProxyHeader(16 + length, *paths)
    version = 4 if family == 0x11 else 6
    source, destination, sourcePort, destinationPort = fields
    return ProxyHeader(
        16 + length,
        _address(ip_address(source), sourcePort, version),
        _address(ip_address(destination), destinationPort, version),
    )


class ProxyStage(Stage):
    """
    Reads the header. The bytes after it stay in the kernel, for whatever reads the connection next,
    such as TLS.
    """

    timeout = HEADER_TIMEOUT
    transport: Connection

    def __init__(
        self,
        transport: Connection,
        trusted: tuple[IPv4Network | IPv6Network, ...],
        done: Callable[[Connection], None],
    ) -> None:
        """
        @param transport: The connection.

        @param trusted: The networks that may send a header. The peers of a UNIX socket always may.

        @param done: Called with the transport when the header is complete.
        """
        super().__init__(transport)
        self._trusted = trusted
        self._done = done
        self._buffer = b""

    @property
    def hasReceived(self) -> bool:  # type: ignore[override]
        """
        Whether a part of a header has arrived.
        """
        return bool(self._buffer)

    def begin(self) -> None:
        """
        Wait for the header. Refuse a peer that is not trusted.
        """
        super().begin()
        if not self._trusts(self.transport.getPeer()):
            self._refuse("its address is not in --proxy-trusted")

    def _trusts(self, peer: IAddress) -> bool:
        if not isinstance(peer, IPv4Address | IPv6Address):
            return True
        address = ip_address(peer.host.partition("%")[0])
        return any(address in network for network in self._trusted)

    def doRead(self) -> Exception | None:
        """
        Read the header, cut anywhere, and no byte after it.
        """
        receive = self.transport.socket.recv
        try:
            # As long as the header is not complete, all bytes that have arrived belong to it.
            data = receive(_MAX_LENGTH, socket.MSG_PEEK)
            if not data:
                return CONNECTION_DONE
            header = parseHeader(self._buffer + data)
            length = len(data) if header is None else header.length - len(self._buffer)
            self._buffer += receive(length)
            self.transport.steps += 1
        except BadHeader as error:
            self._refuse(str(error))
            return None
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if header is not None:
            self.end()
            if header.peer is not None:
                self.transport.setClient(header.peer, header.host)
            self._done(self.transport)
        return None

    def late(self) -> None:
        """
        The header has timed out.
        """
        self._refuse(f"no header within {self.timeout:g} s")

    def ended(self) -> None:
        """
        The connection has ended before the header was complete. If no byte has arrived, it was a
        health check, and there is no warning.
        """
        super().ended()
        if self.hasReceived and self.transport.record.reason is None:
            self._complain("it ended in the middle of the header")

    def _refuse(self, reason: str) -> None:
        self._complain(reason)
        self.transport.abortConnection()

    def _complain(self, reason: str) -> None:
        self.transport.record.closeWith(CloseReason.PROXY_HEADER)
        self.transport.sourceLog.warn(
            self.transport.getPeer(), "PROXY header from {source} refused: {reason}", reason=reason
        )
