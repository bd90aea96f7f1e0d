"""
The command line, with no sockets.
"""

import os
import socket
import sys
from pathlib import Path

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

from kvserver import __version__
from kvserver.connections.limits import Limits, maxConnectionsAllowed
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.registry import Connections
from kvserver.listening.bindings import TCPBinding
from kvserver.listening.listener import Listener
from kvserver.operations.notify import Notifier
from kvserver.supervision.signals import Signals
from kvserver.tap import Options, makeService
from tests.support.wires import Authority

WRONG_PORTS = ["", " ", "x", "4040x", "-1", "+1", "65536", "1e3", "4_0", "0x10", "٣", "9" * 5000]
WRONG_INTERFACES = [
    "",
    "x",
    "eth0",
    "localhost",
    "127.0.0",
    "127.0.0.256",
    "::g",
    "1.2.3.4:80",
    "::1%",
    "::1%é",
]


@pytest.fixture(autouse=True)
def _noPort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORT", raising=False)


def parse(*arguments: str) -> Options:
    """
    What the daemon makes of a command line.
    """
    options = Options()
    options.parseOptions(list(arguments))
    return options


def only(options: Options) -> TCPBinding:
    """
    The one TCP port that is listened on.
    """
    (spec,) = options.configuration.listeners
    assert spec.layers == ()
    assert isinstance(spec.binding, TCPBinding)
    return spec.binding


def test_defaults() -> None:
    """
    Port 4040 of everything.
    """
    where = only(parse())
    assert (where.port, where.interface) == (4040, "")


@pytest.mark.parametrize(
    ("arguments", "port"),
    [
        (["--port", "0"], 0),
        (["--port=65535"], 65535),
        (["-p", "04040"], 4040),
        (["-p4041"], 4041),
        (["--port=1", "--port=2"], 2),
    ],
)
def test_port(arguments: list[str], port: int) -> None:
    """
    A port from 0 to 65535; the last one counts.
    """
    assert only(parse(*arguments)).port == port


