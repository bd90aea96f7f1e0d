"""
Where to listen: with the kernel's own sockets, on loopback.
"""

import errno
import os
import socket
import struct
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from kvserver.connections.addresses import fromSockaddr
from kvserver.listening.bindings import CannotListen, EndpointBinding, TCPBinding, UNIXBinding
from kvserver.listening.endpoints import parseEndpoint
from kvserver.listening.inherited import InheritedBinding, passedNames
from kvserver.listening.specification import parseDescription
from tests.support.clients import needsIPv6


@needsIPv6
def test_dualStack() -> None:
    """
    Without an interface one socket takes IPv4 and IPv6.
    """
    where = TCPBinding(0)
    with where.listen() as listening:
        assert listening.family == socket.AF_INET6
        for host in "127.0.0.1", "::1":
            socket.create_connection((host, where.port)).close()


@pytest.mark.parametrize(
    ("interface", "other"),
    [
        pytest.param("127.0.0.1", "::1", marks=needsIPv6),
        pytest.param("::1", "127.0.0.1", marks=needsIPv6),
    ],
)
def test_interface(interface: str, other: str) -> None:
    """
    With an interface nothing else is taken.
    """
    where = TCPBinding(0, interface)
    with where.listen():
        socket.create_connection((interface, where.port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, where.port))


@needsIPv6
def test_anyIPv6() -> None:
    """
    C{::} is all of IPv6, and no IPv4.
    """
    where = TCPBinding(0, "::")
    with where.listen():
        socket.create_connection(("::1", where.port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", where.port))


def test_samePort() -> None:
    """
    A port that the kernel has chosen is kept.
    """
    where = TCPBinding(0, "127.0.0.1")
    where.listen().close()
    port = where.port
    assert port > 0
    with where.listen() as listening:
        assert listening.getsockname() == ("127.0.0.1", port)


@pytest.mark.parametrize("interface", ["", "127.0.0.1", pytest.param("::1", marks=needsIPv6)])
def test_inUse(interface: str) -> None:
    """
    An address in use is told in one line, with where and why.
    """
    where = TCPBinding(0, interface)
    with where.listen(), pytest.raises(CannotListen) as caught:
        where.listen()
    text = f"{interface} port {where.port}" if interface else f"port {where.port}"
    assert str(caught.value) == f"Cannot listen on {text}: Address already in use"
    assert caught.value.socketError.errno == errno.EADDRINUSE


def test_unknownScope() -> None:
    """
    An IPv6 address on a network interface that isn't there is told as well.
    """
    with pytest.raises(CannotListen, match=r"^Cannot listen on fe80::1%nowhere port 4040: \w+"):
        TCPBinding(4040, "fe80::1%nowhere").listen()


def test_backlog() -> None:
    """
    Clients that come faster than they are accepted wait in the kernel: 1024, or as many as it
    allows.
    """
    allowed = int(Path("/proc/sys/net/core/somaxconn").read_text())
    with TCPBinding(0, "127.0.0.1").listen() as listening:
        # tcp_info of linux/tcp.h, where tcpi_sacked of a listening socket is its backlog.
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert struct.unpack("28xI", info) == (min(1024, allowed),)


@pytest.mark.parametrize("kind", ["TCP", "UNIX"])
def test_accepts(kind: str, tmp_path: Path) -> None:
    """
    What a socket that listens accepts is a socket of its kind, as any.
    """
    where = TCPBinding(0, "127.0.0.1") if kind == "TCP" else UNIXBinding(str(tmp_path / "socket"))
    with where.listen() as listening:
        family = socket.AF_INET if kind == "TCP" else socket.AF_UNIX
        assert (listening.family, listening.type) == (family, socket.SOCK_STREAM)
        with socket.socket(family) as client:
            client.connect(listening.getsockname())
            accepted, _ = listening.accept()
            with accepted:
                assert (accepted.family, accepted.type) == (family, socket.SOCK_STREAM)
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
                assert "family" in repr(accepted)
        assert "family" in repr(listening)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (("192.0.2.1", 7), IPv4Address("TCP", "192.0.2.1", 7)),
        (("::ffff:192.0.2.1", 7, 0, 0), IPv4Address("TCP", "192.0.2.1", 7)),
        (("2001:db8::1", 7, 0, 0), IPv6Address("TCP", "2001:db8::1", 7)),
        (("::ffff:0:192:1", 7, 0, 0), IPv6Address("TCP", "::ffff:0:192:1", 7)),
        ("/run/echo.sock", UNIXAddress(b"/run/echo.sock")),
        ("", UNIXAddress(None)),
        (("fe80::1", 7, 0, 1), IPv6Address("TCP", "fe80::1%lo", 7, 0, 1)),
    ],
)
def test_address(name: object, expected: IAddress) -> None:
    """
    An address is what a person would call it.
    """
    assert fromSockaddr(name) == expected


