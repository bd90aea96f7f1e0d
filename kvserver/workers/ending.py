"""
How worker processes end.
"""

import signal
from collections.abc import Sequence
from typing import Any

from twisted.python.failure import Failure

KILL_MARGIN = 2.0
"""
How long a worker may take to reset its connections, or to end, before it is killed, in seconds.
"""


class WorkersNotReady(Exception):
    """
    A worker has ended before it was ready. The message says why.
    """


def howItEnded(reason: Failure) -> str:
    """
    Say how a process has ended (C{ProcessDone}, C{ProcessTerminated}).
    """
    error = reason.value
    number, status = getattr(error, "signal", None), getattr(error, "exitCode", None)
    if number:
        return f"ended by signal {number} ({signal.Signals(number).name})"
    return f"ended with status {status}"


async def endAll(reactor: Any, processes: Sequence[Any]) -> None:
    """
    End processes whose connections have ended, all at once.

    @param processes: Each a C{WorkerProcess}.
    """
    timers = [reactor.callLater(KILL_MARGIN, process.kill) for process in processes]
    for process in processes:
        process.close()
    for process, timer in zip(processes, timers, strict=True):
        await process.whenEnded()
        if timer.active():
            timer.cancel()
