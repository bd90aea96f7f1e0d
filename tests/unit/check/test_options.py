"""
The command line, and what a target says: what is wrong is one line that names it.
"""

import socket
import struct
from pathlib import Path

import pytest

from kvserver.check.__main__ import main, planOf, settingsOf
from kvserver.check.giving import Plan
from kvserver.check.options import UsageError, parseArguments
from kvserver.check.target import (
    GRAMMAR,
    Target,
    formatAddress,
    parseSource,
    parseTarget,
    proxyHeader,
    resolve,
)
from kvserver.listening.proxy import parseHeader
from tests.support.wires import Authority

TARGETS = {
    "tcp:lb.example:4040": Target("", (), "lb.example", 4040),
    "tcp:host=lb.example:port=4040": Target("", (), "lb.example", 4040),
    r"tcp:\:\:1:4040": Target("", (), "::1", 4040),
    "unix:/run/echo.sock": Target("", (), path="/run/echo.sock"),
    r"unix:/run/a\:b": Target("", (), path="/run/a:b"),
    "tls:tcp:lb.example:4443": Target("", ("tls",), "lb.example", 4443),
    "tls:lb.example:4443": Target("", ("tls",), "lb.example", 4443),
    "tls:unix:/run/echo.sock": Target("", ("tls",), path="/run/echo.sock"),
    "proxy:tcp:10.0.0.1:4041": Target("", ("proxy",), "10.0.0.1", 4041),
    "proxy:tls:tcp:10.0.0.1:4041": Target("", ("proxy", "tls"), "10.0.0.1", 4041),
    "proxy:tls:10.0.0.1:4041": Target("", ("proxy", "tls"), "10.0.0.1", 4041),
}


@pytest.mark.parametrize("description", TARGETS)
def test_aTarget(description: str) -> None:
    """
    A target.
    """
    expected = TARGETS[description]
    found = parseTarget(description)
    assert found.name == description
    assert (found.layers, found.host, found.port, found.path) == (
        *(expected.layers, expected.host),
        *(expected.port, expected.path),
    )


@pytest.mark.parametrize(
    "description",
    [
        *("", "tcp", "tcp:", "tcp:a", "tcp:a:", "tcp:a:0", "tcp:a:65536", "tcp:a:b", "tcp::1"),
        *("tcp:a:1:2", "tcp:a:1:timeout=3", "unix:", "unix:a:b", "ssl:a:1", "udp:a:1", "a:1"),
        *("tls:proxy:tcp:a:1", "tls:tls:tcp:a:1", "proxy:", "tls:", "tcp:host=a:host=b"),
        *("unix:" + "x" * 108, "tcp:::1:4040", "tcp:a:٣", "tcp:a\nb:1"),
    ],
)
def test_whatIsNoTarget(description: str) -> None:
    """
    What is no target.
    """
    with pytest.raises(ValueError, match=r".") as raised:
        parseTarget(description)
    assert repr(description) in str(raised.value)


def test_aSource() -> None:
    """
    A source.
    """
    assert parseSource("192.0.2.1") == ("192.0.2.1", 0)
    assert parseSource("192.0.2.1:1024") == ("192.0.2.1", 1024)
    assert parseSource("2001:db8::1") == ("2001:db8::1", 0)
    assert parseSource("[2001:db8::1]:77") == ("2001:db8::1", 77)
    for wrong in ("", "x", "192.0.2", "192.0.2.1:99999", "[::1", "::1]:5"):
        with pytest.raises(ValueError, match="is not an address"):
            parseSource(wrong)


@pytest.mark.parametrize("version", [1, 2])
def test_aPROXYHeaderIsWhatTheDaemonReads(version: int) -> None:
    """
    A PROXY header is what the daemon reads.
    """
    for source, destination in (
        (("192.0.2.1", 1024), ("192.0.2.2", 4040)),
        (("2001:db8::1", 1024), ("2001:db8::2", 4040)),
        (("2001:db8::1", 1024), ("192.0.2.2", 4040)),
        (("192.0.2.1", 1024), None),
    ):
        data = proxyHeader(version, source, destination)
        header = parseHeader(data)
        assert header is not None
        assert header.length == len(data)
        assert (header.peer.host, header.peer.port) == source  # type: ignore[union-attr]
    header = parseHeader(proxyHeader(version, None, None))
    assert header is not None
    assert header.peer is None
    assert proxyHeader(2, ("1.2.3.4", 5), None)[12:16] == struct.pack("!BBH", 0x21, 0x11, 12)


def test_anAddressIsWrittenAsTheLogOfTheDaemonHasIt() -> None:
    """
    An address is written as the log of the daemon has it.
    """
    assert formatAddress(("127.0.0.1", 5)) == "127.0.0.1:5"
    assert formatAddress(("::1", 5, 0, 0)) == "[::1]:5"
    assert formatAddress(("::ffff:127.0.0.1", 5, 0, 0)) == "127.0.0.1:5"
    assert formatAddress("") == "unix"


def test_aPathHasNoNameToResolve() -> None:
    """
    A path has no name to resolve.
    """
    found: list[object] = []
    resolve(None, parseTarget("unix:/x"), found.append)
    assert found == [[(socket.AF_UNIX, "/x")]]


