"""
Starts worker processes.
"""

import os
import signal
import socket
import sys
from typing import Any

from kvserver.workers.messages import GROUP_SIGNALS

CHANNEL = 3
"""
The number that the channel has in the worker.
"""

_MAIN = "import sys; del sys.path[0]; from kvserver.workers.child import main; main()"
"""
What the process runs. Python puts the working directory first on the path of a C{-c} or C{-m}; the
master has no such entry.
"""


def spawn(reactor: Any, protocol: Any, end: socket.socket) -> None:
    """
    Start a worker process.

    @param reactor: Provides C{IReactorProcess}.

    @param protocol: A C{ProcessProtocol}.

    @param end: The worker's end of its channel.

    @raise OSError: It can't be started.
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # A signal to the whole group must not reach the worker before it can ignore it. The mask is
    # inherited.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        reactor.spawnProcess(
            protocol,
            sys.executable,
            [sys.executable, "-c", _MAIN, str(CHANNEL), os.environ.get("PYTHONPATH", "")],
            env=os.environ | {"PYTHONPATH": paths},
            childFDs={0: "w", 1: "r", 2: "r", CHANNEL: end.fileno()},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