# UNIX sockets.


def test_unix(tmp_path: Path) -> None:
    """
    The path is there while it is listened on, for whom its mode says, and no longer.
    """
    path = tmp_path / "echo.sock"
    where = UNIXBinding(str(path), 0o600)
    with where.listen():
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert where.isBound()
    where.unbind()
    assert not path.exists()
    assert not where.isBound()


def test_unixLeftBehind(tmp_path: Path) -> None:
    """
    A path that nobody listens on is taken; one that somebody listens on is not, nor what is no
    socket.
    """
    path = str(tmp_path / "echo.sock")
    UNIXBinding(path).listen().close()
    with UNIXBinding(path).listen():
        with pytest.raises(CannotListen) as caught:
            UNIXBinding(path).listen()
        assert str(caught.value) == f"Cannot listen on {path}: Address already in use"
    os.unlink(path)
    Path(path).write_text("precious")
    with pytest.raises(CannotListen):
        UNIXBinding(path).listen()
    assert Path(path).read_text() == "precious"


def test_unixOfAnother(tmp_path: Path) -> None:
    """
    A path that is somebody else's by now is not removed.
    """
    path = tmp_path / "echo.sock"
    where = UNIXBinding(str(path))
    where.listen().close()
    path.rename(tmp_path / "ours.sock")
    with UNIXBinding(str(path)).listen():
        where.unbind()
        assert path.exists()


# Sockets from systemd.


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": "ours", "LISTEN_FDS": "2"}, ["", ""]),
        ({"LISTEN_PID": "ours", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, ["a", "b"]),
    ],
)
def test_systemdPasses(environment: dict[str, str], names: list[str]) -> None:
    """
    What systemd passes is ours if it says our process id, with names or without.
    """
    ours = {
        name: str(os.getpid()) if value == "ours" else value for name, value in environment.items()
    }
    assert passedNames(ours) == names


def test_systemdBroken() -> None:
    """
    A file descriptor that is none is told.
    """
    with pytest.raises(CannotListen, match="Cannot listen on socket 900 from systemd: Bad file"):
        InheritedBinding(900).listen()


# Endpoints of Twisted.


def test_endpoint() -> None:
    """
    Any endpoint that listens on a socket does.
    """
    where = EndpointBinding("tcp:0:interface=127.0.0.1", reactor)
    with where.listen() as listening:
        assert not listening.getblocking()
        socket.create_connection(listening.getsockname()).close()
        port = listening.getsockname()[1]
        with pytest.raises(CannotListen, match=f"Cannot listen on tcp:{port}: .*in use"):
            EndpointBinding(f"tcp:{port}", reactor).listen()


@pytest.mark.parametrize("description", ["stdio:", "fd:0"])
def test_endpointWithoutSocket(description: str) -> None:
    """
    One that does anything else does not.
    """
    with pytest.raises((CannotListen, ValueError)):
        parseEndpoint(description).listen()