def test_portFromEnvironment(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    C{PORT} counts when there is no C{--port}, and only then.
    """
    monkeypatch.setenv("PORT", "4041")
    assert only(parse()).port == 4041
    assert only(parse("--port=4042")).port == 4042
    monkeypatch.setenv("PORT", "wrong")
    assert only(parse("--port=4042")).port == 4042
    assert only(parse("--listen=tcp:4043")).port == 4043


@pytest.mark.parametrize("value", WRONG_PORTS)
def test_wrongPort(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What is no port is named: where it came from, what it is, and what is accepted.
    """
    with pytest.raises(UsageError) as caught:
        parse(f"--port={value}")
    accepted = "is not a TCP port from 0 to 65535"
    assert str(caught.value) == f"--port: {value!r} {accepted}"
    monkeypatch.setenv("PORT", value)
    with pytest.raises(UsageError) as caught:
        parse()
    assert str(caught.value) == f"PORT (environment): {value!r} {accepted}"


@pytest.mark.parametrize(
    ("option", "field", "default", "least"),
    [
        ("max-connections", "maxConnections", 0, 0),
        ("max-connections-per-source", "maxPerSource", 0, 0),
        ("idle-timeout", "idleTimeout", 0, 0),
        ("write-timeout", "writeTimeout", 60, 1),
        ("drain-timeout", "drainTimeout", 15, 1),
    ],
)
def test_number(option: str, field: str, default: int, least: int) -> None:
    """
    Limits and time-outs are whole numbers; what is none, or too small, or more than there can be,
    is named.
    """

    def limit(*arguments: str) -> object:
        return getattr(parse(*arguments).configuration.limits, field)

    assert limit() == default
    greatest = maxConnectionsAllowed() if option.startswith("max") else 10**9
    for accepted in 7, least, greatest:
        assert limit(f"--{option}={accepted}") == accepted
    for value in "", "x", "-1", "1.5", str(least - 1), str(greatest + 1), "9" * 5000:
        with pytest.raises(UsageError) as caught:
            parse(f"--{option}={value}")
        assert str(caught.value).startswith(f"--{option}: {value!r} is not a number of ")
        assert str(caught.value).endswith(f" from {least} to {greatest}")


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%lo"])
def test_interface(address: str) -> None:
    """
    Any address of either kind.
    """
    assert only(parse("-i", address)).interface == address


def test_mappedInterface() -> None:
    """
    An IPv4 address is one in any notation.
    """
    assert only(parse("--interface=::ffff:127.0.0.2")).interface == "127.0.0.2"


@pytest.mark.parametrize("value", WRONG_INTERFACES)
def test_wrongInterface(value: str) -> None:
    """
    What is no address is named.
    """
    with pytest.raises(UsageError) as caught:
        parse("--interface", value)
    assert str(caught.value) == (
        f"--interface: {value!r} is not an IPv4 or IPv6 address, as 127.0.0.1 or ::1"
    )


def test_strayArgument() -> None:
    """
    An argument is named.
    """
    with pytest.raises(UsageError, match="unexpected argument '4040': kvserver takes options only"):
        parse("4040")


def test_unknownOption() -> None:
    """
    An unknown option is named.
    """
    with pytest.raises(UsageError, match="option --prod not recognized"):
        parse("--prod=4040")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """
    The version is ours, not Twisted's.
    """
    with pytest.raises(SystemExit) as caught:
        parse("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"kvserver {__version__} (Twisted ")


def test_help() -> None:
    """
    The help has each option, what it does without it, and examples on lines of their own.
    """
    usage = str(parse())
    for text in "--port=", "--interface=", "[default: $PORT, else 4040]", "[default: all]":
        assert text in " ".join(usage.split())
    assert "\n  telnet 127.0.0.1 4040 " in usage
    assert max(map(len, usage.splitlines())) <= 80


def test_tree() -> None:
    """
    The tree is the one of the guide: a supervisor, the connections, the listener. The connections
    come first: the listener needs somewhere to keep what it accepts, and stops before them. The
    options reach them.
    """
    options = (
        *("--port=0", "--interface=127.0.0.1", "--max-connections=1"),
        *("--max-connections-per-source=2", "--idle-timeout=3"),
        *("--write-timeout=4", "--drain-timeout=5"),
    )
    supervisor = makeService(parse(*options), MemoryReactorClock())
    connections, listener, signals, notifier = supervisor
    assert supervisor.name == "kvserver"
    assert isinstance(connections, Connections)
    assert connections.limits == Limits(1, 2, 3, 4, 5)
    assert isinstance(listener, Listener)
    assert listener.name == "tcp:0"
    binding = listener.spec.binding
    assert isinstance(binding, TCPBinding)
    assert (binding.port, binding.interface) == (0, "127.0.0.1")
    assert isinstance(signals, Signals)
    assert isinstance(notifier, Notifier)


def test_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    The service manager hears of us, and it hears nothing if one listener of several is not well.
    The environment does not name it any more.
    """
    monkeypatch.setenv("WATCHDOG_USEC", "x")
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    with pytest.raises(UsageError, match=r"^WATCHDOG_USEC \(environment\): 'x' is not a number of"):
        parse()
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    options = parse("--listen=unix:" + str(tmp_path / "1"), "--listen=unix:" + str(tmp_path / "2"))
    assert "NOTIFY_SOCKET" in os.environ
    reactor = MemoryReactorClock()
    supervisor = makeService(options, reactor)
    assert "NOTIFY_SOCKET" not in os.environ
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        # Without the supervisor, which would restart a listener that is broken.
        for child in supervisor:
            if isinstance(child, Listener | Notifier):
                child.startService()
        for call, args, kwargs in reactor.whenRunningHooks:
            call(*args, **kwargs)
        said = [manager.recv(4096) for _ in range(3)]
        assert said == [b"READY=1", b"STATUS=0 connections, 0 lines served", b"WATCHDOG=1"]
        reactor.advance(1)
        assert manager.recv(4096) == b"WATCHDOG=1"
        (tmp_path / "2").unlink()
        reactor.advance(1)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
        for child in supervisor:
            if isinstance(child, Listener | Notifier):
                child.stopService()


def test_listenTree(tmp_path: Path) -> None:
    """
    Each C{--listen} is a listener of its own, with its layers, by its name.
    """
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    options = parse(
        *("--listen=tcp:0", "-l", "tcp:0", "--listen=tls:tcp:0", "-lproxy:tls:unix:/x"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
        *("--proxy-trusted=192.0.2.0/24", "--proxy-trusted=2001:db8::1"),
    )
    supervisor = makeService(options, MemoryReactorClock())
    listeners = [child for child in supervisor if isinstance(child, Listener)]
    assert [(listener.name, listener.spec.layers) for listener in listeners] == [
        ("tcp:0", ()),
        ("tcp:0 (2)", ()),
        ("tls:tcp:0", ("tls",)),
        ("proxy:tls:unix:/x", ("proxy", "tls")),
    ]
    trusted = options.configuration.proxyTrusted
    assert list(map(str, trusted)) == ["192.0.2.0/24", "2001:db8::1/128"]
    routes = [listener._route for listener in listeners]
    assert [route._trusted for route in routes] == [None, None, None, trusted]
    plain, again, first, second = (route._certificates for route in routes)
    assert plain is again is None
    assert first is second is not None


def test_operation(tmp_path: Path) -> None:
    """
    Metrics are served by the first child, which stops last; records go to the file.
    """
    log = tmp_path / "access.log"
    options = parse("--metrics=tcp:0:interface=127.0.0.1", f"--access-log={log}")
    supervisor = makeService(options, MemoryReactorClock())
    children = [child.name for child in supervisor]
    assert children == [
        *("visitors", "metrics", "access log", "connections", "tcp:4040", "signals", "notifier"),
    ]
    # Nothing is opened before the tree is started.
    assert not log.exists()
    supervisor.getServiceNamed("access log").startService()
    connections = supervisor.getServiceNamed("connections")
    assert isinstance(connections, Connections)
    listener = supervisor.getServiceNamed("tcp:4040")
    assert isinstance(listener, Listener)
    accepted, peer = socket.socketpair()
    with accepted, peer:
        accepted.setblocking(False)
        listener._route.enter(accepted, ConnectionRecord("tcp:4040", UNIXAddress(None)))
        (transport,) = connections
        assert log.read_text() == ""
        transport.record.closeWith(CloseReason.ERROR)
        transport.connectionLost(connectionDone)
    assert '"reason": "error"' in log.read_text()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--metrics=tcp:x", "--metrics: 'tcp:x': 'x' is not a TCP port from 0 to 65535"),
        ("--metrics=", "--metrics: '': not an endpoint: "),
    ],
)
def test_wrongOperation(option: str, reason: str) -> None:
    """
    What is wrong is named.
    """
    with pytest.raises(UsageError) as caught:
        parse(option)
    assert str(caught.value).startswith(reason)


def test_withoutMetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without what metrics need it is said how to install it.
    """
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "kvserver.operations.site", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'kvserver\[metrics\]'"):
        parse("--metrics=tcp:0")


def test_listenAndPort(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It is said once where to listen; C{PORT} is there for who says nothing.
    """
    for option in "--port=1", "--interface=::1":
        with pytest.raises(UsageError, match="give one of both"):
            parse("--listen=tcp:0", option)
    monkeypatch.setenv("PORT", "wrong")
    parse("--listen=tcp:0")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--listen=tcp:x"], "--listen: 'tcp:x': 'x' is not a TCP port from 0 to 65535"),
        (["--listen=tcp:1", "-ltcp:1"], "--listen: 'tcp:1': another one has that address"),
        (
            ["-lunix:/x", "-lproxy:unix:/x"],
            "--listen: 'proxy:unix:/x': another one has that address",
        ),
        (["--listen=tls:tcp:0"], "--listen: tls: needs --tls-certificate"),
        (
            ["--listen=tls:tcp:0", "--tls-certificate=x"],
            "--listen: tls: needs --tls-private-key",
        ),
        (["--tls-client-ca=x"], "--tls-client-ca: there is no --listen with tls: before it"),
        (
            ["--listen=tls:tcp:0", "--proxy-trusted=::1"],
            "--proxy-trusted: there is no --listen with proxy: before it",
        ),
        (
            ["--proxy-trusted=home"],
            "--proxy-trusted: 'home' is not an address or network, as 192.0.2.0/24",
        ),
    ],
)
def test_wrongListen(options: list[str], reason: str) -> None:
    """
    What is wrong is named.
    """
    with pytest.raises(UsageError) as caught:
        parse(*options)
    assert str(caught.value) == reason


def test_plugin() -> None:
    """
    twistd finds the daemon, with its options and its service.
    """
    (maker,) = (maker for maker in getPlugins(IServiceMaker) if maker.tapname == "kvserver")
    assert maker.options is Options
    assert maker.makeService is makeService
