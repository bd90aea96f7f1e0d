"""
What the service manager hears: on a fake clock, at a socket of its own.
"""

import contextlib
import os
import re
import socket
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs

from kvserver.operations.notify import (
    RETRY,
    STATUS_INTERVAL,
    Notifier,
    NotifySocket,
    forgetEnvironment,
)
from tests.support.manager import Ear

SOCKET = "/run/systemd/notify"


class NotifierHarness:
    """
    A notifier, and what it has to tell of.
    """

    def __init__(self, manager: NotifySocket | None) -> None:
        self.reactor = MemoryReactorClock()
        self.status = "nothing"
        self.well = True
        self.notifier = Notifier(
            self.reactor, manager, lambda: self.status, lambda: self.well, drain=15
        )

    def run(self) -> None:
        """
        The service starts, and the reactor runs.
        """
        self.notifier.startService()
        self.reactorRuns()

    def reactorRuns(self) -> None:
        """
        The reactor runs.
        """
        for call, args, kwargs in self.reactor.whenRunningHooks:
            call(*args, **kwargs)


class TestTakeManager:
    """
    Who the manager is.
    """

    def test_nobody(self) -> None:
        """
        There need be none.
        """
        assert NotifySocket.fromEnvironment({"PATH": "/bin"}) is None

    @pytest.mark.parametrize("watched", ["whoever", "we"])
    def test_taken(self, watched: str) -> None:
        """
        It is taken out of the environment when that is asked for, and nothing else is.
        """
        told = {"NOTIFY_SOCKET": SOCKET, "WATCHDOG_USEC": "3000000", "PATH": "/bin"}
        if watched == "we":
            told["WATCHDOG_PID"] = str(os.getpid())
        assert NotifySocket.fromEnvironment(told) == NotifySocket(SOCKET, 3.0)
        forgetEnvironment(told)
        assert told == {"PATH": "/bin"}

    def test_noWatchdog(self) -> None:
        """
        It need not wait for us, or waits for another.
        """
        assert NotifySocket.fromEnvironment({"NOTIFY_SOCKET": "@x"}) == NotifySocket("@x")
        other = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
        assert NotifySocket.fromEnvironment(other) == NotifySocket("@x")

    @pytest.mark.parametrize("address", ["", "/", "@", "notify", "vsock:2:1", "/" + "x" * 107])
    def test_wrongSocket(self, address: str) -> None:
        """
        What is no UNIX socket is named.
        """
        with pytest.raises(
            ValueError, match=re.escape(f"NOTIFY_SOCKET (environment): {address!r}")
        ):
            NotifySocket.fromEnvironment({"NOTIFY_SOCKET": address})

    @pytest.mark.parametrize("time", ["", "0", "x", "-1", "1.5"])
    def test_wrongWatchdog(self, time: str) -> None:
        """
        What is no time is named.
        """
        with pytest.raises(ValueError, match=re.escape(f"WATCHDOG_USEC (environment): {time!r}")):
            NotifySocket.fromEnvironment({"NOTIFY_SOCKET": SOCKET, "WATCHDOG_USEC": time})


def test_life(ear: Ear) -> None:
    """
    READY when the reactor runs, RELOADING and READY again, STOPPING with the time it may take; then
    nothing more.
    """
    harness = NotifierHarness(NotifySocket(ear.address))
    harness.notifier.startService()
    assert ear.heard() == []
    harness.reactorRuns()
    assert ear.heard() == ["READY=1", "STATUS=nothing"]
    harness.notifier.reloading()
    harness.notifier.ready()
    reloading, ready = ear.heard()
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)
    assert ready == "READY=1"
    harness.notifier.stopService()
    assert ear.heard() == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000"]
    harness.notifier.stopService()
    harness.notifier.reloading()
    harness.notifier.ready()
    harness.reactor.advance(3600)
    assert ear.heard() == []


def test_stoppedBeforeItRan(ear: Ear) -> None:
    """
    One that is stopped before the reactor runs never says READY.
    """
    harness = NotifierHarness(NotifySocket(ear.address, 1.0))
    harness.notifier.startService()
    harness.notifier.stopService()
    harness.reactorRuns()
    assert [said.split("\n")[0] for said in ear.heard()] == ["STOPPING=1"]
    assert harness.reactor.getDelayedCalls() == []


def test_status(ear: Ear) -> None:
    """
    The status is said when it has changed, and not more often than it may be.
    """
    harness = NotifierHarness(NotifySocket(ear.address))
    harness.run()
    ear.heard()
    for number in range(10):
        harness.status = str(number)
        harness.reactor.advance(STATUS_INTERVAL / 5)
    assert ear.heard() == ["STATUS=4", "STATUS=9"]
    harness.reactor.advance(STATUS_INTERVAL)
    assert ear.heard() == []


def test_watchdog(ear: Ear) -> None:
    """
    The watchdog hears of us twice in its time, as long as we are well.
    """
    harness = NotifierHarness(NotifySocket(ear.address, 3.0))
    harness.run()
    assert "WATCHDOG=1" in ear.heard()
    harness.reactor.pump([0.5] * 6)
    assert ear.heard() == ["WATCHDOG=1"] * 2
    harness.well = False
    harness.reactor.pump([0.5] * 6)
    assert ear.heard() == []
    harness.well = True
    harness.reactor.pump([0.5] * 3)
    assert ear.heard() == ["WATCHDOG=1"]


def test_busyManager(ear: Ear) -> None:
    """
    A manager that is too busy to listen hears the rest later, in order, and nobody waits for it.
    """
    harness = NotifierHarness(NotifySocket(ear.address, 1.0))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        other.connect(ear.socket.getsockname())
        with contextlib.suppress(BlockingIOError):
            while True:
                other.send(b"X=1")
    harness.run()
    # What is said again and again is not kept: it would be old.
    harness.reactor.pump([RETRY] * 100)
    harness.notifier.reloading()
    harness.notifier.stopService()
    assert set(ear.heard()) == {"X=1"}
    harness.reactor.advance(RETRY)
    assert [said.partition("\n")[0] for said in ear.heard()] == [
        "READY=1",
        "RELOADING=1",
        "STOPPING=1",
    ]
    assert harness.reactor.getDelayedCalls() == []


def test_lostManager(tmp_path: Path) -> None:
    """
    A manager that is not there is a warning, once a minute, and no more.
    """
    harness = NotifierHarness(NotifySocket(f"{tmp_path}/nobody", 2.0))
    with capturedLogs() as logs:
        harness.run()
        harness.reactor.pump([1.0] * 70)
    assert [event["log_level"] for event in logs] == [LogLevel.warn] * 2
    assert logs[0]["reason"] == "No such file or directory"


def test_noManager() -> None:
    """
    Nobody is told anything, and nothing is timed.
    """
    harness = NotifierHarness(None)
    harness.run()
    harness.notifier.reloading()
    harness.notifier.ready()
    harness.notifier.stopService()
    assert harness.reactor.getDelayedCalls() == []
