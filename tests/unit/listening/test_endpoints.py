"""
Where to listen: with the kernel's own sockets, on loopback.
"""

import errno
import os
import re
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from kvserver.connections.addresses import fromSockaddr
from kvserver.listening.bindings import EndpointBinding, TCPBinding, UNIXBinding
from kvserver.listening.endpoints import parseEndpoint, parseLocalEndpoint
from kvserver.listening.sockets import CannotListen, ListeningSocket
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


@pytest.mark.parametrize(("backlog", "expected"), [((), 1024), ((50,), 50)])
def test_backlog(backlog: tuple[int, ...], expected: int) -> None:
    """
    Clients that come faster than they are accepted wait in the kernel: 1024, or as many as it was
    told, or as it allows.
    """
    allowed = int(Path("/proc/sys/net/core/somaxconn").read_text())
    with TCPBinding(0, "127.0.0.1", *backlog).listen() as listening:
        # tcp_info of linux/tcp.h, where tcpi_sacked of a listening socket is its backlog.
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert struct.unpack("28xI", info) == (min(expected, allowed),)


def test_backlogOfUNIX(tmp_path: Path) -> None:
    """
    A UNIX socket has the backlog that it was told, and one more as the kernel counts.
    """
    path = str(tmp_path / "echo.sock")
    with UNIXBinding(path, backlog=1).listen(), ExitStack() as stack:
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        for client in waiting:
            client.setblocking(False)
        assert [client.connect_ex(path) for client in waiting] == [0, 0, errno.EAGAIN]


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


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_unixMode(tmp_path: Path, mode: int, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The path has its mode from the first moment, whatever the umask is; that stays as it is.
    """
    path = str(tmp_path / "echo.sock")
    seen: list[int] = []

    class Seen(ListeningSocket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            seen.append(os.stat(path).st_mode & 0o7777)

    monkeypatch.setattr("kvserver.listening.bindings.ListeningSocket", Seen)
    before = os.umask(umask)
    try:
        UNIXBinding(path, mode).listen().close()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert seen == [mode]


def test_unixHostileMode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A link that somebody puts in the place of the path, as soon as it is there, gives nobody a right
    to another file; it is not removed, either.
    """
    path, secret = tmp_path / "echo.sock", tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)

    class Hostile(ListeningSocket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            path.unlink()
            path.symlink_to(secret)

    monkeypatch.setattr("kvserver.listening.bindings.ListeningSocket", Hostile)
    where = UNIXBinding(str(path), 0o666)
    where.listen().close()
    assert secret.stat().st_mode & 0o7777 == 0o600
    where.unbind()
    assert secret.read_text() == "secret"


@pytest.mark.parametrize("target", ["stale", "living", "file", "nothing"])
def test_unixLink(tmp_path: Path, target: str) -> None:
    """
    A link is not followed, wherever it leads, and not removed.
    """
    path, other = tmp_path / "echo.sock", tmp_path / "other"
    with ExitStack() as stack:
        if target == "file":
            other.write_text("precious")
        elif target != "nothing":
            listening = stack.enter_context(UNIXBinding(str(other)).listen())
            if target == "stale":
                listening.close()
        path.symlink_to(other)
        with pytest.raises(CannotListen) as caught:
            UNIXBinding(str(path)).listen()
        assert str(caught.value) == f"Cannot listen on {path}: There is a symbolic link"
        assert path.is_symlink()
        assert other.exists() == (target != "nothing")


@pytest.mark.parametrize("follower", ["living", "file", "link"])
def test_unixReplaced(tmp_path: Path, follower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What somebody puts in the place of a stale path, just before it is removed, stays.
    """
    path, other = tmp_path / "echo.sock", tmp_path / "other"
    UNIXBinding(str(path)).listen().close()
    with ExitStack() as stack:
        living = UNIXBinding(str(other))
        stack.enter_context(living.listen())

        class Probe(socket.socket):
            def connect_ex(self, address: Any) -> int:
                answer = super().connect_ex(address)
                path.rename(tmp_path / "stale")
                if follower == "living":
                    other.rename(path)
                elif follower == "file":
                    path.write_text("precious")
                else:
                    path.symlink_to(tmp_path / "stale")
                return answer

        monkeypatch.setattr("kvserver.listening.bindings.socket.socket", Probe)
        with pytest.raises(CannotListen):
            UNIXBinding(str(path)).listen()
    assert path.is_symlink() if follower == "link" else path.exists()


def test_unixLinkedByNow(tmp_path: Path) -> None:
    """
    Moved, and reached by a link, it is still ours to listen on: clients follow links. The link is
    not ours to remove.
    """
    path, moved = tmp_path / "echo.sock", tmp_path / "moved"
    where = UNIXBinding(str(path))
    with where.listen():
        path.rename(moved)
        assert not where.isBound()
        path.symlink_to(moved)
        assert where.isBound()
        where.unbind()
        assert path.is_symlink()
        assert moved.exists()


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
    ("description", "port", "interface", "backlog"),
    [
        ("tcp:4040", 4040, "", 1024),
        ("tcp:port=4040", 4040, "", 1024),
        ("tcp:4040:interface=127.0.0.1", 4040, "127.0.0.1", 1024),
        ("tcp:interface=127.0.0.1:4040", 4040, "127.0.0.1", 1024),
        ("tcp:4040:127.0.0.1", 4040, "127.0.0.1", 1024),
        ("tcp:4040:127.0.0.1:50", 4040, "127.0.0.1", 50),
        ("tcp:4040:backlog=50", 4040, "", 50),
        (r"tcp:4040:interface=\:\:1", 4040, "::1", 1024),
        (r"t\cp:40\40:interfac\e=127.0.0.1", 4040, "127.0.0.1", 1024),
        ("tcp6:4040", 4040, "::", 1024),
        ("TCP6:4040", 4040, "::", 1024),
        (r"tcp6:interface=\:\:1:port=0", 0, "::1", 1024),
        (r"tcp6:0:50:\:\:1", 0, "::1", 50),
    ],
)
def test_parseTCP(description: str, port: int, interface: str, backlog: int) -> None:
    """
    A TCP port, of both families or of one, of all interfaces or of one; with keys, or in Twisted's
    order.
    """
    where = parseEndpoint(description)
    assert isinstance(where, TCPBinding)
    assert (where.port, where.interface, where.backlog) == (port, interface, backlog)


@pytest.mark.parametrize(
    ("description", "path", "mode", "backlog"),
    [
        (r"unix:/run/a\:b.sock:mode=660", "/run/a:b.sock", 0o660, 1024),
        (r"unix:/tmp/a\=b", "/tmp/a=b", 0o666, 1024),
        (r"unix:address=/tmp/a=b", "/tmp/a=b", 0o666, 1024),
        ("unix:/tmp/x\\\\:mode=600", "/tmp/x\\", 0o600, 1024),
        (r"unix:/tmp/\x", "/tmp/x", 0o666, 1024),
        ("unix:/x:660:50:0", "/x", 0o660, 50),
        ("unix:/x:backlog=50:lockfile=1", "/x", 0o666, 50),
    ],
)
def test_parseUNIX(description: str, path: str, mode: int, backlog: int) -> None:
    """
    A path, in which any character can be escaped, and who may connect.
    """
    where = parseEndpoint(description)
    assert isinstance(where, UNIXBinding)
    assert (where.path, where.mode, where.backlog) == (path, mode, backlog)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("", "not an endpoint: "),
        ("4043", "not an endpoint: instead of '4043' write tcp:4043"),
        (":4043", "not an endpoint: instead of ':4043' write tcp:4043"),
        (
            "127.0.0.1:4043",
            "not an endpoint: instead of '127.0.0.1:4043' write tcp:4043:interface=127.0.0.1",
        ),
        ("[::1]:4043", r"not an endpoint: instead of '[::1]:4043' write tcp:4043:interface=\:\:1"),
        ("::1:4043", r"not an endpoint: instead of '::1:4043' write tcp:4043:interface=\:\:1"),
        ("proxy:4043", "not an endpoint: instead of '4043' write tcp:4043"),
        ("/run/a=b", r"not an endpoint: instead of '/run/a=b' write unix:/run/a\=b"),
        (
            "tcp:127.0.0.1:4043",
            "'127.0.0.1' is not a TCP port from 0 to 65535: write tcp:4043:interfac",
        ),
        (
            "localhost:4043",
            "not an endpoint: Unknown endpoint type: 'localhost' (as tcp:4040, unix:",
        ),
        ("127.0.0.1:65536", "not an endpoint: Unknown endpoint type"),
        ("carrier-pigeon:4040", "not an endpoint: "),
        ("tls:", "not an endpoint: "),
        ("ssl:1:privateKey=x", "ssl: is tls:tcp: here"),
        ("haproxy:tcp:1", "haproxy: is proxy: here"),
        ("HAProxy:tcp:1", "haproxy: is proxy: here"),
        ("tcp", "'' is not a TCP port from 0 to 65535"),
        ("tcp:x", "'x' is not a TCP port from 0 to 65535"),
        ("tcp:65536", "'65536' is not a TCP port from 0 to 65535"),
        ("tcp:1:2", "'2' is not an IPv4 or IPv6 address"),
        ("tcp:1:127.0.0.1:9:x", "tcp: takes port, interface, backlog, each once, and no 'x'"),
        ("tcp:1:port=2", "tcp: takes port, interface, backlog, each once, and no 'port=2'"),
        ("tcp:1:backlog=0", "'0' is not a backlog from 1 to 65535"),
        ("tcp:1:backlog=x", "'x' is not a backlog from 1 to 65535"),
        ("unix:/x:backlog=-1", "'-1' is not a backlog from 1 to 65535"),
        ("tcp:1:interface=eth0", "'eth0' is not an IPv4 or IPv6 address"),
        ("tcp:1:interface=", "'' is not an IPv4 or IPv6 address"),
        ("tcp:1:interface=::1", "tcp: takes port, interface, backlog, each once, and no '"),
        ("tcp:1\\", "it ends with a backslash, which escapes nothing"),
        (
            "unix:/tmp/a=b",
            "unix: takes address, mode, backlog, lockfile, each once, and no '/tmp/a=b' "
            r"(inside a value write \: for a colon, \= for an equals sign)",
        ),
        ("unix:/x:lockfile=yes", "'yes' is not 0 or 1, for lockfile"),
        ("tcp6:1:interface=127.0.0.1", "127.0.0.1 is not an IPv6 address"),
        ("unix:", "a UNIX socket has a path of 1 to 107 bytes"),
        ("unix:" + "x" * 108, "a UNIX socket has a path of 1 to 107 bytes"),
        ("unix:/x:mode=999", "'999' is not the mode of a file, as 660"),
        ("systemd:index=x", "'x' is not the index of a socket, from 0"),
        ("systemd:index=", "'' is not the index of a socket, from 0"),
        ("systemd:index=0:name=a", "systemd: takes index or name, not both"),
        ("systemd:domain=IPX:index=0", "'IPX' is not INET, INET6 or UNIX, for domain"),
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


@pytest.mark.parametrize(
    ("description", "meant"),
    [
        ("tcp:4043:interface=::1", r"interface=\:\:1"),
        ("tcp:4043:interface=2001:db8::1:backlog=5", r"interface=2001\:db8\:\:1"),
        ("tcp:4043:interface=::ffff:192.0.2.1", r"interface=\:\:ffff\:192.0.2.1"),
        ("tls:tcp:4043:interface=fe80::", r"interface=fe80\:\:"),
    ],
)
def test_colonsInAnInterface(description: str, meant: str) -> None:
    """
    An IPv6 address whose colons are not escaped is refused with what to write. The quotes are for
    the shell, which would take the backslashes.
    """
    with pytest.raises(ValueError, match="takes port, interface, backlog") as caught:
        parseDescription(description)
    assert f"(in a value colons are escaped: write '{meant}', in quotes)" in str(caught.value)


def test_local() -> None:
    """
    Where a loopback address is a good choice, a bare port is refused with one.
    """
    for given, meant in ("9464", "tcp:9464:interface=127.0.0.1"), ("*:9464", "tcp:9464"):
        with pytest.raises(ValueError, match=f"write {re.escape(meant)}$"):
            parseLocalEndpoint(given)
