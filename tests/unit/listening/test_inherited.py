"""
Sockets from systemd: which there are, which of them can be served, and that they stay as they are.
"""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvserver.listening.endpoints import parseEndpoint
from kvserver.listening.inherited import (
    InheritedBinding,
    NotPassed,
    forgetEnvironment,
    passedNames,
    unusedSockets,
)
from kvserver.listening.sockets import CannotListen
from tests.support.clients import skip


def passing(count: int | str, names: str | None = None) -> dict[str, str]:
    """
    The environment in which systemd passes so many sockets to this process.
    """
    named = {} if names is None else {"LISTEN_FDNAMES": names}
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), **named}


def indexOf(passed: socket.socket | int) -> int:
    """
    The index by which a file descriptor of ours is one that systemd passes.
    """
    return (passed if isinstance(passed, int) else passed.fileno()) - 3


def backlog(listening: socket.socket) -> int:
    """
    How many connections the kernel lets wait (tcpi_sacked of tcp_info, linux/tcp.h).
    """
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    (found,) = struct.unpack("28xI", info)
    return int(found)


@pytest.fixture
def passed() -> Iterator[socket.socket]:
    """
    A socket as systemd passes it, with a backlog of the administrator's.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=7) as listening:
        os.set_inheritable(listening.fileno(), True)
        yield listening


# What the environment says.


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": "ours", "LISTEN_FDS": "2"}, ["", ""]),
        ({"LISTEN_PID": "ours", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, ["a", "b"]),
        ({"LISTEN_PID": "ours", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, ["a", ""]),
    ],
)
@pytest.mark.parametrize("taken", [(), ("LISTEN_PID", "LISTEN_FDS"), "all"])
def test_passedNames(
    environment: dict[str, str],
    names: list[str],
    taken: tuple[str, ...] | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    What systemd passes is ours if it says our process id, with names or without; also if somebody
    has taken it out of the environment since the process was started, in part or all of it.
    """
    ours = {
        name: str(os.getpid()) if value == "ours" else value for name, value in environment.items()
    }
    initial = tmp_path / "environ"
    initial.write_text("".join(f"{name}={value}\0" for name, value in ours.items()))
    monkeypatch.setattr("kvserver.listening.inherited._INITIAL_ENVIRONMENT", initial)
    assert passedNames({} if taken == "all" else ours) == names
    now = {name: value for name, value in ours.items() if name not in taken and taken != "all"}
    assert passedNames(now) == names


def test_noProc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without /proc what the environment says now is all there is.
    """
    monkeypatch.setattr("kvserver.listening.inherited._INITIAL_ENVIRONMENT", tmp_path / "none")
    assert passedNames({}) == []
    assert passedNames(passing(1)) == [""]


@pytest.mark.parametrize("value", ["", "x", "-1", "+1", "1.5", "٣", "9" * 5000])
def test_wrongCount(value: str) -> None:
    """
    A number of sockets that is none is named.
    """
    with pytest.raises(ValueError, match="LISTEN_FDS") as caught:
        parseEndpoint("systemd:index=0", passing(value))
    assert not isinstance(caught.value, NotPassed)
    assert str(caught.value) == f"LISTEN_FDS (environment): {value!r} is not a number of sockets"
    # Of those that nobody wants nothing needs to be known.
    assert unusedSockets(passing(value), []) == []


def test_forget() -> None:
    """
    Child processes do not take the sockets for theirs.
    """
    environment = {**passing(1, "echo"), "LISTEN_PIDFDID": "1", "HOME": "/"}
    forgetEnvironment(environment)
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    ("environment", "description", "reason"),
    [
        ({}, "systemd:index=0", "systemd passed no sockets. Was this started by kvserver.socket?"),
        ({}, "systemd:name=a", "systemd passed no sockets. Was this started by kvserver.socket?"),
        (
            passing(0),
            "systemd:INET",
            "systemd passed no sockets. Was this started by kvserver.socket?",
        ),
        (passing(1), "systemd:index=1", "systemd passed socket 0, but no socket 1"),
        (
            passing(2, "a:b"),
            "systemd:index=2",
            "systemd passed socket 0 ('a'), socket 1 ('b'), but no socket 2",
        ),
        (
            passing(2, "a:b"),
            "systemd:name=c",
            "systemd passed socket 0 ('a'), socket 1 ('b'), but none named 'c'",
        ),
        (passing(1), "systemd:name=", "systemd passed socket 0, but none named ''"),
    ],
)
def test_notPassed(environment: dict[str, str], description: str, reason: str) -> None:
    """
    A socket that is missing is missed in words, with those that there are.
    """
    with pytest.raises(NotPassed) as caught:
        parseEndpoint(description, environment)
    assert str(caught.value) == reason


def test_sameName() -> None:
    """
    One name for several sockets says nothing: the clients of all but one would never be answered.
    """
    with pytest.raises(ValueError, match="named") as caught:
        parseEndpoint("systemd:name=web", passing(4, "web:echo:web:web"))
    assert not isinstance(caught.value, NotPassed)
    assert str(caught.value) == (
        "systemd passed 3 sockets named 'web': say index=0 or index=2 or index=3"
    )


def test_unused() -> None:
    """
    Those that no option names are known.
    """
    environment = passing(3, "web:echo:")
    assert unusedSockets(environment, [InheritedBinding(1)]) == ["socket 0 ('web')", "socket 2"]
    assert unusedSockets({}, []) == []


# What is found there.


def test_parse(passed: socket.socket) -> None:
    """
    By its index, or by its name if it has one: it is the same, and conflicts with itself.
    """
    index = indexOf(passed)
    environment = passing(index + 1, ":" * index + "echo")
    bindings = [
        parseEndpoint(description, environment)
        for description in (
            f"systemd:domain=INET6:index={index}",
            f"systemd:INET:{index}",
            "SYSTEMD:name=echo",
        )
    ]
    for binding in bindings:
        assert isinstance(binding, InheritedBinding)
        assert binding.index == index
        assert binding.conflictsWith(bindings[0])
        assert not binding.conflictsWith(InheritedBinding(index + 1))
    # Nothing has been done to it.
    assert passed.getblocking()
    assert os.get_inheritable(passed.fileno())


def seqpacket(folder: Path) -> socket.socket:
    """
    What C{ListenSequentialPacket=} makes.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.bind(str(folder / "socket"))
    made.listen()
    return made


