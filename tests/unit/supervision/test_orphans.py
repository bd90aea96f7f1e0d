"""
What process 1 does for orphans.
"""

import subprocess
import sys

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from kvserver.supervision.orphans import INTERVAL, Reaper, orphans
from kvserver.tap import Options, makeService

SCRIPT = """
import os, signal
from twisted.internet.process import reapProcessHandlers
from kvserver.supervision.orphans import Reaper

def child():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid

reaper = Reaper()
reaper.look()
children = [child(), child()]
running = os.fork()
if not running:
    signal.pause()
reaper.look()
mine = child()
reaper.look()
assert os.waitpid(mine, 0)[0] == mine, "taken at the first look"
os.kill(running, signal.SIGKILL)
assert os.waitpid(-1, 0)[0] == running, "not just those that had ended"
worker = child()
reapProcessHandlers[worker] = None
reaper.look()
reaper.look()
assert os.waitpid(worker, 0)[0] == worker, "taken from Twisted"
"""


def test_reap() -> None:
    """
    Those that had ended at the look before are waited for, but not those that Twisted waits for.
    Having none, or only some that run, is no fault.
    """
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)


def test_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The service looks again and again, until it stops.
    """
    calls: list[object] = []
    monkeypatch.setattr(Reaper, "look", lambda reaper: calls.append(reaper))
    clock = Clock()
    service = orphans(clock)
    service.startService()
    clock.pump([INTERVAL] * 3)
    assert len(calls) == 4
    service.stopService()
    clock.pump([INTERVAL] * 3)
    assert len(calls) == 4


def test_onlyAsProcess1(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It is part of the tree of process 1, and of no other: elsewhere that is what init is for.
    """

    def names() -> list[object]:
        options = Options()
        options.parseOptions(["--port=4040"])
        return [child.name for child in makeService(options, MemoryReactorClock())]

    assert "orphans" not in names()
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert "orphans" in names()
