"""
Waits for orphans, which become children of process 1.
"""

import os
from contextlib import suppress
from typing import Any

from twisted.application.internet import TimerService
from twisted.internet.process import reapProcessHandlers

INTERVAL = 5
"""
How often to look for orphans that have ended, in seconds.
"""


def reap() -> None:
    """
    Wait for the children that have ended and that nobody else waits for. Each would stay in the
    process table for ever.
    """
    with suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in reapProcessHandlers:
                # A worker. Twisted is about to wait for it, and must learn how it has ended.
                return
            os.waitpid(ended.si_pid, 0)


def orphans(reactor: Any) -> TimerService:
    """
    The service that a daemon needs which is process 1: in a container, it is what C{init} is
    elsewhere.

    @param reactor: Provides C{IReactorTime}.
    """
    service = TimerService(INTERVAL, reap)
    service.clock = reactor
    return service