def vsock(folder: Path) -> socket.socket:
    """
    What C{ListenStream=vsock:...} makes.
    """
    try:
        return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError:
        skip("this kernel has no vsock")


def mptcp(folder: Path) -> socket.socket:
    """
    What C{SocketProtocol=mptcp} makes.
    """
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError:
        skip("this kernel has no MPTCP")


def bound(folder: Path) -> socket.socket:
    """
    One that does not listen.
    """
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    return made


KINDS: list[tuple[Callable[[Path], socket.socket], str]] = [
    (seqpacket, "its type is SOCK_SEQPACKET, not SOCK_STREAM (ListenStream=)"),
    (
        lambda folder: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "its type is SOCK_DGRAM, not SOCK_STREAM (ListenStream=)",
    ),
    (vsock, "its address family is AF_VSOCK, not AF_INET, AF_INET6 or AF_UNIX"),
    (mptcp, "its protocol is number 262, not TCP"),
    (bound, "it does not listen (Accept=no)"),
    (lambda folder: socket.socketpair()[0], "it does not listen (Accept=no)"),
]


@pytest.mark.parametrize(("make", "reason"), KINDS)
def test_wrongKind(make: Callable[[Path], socket.socket], reason: str, tmp_path: Path) -> None:
    """
    What can't be served is said at once, before anything listens.
    """
    with make(tmp_path) as passed:
        index = indexOf(passed)
        with pytest.raises(NotPassed) as caught:
            parseEndpoint(f"systemd:index={index}", passing(index + 1))
        assert str(caught.value) == f"socket {index} from systemd: {reason}"
        # It is still open.
        os.fstat(passed.fileno())


def test_noSocket() -> None:
    """
    A pipe (C{ListenFIFO=}) is no socket, nor is what is not open.
    """
    reading, writing = os.pipe()
    index = indexOf(reading)
    for reason in "Socket operation on non-socket", "Bad file descriptor":
        with pytest.raises(NotPassed) as caught:
            parseEndpoint(f"systemd:index={index}", passing(index + 1))
        assert str(caught.value) == f"socket {index} from systemd: {reason}"
        if reason != "Bad file descriptor":
            os.close(reading)
    os.close(writing)


# Listening.


def test_listen(passed: socket.socket) -> None:
    """
    It listens, and its backlog stays the administrator's; it is not for child processes.
    """
    binding = InheritedBinding(indexOf(passed))
    assert str(binding) == f"socket {indexOf(passed)} from systemd"
    binding.check()
    with binding.listen() as listening:
        assert str(binding) == f"port {passed.getsockname()[1]}"
        assert not listening.getblocking()
        assert not os.get_inheritable(passed.fileno())
        assert backlog(passed) == binding.backlog == 7
        socket.create_connection(passed.getsockname()).close()
    binding.unbind()
    assert binding.isBound()
    socket.create_connection(passed.getsockname()).close()


def test_listenAgain(passed: socket.socket) -> None:
    """
    Shut down behind our back, it listens again, with the backlog that it had.
    """
    binding = InheritedBinding(indexOf(passed))
    binding.listen().close()
    passed.shutdown(socket.SHUT_RDWR)
    with binding.listen():
        assert backlog(passed) == 7
        socket.create_connection(passed.getsockname()).close()


def test_replaced(passed: socket.socket) -> None:
    """
    A file descriptor that has come to mean something else is not taken.
    """
    index = indexOf(passed)
    binding = parseEndpoint(f"systemd:index={index}", passing(index + 1))
    with socket.create_server(("127.0.0.1", 0)) as other:
        os.dup2(other.fileno(), passed.fileno())
    with pytest.raises(CannotListen) as caught:
        binding.listen()
    assert str(caught.value) == (
        f"Cannot listen on socket {index} from systemd: "
        f"file descriptor {index + 3} is another one by now"
    )


def test_broken() -> None:
    """
    A file descriptor that is none is told.
    """
    with pytest.raises(CannotListen, match="Cannot listen on socket 900 from systemd: Bad file"):
        InheritedBinding(900).listen()


def test_abstract() -> None:
    """
    The name of an abstract UNIX socket is written with an @, as systemd does.
    """
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(f"\0kvserver tests: {os.getpid()}")
        passed.listen()
        binding = InheritedBinding(indexOf(passed))
        binding.listen().close()
        assert str(binding) == f"@kvserver tests: {os.getpid()}"