WRONG = {
    "--size 0": "--size: '0' is not a length from 1",
    "--size x": "--size: 'x' is not a length",
    "--sizes 10": "--sizes: '10' is not LOW:HIGH",
    "--sizes 20:10": "--sizes: '20:10'",
    "--size 5 --sizes 10:20 --lines 1": "--sizes: not with --size",
    "--rate 0": "--rate: '0' is not a number of lines a second",
    "--rate nan": "--rate: 'nan'",
    "--connections -1": "--connections",
    "--connections 1.5": "--connections: '1.5'",
    "--duration 0": "--duration: '0' is not a time above 0, as 60, 5ms",
    "--max-p99 5kg --lines 5": "--max-p99: '5kg' is not a time",
    "--max-p99 5ms": "--max-p99: only with a load",
    "--rule nothing": "--rule: invalid choice: 'nothing'",
    "--rule lines --lines 5": "--rule: not with a load (--lines)",
    "--idle 5 --soak": "--idle: not with a load",
    "--server-log /dev/null --churn 5": "--server-log: not with a load (--churn)",
    "--plot a.gif --lines 5": "--plot: 'a.gif' ends neither in .svg nor in .png",
    "--plot /no/such/a.svg --lines 5": "--plot: '/no/such/a.svg' can't be written: No such",
    "--hdr /no/such/a --lines 5": "--hdr: '/no/such/a' can't be written",
    "--server-log /no/such/log": "--server-log: '/no/such/log' can't be read: No such",
    "--ca x.pem": "--ca: only with a target of tls:",
    "--ca=": "--ca: only with a target of tls:",
    "--private-key=": "--private-key: only with a target of tls:",
    "--proxy-source 1.2.3.4": "--proxy-source: only with a target of proxy:",
    "--proxy-version 1": "--proxy-version: only with a target of proxy:",
    "--proxy-version 3": "--proxy-version: '3' is not a version of the PROXY protocol: 1 or 2",
    "--nonsense": "--nonsense",
    "--conn 5": "--conn",
    "--timeout 0": "--timeout: '0'",
    "tcp:other:1": "tcp:other:1",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrongUsageIsOneLine(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Wrong usage is one line.
    """
    assert main(["tcp:127.0.0.1:4040", *arguments.split()]) == 2
    output, complaint = capsys.readouterr()
    assert output == ""
    assert complaint.startswith("kvcheck: ")
    assert WRONG[arguments] in complaint
    assert complaint.count("\n") == 1


def test_aPathHasNoName(capsys: pytest.CaptureFixture[str]) -> None:
    """
    In the certificate of a UNIX socket no name can be expected unless one is given.
    """
    assert main(["tls:unix:/x"]) == 2
    assert capsys.readouterr().err == (
        "kvcheck: --server-name: a target of tls:unix: needs it, or --insecure\n"
    )


def test_noTargetIsOneLine(capsys: pytest.CaptureFixture[str]) -> None:
    """
    No target is one line.
    """
    assert main([]) == 2
    assert "TARGET" in capsys.readouterr().err


def test_wrongTargetIsOneLine(capsys: pytest.CaptureFixture[str]) -> None:
    """
    What is wrong is called TARGET, as the help calls it, and what is accepted is said.
    """
    assert main(["udp:127.0.0.1:4040"]) == 2
    assert capsys.readouterr().err == (
        f"kvcheck: TARGET: 'udp:127.0.0.1:4040' is not {GRAMMAR} (in an IPv6 address write \\: "
        "for :)\n"
    )


@pytest.mark.parametrize("option", ["--ca", "--certificate"])
def test_aFileThatIsNoCertificate(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A file that is no certificate.
    """
    (tmp_path / "file").write_text("nothing")
    for path in (tmp_path / "file", tmp_path / "none"):
        assert main(["tls:localhost:1", option, str(path)]) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith(f"kvcheck: {option}: {path}: no usable PEM file: ")
        assert complaint.count("\n") == 1


def test_aCertificateWithoutItsKey(
    authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A certificate whose key is in another file needs the option for that.
    """
    assert main(["tls:localhost:1", f"--certificate={authority.certificate}"]) == 2
    assert "it has no private key: name that by --private-key" in capsys.readouterr().err


def plan(arguments: str) -> Plan:
    """
    What load these arguments ask for.
    """
    return planOf(parseArguments(["tcp:a:1", *arguments.split()], ""))


def test_thePlan() -> None:
    """
    The plan.
    """
    assert plan("--connections 5") == Plan(5, None, 16, None, 10.0)
    assert plan("--rate 100") == Plan(1, 100.0, None, None, 10.0)
    assert plan("--rate 100 --depth 3 --lines 7") == Plan(1, 100.0, 3, 7, None)
    assert plan("--churn 5 --duration 2m") == Plan(1, None, 16, None, 120.0, 5)
    assert plan("--soak") == Plan(1, None, 16, None, None, None, True)
    assert not parseArguments(["tcp:a:1", "--size", "5"], "").isLoad


def test_aServerNameThatIsNone() -> None:
    """
    A server name that is none.
    """
    options = parseArguments(["tls:a:1", "--server-name", ".a"], "")
    with pytest.raises(UsageError, match=r"--server-name: '\.a'"):
        settingsOf(options)


def test_filesAreTriedWithoutATrace(tmp_path: Path) -> None:
    """
    Files are tried without a trace.
    """
    parseArguments(["tcp:a:1", "--lines", "1", "--hdr", str(tmp_path / "new")], "")
    assert list(tmp_path.iterdir()) == []
