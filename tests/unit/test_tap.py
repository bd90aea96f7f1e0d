"""
The command line, with no sockets.
"""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

from kvserver import __version__
from kvserver.connections.handover import LocalHandover
from kvserver.connections.limits import Limits, maxConnectionsAllowed
from kvserver.connections.record import CloseReason, ConnectionRecord
from kvserver.connections.registry import Connections
from kvserver.listening.bindings import TCPBinding
from kvserver.listening.listener import Listener
from kvserver.operations.notify import Notifier
from kvserver.supervision.signals import Signals
from kvserver.supervision.supervisor import CannotStart
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
    ],
)
def test_number(option: str, field: str, default: int, least: int) -> None:
    """
    Limits are whole numbers; what is none, or too small, or more than there can be, is named.
    """

    def limit(*arguments: str) -> object:
        return getattr(parse(*arguments).configuration.limits, field)

    assert limit() == default
    greatest = maxConnectionsAllowed()
    for accepted in 7, least, greatest:
        assert limit(f"--{option}={accepted}") == accepted
    for value in "", "x", "-1", "1.5", str(least - 1), str(greatest + 1), "9" * 5000:
        with pytest.raises(UsageError) as caught:
            parse(f"--{option}={value}")
        assert str(caught.value).startswith(f"--{option}: {value!r} is not a number of ")
        assert str(caught.value).endswith(f" from {least} to {greatest}")


@pytest.mark.parametrize(
    ("option", "field", "default", "least"),
    [
        ("idle-timeout", "idleTimeout", 0, 0),
        ("write-timeout", "writeTimeout", 60, 1),
        ("drain-timeout", "drainTimeout", 15, 1),
        ("replace-timeout", "replaceTimeout", 0, 0),
    ],
)
def test_seconds(option: str, field: str, default: int, least: int) -> None:
    """
    Time-outs are seconds, also with a fraction or a unit; what is none, or too short, or too long,
    is named.
    """

    def timeout(*arguments: str) -> object:
        configuration = parse("--workers=1", *arguments).configuration
        return getattr(configuration, field, None) or getattr(configuration.limits, field, 0)

    assert timeout() == default
    accepted = {str(least): least, "7": 7, "1.5": 1.5, "30s": 30, "5m": 300, "1.5h": 5400}
    for value, seconds in {**accepted, "1000000000": 10**9}.items():
        assert timeout(f"--{option}={value}") == seconds
        # It is logged as it was meant.
        assert str(timeout(f"--{option}={value}")) == str(seconds)
    for value in "", "x", "-1", "1e3", "1_0", ".5", "5.", "5 m", "5d", "nan", "٣", "1000000001":
        with pytest.raises(UsageError) as caught:
            parse("--workers=1", f"--{option}={value}")
        assert str(caught.value) == (
            f"--{option}: {value!r} is not a number of seconds from {least} to 1000000000, "
            "as 30, 1.5, 30s, 5m or 1h"
        )


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
    signals, connections, listener, notifier = supervisor
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


def test_drainDelay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    With C{--drain-delay}, the service manager hears at once that the daemon stops, and how long
    that may take; the listeners go on until the delay is over.
    """
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    options = parse(f"--listen=unix:{tmp_path}/1", "--drain-delay=7", "--drain-timeout=3")
    reactor = MemoryReactorClock()
    supervisor = makeService(options, reactor)
    (listener,) = (child for child in supervisor if isinstance(child, Listener))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        for child in supervisor:
            if isinstance(child, Listener | Notifier):
                child.startService()
        done: list[None] = []
        supervisor.stopService().addCallback(done.append)
        assert manager.recv(4096) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000"
        reactor.advance(6.9)
        assert (done, listener.isListening()) == ([], True)
        reactor.advance(0.1)
        assert (done, listener.isListening()) == ([None], False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)


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
    plain, again, first, second = (
        cast(LocalHandover, route.handover)._certificates for route in routes
    )
    assert plain is again is None
    assert first is second is not None


def test_operation(tmp_path: Path) -> None:
    """
    Metrics are served as long as there are connections; records go to the file.
    """
    log = tmp_path / "access.log"
    options = parse("--metrics=tcp:0:interface=127.0.0.1", f"--access-log={log}")
    supervisor = makeService(options, MemoryReactorClock())
    children = [child.name for child in supervisor]
    assert children == [
        *("signals", "rates", "visitors", "metrics"),
        *("access log", "connections", "tcp:4040", "notifier"),
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
        ("--drain-delay=-1", "--drain-delay: '-1' is not a number of seconds from 0 to "),
        ("--banner=%x", "--banner: '%x' is not one line of 1 to 1000 characters, in which %h is "),
    ],
)
def test_wrongOperation(option: str, reason: str) -> None:
    """
    What is wrong is named.
    """
    with pytest.raises(UsageError) as caught:
        parse(option)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--port=9464", "--metrics=tcp:9464"], "'tcp:9464': tcp:9464 has that address"),
        (
            ["--listen=tcp:1", "--listen=tls:tcp:9464", "--metrics=tcp:9464:interface=127.0.0.1"],
            "'tcp:9464:interface=127.0.0.1': tls:tcp:9464 has that address",
        ),
        (["--listen=unix:/x", "--metrics=unix:/./x"], "'unix:/./x': unix:/x has that address"),
    ],
)
def test_metricsAmongClients(options: list[str], reason: str) -> None:
    """
    Where clients of the echo come in there are no metrics: one of the two would never be answered.
    """
    with pytest.raises(UsageError) as caught:
        parse(*options)
    assert str(caught.value) == f"--metrics: {reason}"
    parse("--port=0", "--metrics=tcp:0")


# Sockets from systemd.


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """
    The index of a socket that systemd passes, and calls C{echo}. Those before it have no name.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        index = listening.fileno() - 3
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", str(index + 1))
        monkeypatch.setenv("LISTEN_FDNAMES", ":" * index + "echo")
        yield index


