"""
How the process ends after a failure, and which clock it uses.
"""

import atexit
import os
import sys
import time
from contextlib import suppress
from functools import cache
from typing import Any

from twisted.internet.error import ReactorNotRunning


def exitWithFailure(reactor: Any) -> None:
    """
    Stop in good order, and then end the process with status 1.

    Twisted has no public way to set the exit status of C{twistd} or C{twist}. So this waits until
    they have finished everything else, such as the log and the pid file.

    @param reactor: Provides C{IReactorCore}.
    """

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    atexit.register(end)
    # A signal may have stopped the reactor already.
    with suppress(ReactorNotRunning):
        reactor.stop()


@cache
def useMonotonicClock(reactor: Any) -> None:
    """
    Make a reactor use the monotonic clock. Twisted's own choice is the wall clock. If that is set
    forward, time-outs fire at once; if it is set back, every timer fires late by as much.

    This is decided once for each reactor. A second service tree must find the clock by which the
    first one has timed its connections.

    @param reactor: Provides C{IReactorTime}. A reactor that already has delayed calls is left
        alone, since their times come from the other clock.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
