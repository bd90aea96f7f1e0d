"""
Waits for orphans, which become children of process 1.
"""

import os
from pathlib import Path
from typing import Any

from twisted.application.internet import TimerService
from twisted.internet.process import reapProcessHandlers

INTERVAL = 10
"""
How often to look for orphans that have ended, in seconds. A protocol that has started a process has
so long to ask how it has ended.
"""


class Reaper:
    """
    Waits for the children that ended before its last look, and that nobody has waited for since.
    Each would stay in the process table for ever.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def look(self) -> None:
        """
        Wait for those that are still there, and remember those that are new.
        """
        # Twisted waits for its own, workers among them, and must learn how they have ended.
        ended = {pid for pid in _children() if _hasEnded(pid)} - set(reapProcessHandlers)
        for pid in ended & self._seen:
            os.waitpid(pid, 0)
        self._seen = ended


def _children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def _hasEnded(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def orphans(reactor: Any) -> TimerService:
    """
    The service that a daemon needs which is process 1: in a container, it is what C{init} is
    elsewhere.

    @param reactor: Provides C{IReactorTime}.
    """
    service = TimerService(INTERVAL, Reaper().look)
    service.clock = reactor
    return service