def test_inherited(passed: int) -> None:
    """
    A socket that is passed is listened on, and the environment is kept from child processes.
    """
    options = parse(f"--listen=systemd:index={passed}")
    assert os.environ["LISTEN_FDS"] == str(passed + 1)
    makeService(options, MemoryReactorClock())
    assert [name for name in os.environ if name.startswith("LISTEN_")] == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--listen=systemd:index={0}", "--metrics=systemd:index={0}"],
            "--metrics: 'systemd:index={0}': systemd:index={0} has that address",
        ),
        (
            ["--listen=proxy:systemd:index={0}", "--metrics=systemd:name=echo"],
            "--metrics: 'systemd:name=echo': proxy:systemd:index={0} has that address",
        ),
        (
            ["--listen=systemd:index={0}", "--listen=proxy:systemd:name=echo"],
            "--listen: 'proxy:systemd:name=echo': another one has that address",
        ),
    ],
)
def test_inheritedTwice(passed: int, options: list[str], reason: str) -> None:
    """
    A socket that is passed has one use, by whatever name.
    """
    with pytest.raises(UsageError) as caught:
        parse(*(option.format(passed) for option in options))
    assert str(caught.value) == reason.format(passed)


@pytest.mark.parametrize("option", ["listen", "metrics"])
def test_notPassed(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What systemd has not passed is no mistake on the command line: the next start may find it.
    """
    reason = "systemd passed no sockets. Was this started by kvserver.socket?"
    with pytest.raises(CannotStart) as caught:
        parse(f"--{option}=systemd:index=0")
    assert caught.value.code == f"kvserver: --{option}: 'systemd:index=0': {reason}"


def test_inheritedByNobody(passed: int) -> None:
    """
    Of a socket that is passed and not listened on the log says that nobody is answered there.
    """
    with capturedLogs() as logs:
        parse("--port=0")
    texts = [event["log_format"].format(**event) for event in logs]
    assert len(texts) == passed + 1
    assert texts[-1] == (
        f"systemd passed socket {passed} ('echo'), and no option names it: no answer there"
    )
    assert {event["log_level"] for event in logs} == {LogLevel.warn}


def test_withoutMetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without what metrics need it is said how to install it.
    """
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "kvserver.operations.site", raising=False)
    with pytest.raises(UsageError, match=r"pip install '\.\[metrics\]'"):
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
        (["--tls-client-ca=x"], "--tls-client-ca: needs a --listen with tls:, as tls:tcp:4041"),
        (
            ["--listen=tls:tcp:0", "--proxy-trusted=::1"],
            "--proxy-trusted: needs a --listen with proxy:, as proxy:tcp:4041",
        ),
        (
            ["--proxy-trusted=home"],
            "--proxy-trusted: 'home' does not appear to be an IPv4 or IPv6 network; accepted is an "
            "address or a network, as 192.0.2.1 or 192.0.2.0/24",
        ),
        (
            ["--proxy-trusted=10.0.0.1/8"],
            "--proxy-trusted: 10.0.0.1/8 has host bits set; accepted is an address or a network, "
            "as 192.0.2.1 or 192.0.2.0/24",
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