def test_endpointThatServesAtOnce() -> None:
    """
    It is said why.
    """
    with pytest.raises(CannotListen) as caught:
        parseEndpoint("stdio:").listen()
    reason = "this endpoint does more than to listen on a socket"
    assert str(caught.value) == f"Cannot listen on stdio:: {reason}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(98, "Address already in use"), "Address already in use"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
        (ValueError("no port"), "no port"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_alwaysAReason(error: Exception, reason: str) -> None:
    """
    An exception that says nothing is at least named.
    """
    assert str(CannotListen("tcp:0", None, error)) == f"Cannot listen on tcp:0: {reason}"


# Descriptions.


@pytest.mark.parametrize(
    ("description", "port", "interface"),
    [
        ("tcp:4040", 4040, ""),
        ("tcp:port=4040", 4040, ""),
        ("tcp:4040:interface=127.0.0.1", 4040, "127.0.0.1"),
        (r"tcp:4040:interface=\:\:1", 4040, "::1"),
        ("tcp6:4040", 4040, "::"),
        (r"tcp6:interface=\:\:1:port=0", 0, "::1"),
    ],
)
def test_parseTCP(description: str, port: int, interface: str) -> None:
    """
    A TCP port, of both families or of one, of all interfaces or of one.
    """
    where = parseEndpoint(description)
    assert isinstance(where, TCPBinding)
    assert (where.port, where.interface) == (port, interface)


def test_parseUNIX() -> None:
    """
    A path, and who may connect.
    """
    where = parseEndpoint(r"unix:/run/a\:b.sock:mode=660")
    assert isinstance(where, UNIXBinding)
    assert (where.path, where.mode) == ("/run/a:b.sock", 0o660)


def test_parseInheritedBinding(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A socket of systemd's by its number, or by its name if it has one.
    """
    said = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:echo"}
    monkeypatch.setattr("kvserver.listening.endpoints._ENVIRONMENT", said)
    for description in "systemd:domain=INET6:index=1", "systemd:INET:index=1", "systemd:name=echo":
        where = parseEndpoint(description)
        assert isinstance(where, InheritedBinding)
        assert where.index == 1


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("", "not an endpoint: "),
        ("4040", "not an endpoint: "),
        ("carrier-pigeon:4040", "not an endpoint: "),
        ("tls:", "not an endpoint: "),
        ("ssl:1:privateKey=x", "ssl: is tls:tcp: here"),
        ("haproxy:tcp:1", "haproxy: is proxy: here"),
        ("tcp", "'' is not a TCP port from 0 to 65535"),
        ("tcp:x", "'x' is not a TCP port from 0 to 65535"),
        ("tcp:65536", "'65536' is not a TCP port from 0 to 65535"),
        ("tcp:1:2", "tcp: takes port, interface, once, and no '2'"),
        ("tcp:1:backlog=9", "tcp: takes port, interface, once, and no 'backlog'"),
        ("tcp:1:interface=eth0", "'eth0' is not an IPv4 or IPv6 address"),
        ("tcp:1:interface=::1", "tcp: takes port, interface, once, and no '"),
        ("tcp6:1:interface=127.0.0.1", "127.0.0.1 is not an IPv6 address"),
        ("unix:", "a UNIX socket has a path of 1 to 107 bytes"),
        ("unix:" + "x" * 108, "a UNIX socket has a path of 1 to 107 bytes"),
        ("unix:/x:mode=999", "'999' is not the mode of a file, as 660"),
        ("systemd:index=0", "systemd passes 0 sockets, none is number 0, from 0"),
        ("systemd:name=echo", "systemd passes no socket 'echo', but []"),
        ("tls:proxy:tcp:1", "before an endpoint may stand proxy:, tls: or proxy:tls:"),
        ("tls:tls:tcp:1", "before an endpoint may stand proxy:, tls: or proxy:tls:"),
    ],
)
def test_parseWrong(description: str, reason: str) -> None:
    """
    What is wrong with a description is said.
    """
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parseDescription(description)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("description", "layers"),
    [
        ("tcp:1", ()),
        ("tls:tcp:1", ("tls",)),
        ("proxy:tcp:1", ("proxy",)),
        ("proxy:tls:tcp:1", ("proxy", "tls")),
    ],
)
def test_parseLayers(description: str, layers: tuple[str, ...]) -> None:
    """
    Layers stand before an endpoint in the order of the wire.
    """
    wire = parseDescription(description)
    assert wire.layers == layers
    assert wire.name == description
    assert isinstance(wire.binding, TCPBinding)


def test_overlaps() -> None:
    """
    What can't be listened on twice.
    """
    assert TCPBinding(1).conflictsWith(TCPBinding(1, "127.0.0.1"))
    assert TCPBinding(1, "::1").conflictsWith(TCPBinding(1, "::1"))
    assert TCPBinding(1, "0.0.0.0").conflictsWith(TCPBinding(1, "127.0.0.1"))
    assert TCPBinding(1, "::1").conflictsWith(TCPBinding(1, "::"))
    assert not TCPBinding(1, "::1").conflictsWith(TCPBinding(1, "127.0.0.1"))
    assert not TCPBinding(1, "::").conflictsWith(TCPBinding(1, "127.0.0.1"))
    assert UNIXBinding("a").conflictsWith(UNIXBinding("./a"))
    assert not TCPBinding(0).conflictsWith(TCPBinding(0))
    assert not TCPBinding(1).conflictsWith(UNIXBinding("1"))
    assert UNIXBinding("a").conflictsWith(UNIXBinding("a"))
    assert InheritedBinding(0).conflictsWith(InheritedBinding(0))
