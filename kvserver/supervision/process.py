"""
How the process ends, and by which clock it goes.
"""

import atexit
import os
import sys
import time
from contextlib import suppress
from typing import Any

from twisted.internet.error import ReactorNotRunning


def exitWithFailure(reactor: Any) -> None:
    """
    Stop in good order, and then end the process with status 1.

    Twisted has no public way to say with which status C{twistd} or C{twist} are to end, so this
    waits until they have ended all else: the log, the pid file.

    @param reactor: Provides C{IReactorCore}.
    """

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    atexit.register(end)
    # A signal may have stopped it already.
    with suppress(ReactorNotRunning):
        reactor.stop()


def useMonotonicClock(reactor: Any) -> None:
    """
    Let a reactor go by the monotonic clock. Twisted's goes by that of the wall: when that is set
    forward, time-outs would come at once, and when it is set back, no timer would come for as long.

    @param reactor: Provides C{IReactorTime}. If it has calls to make already it is left alone,
        since they have been timed by the other clock.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
