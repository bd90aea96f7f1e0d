"""
How the process ends, and what does not end it.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger


class Signals(Service):
    """
    The last child: it starts when all is there that a signal is for, and stops first.

    The first TERM or INT is the reactor's: it stops the services. From then on one more says that
    they are not to take their time.
    """

    _log = Logger()

    def __init__(self, reactor: Any, hurry: Callable[[], None]) -> None:
        """
        @param reactor: Provides C{IReactorFromThreads}: a signal may come at any moment, also in
            the middle of something.

        @param hurry: Is called on a second TERM or INT.
        """
        self._reactor = reactor
        self._hurry = hurry

    def startService(self) -> None:
        """
        From now on HUP does not end the process.
        """
        super().startService()
        signal.signal(signal.SIGHUP, self._hangUp)

    def stopService(self) -> None:
        """
        From now on TERM and INT end it at once.
        """
        super().stopService()
        for number in signal.SIGTERM, signal.SIGINT:
            signal.signal(number, self._again)

    def _hangUp(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._log.info, "Received SIGHUP: there is nothing to reload")

    def _again(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._hurry)


def fail(reactor: Any) -> None:
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
