"""
The command line, with no sockets.
"""

import subprocess
import sys

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.testing import MemoryReactor
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

from kvserver import __version__
from kvserver.connections import Connections
from kvserver.listener import Listener
from kvserver.tap import Options, makeService

WRONG_PORTS = ["", " ", "x", "4040x", "-1", "+1", "65536", "1e3", "4_0", "0x10", "٣", "9" * 5000]
WRONG_INTERFACES = ["", "x", "eth0", "localhost", "127.0.0", "127.0.0.256", "::g", "1.2.3.4:80"]


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


def test_defaults() -> None:
    """
    Port 4040 of everything.
    """
    options = parse()
    assert options["port"] == 4040
    assert options["interface"] == ""


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
    assert parse(*arguments)["port"] == port


def test_portFromEnvironment(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    C{PORT} counts when there is no C{--port}, and only then.
    """
    monkeypatch.setenv("PORT", "4041")
    assert parse()["port"] == 4041
    assert parse("--port=4042")["port"] == 4042
    monkeypatch.setenv("PORT", "wrong")
    assert parse("--port=4042")["port"] == 4042


@pytest.mark.parametrize("value", WRONG_PORTS)
def test_wrongPort(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What is no port is named: where it came from, what it is, and what is accepted.
    """
    with pytest.raises(UsageError) as caught:
        parse(f"--port={value}")
    accepted = "is no TCP port: give a number from 0 to 65535"
    assert str(caught.value) == f"--port: {value!r} {accepted}"
    monkeypatch.setenv("PORT", value)
    with pytest.raises(UsageError) as caught:
        parse()
    assert str(caught.value) == f"PORT (environment): {value!r} {accepted}"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%lo"])
def test_interface(address: str) -> None:
    """
    Any address of either kind.
    """
    assert parse("-i", address)["interface"] == address


@pytest.mark.parametrize("value", WRONG_INTERFACES)
def test_wrongInterface(value: str) -> None:
    """
    What is no address is named.
    """
    with pytest.raises(UsageError) as caught:
        parse("--interface", value)
    assert str(caught.value) == (
        f"--interface: {value!r} is no address: give an IPv4 or IPv6 address, as 127.0.0.1 or ::1"
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
    with pytest.raises(UsageError, match="option --prot not recognized"):
        parse("--prot=4040")


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
        assert text in usage
    assert "\n  telnet 127.0.0.1 4040 " in usage
    assert max(map(len, usage.splitlines())) <= 80


def test_tree() -> None:
    """
    The tree is the one of the guide: a supervisor, the connections, the listener. The last can only
    start when there is somewhere to keep what it accepts, and stops first.
    """
    reactor = MemoryReactor()
    supervisor = makeService(parse("--port=0"), reactor)
    connections, listener = supervisor
    assert supervisor.name == "kvserver"
    assert isinstance(connections, Connections)
    assert isinstance(listener, Listener)
    assert listener.name == "tcp:0"
    assert reactor.adoptedPorts == []
    supervisor.startService()
    ((_, _, factory),) = reactor.adoptedPorts
    assert factory.connections is connections


def test_plugin() -> None:
    """
    twistd finds the daemon, with its options and its service.
    """
    (maker,) = (maker for maker in getPlugins(IServiceMaker) if maker.tapname == "kvserver")
    assert maker.options is Options
    assert maker.makeService is makeService


def test_pluginIsLazy() -> None:
    """
    Any twistd imports the plugin: that loads nothing of ours, and installs no reactor.
    """
    script = (
        "import sys, twisted.plugins.kvserver_plugin;"
        "print(sorted({'kvserver', 'twisted.internet.reactor'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
