"""
How the process ends, what does not end it, and by which clock it goes.
"""

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger, LogLevel

_ENDING = (signal.SIGTERM, signal.SIGINT)


class Signals(Service):
    """
    It starts when all is there that a signal is for, and stops before that.

    The first TERM or INT is the reactor's: it stops the services. From then on one more says that
    they are not to take their time.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, hurry: Callable[[], None], reloads: Sequence[Callable[[], None]]
    ) -> None:
        """
        @param reactor: Provides C{IReactorCore} and C{IReactorFromThreads}: a signal may come at
            any moment, also in the middle of something.

        @param hurry: Is called on a second TERM or INT.

        @param reloads: Are called on HUP, in order.
        """
        self._reactor = reactor
        self._hurry = hurry
        self._reloads = reloads

    def startService(self) -> None:
        """
        From now on HUP does not end the process.
        """
        super().startService()
        signal.signal(signal.SIGHUP, self._hangUp)
        # By then the reactor has set its own handlers.
        self._reactor.callWhenRunning(self._takeOver)

    def stopService(self) -> None:
        """
        From now on TERM and INT end it at once.
        """
        super().stopService()
        self._hurryNow()

    def _takeOver(self) -> None:
        for number in _ENDING:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, partial(self._end, handler))

    def _end(
        self,
        handler: Callable[[int, FrameType | None], object],
        number: int,
        frame: FrameType | None,
    ) -> None:
        # The next one may come before the reactor has even begun to stop.
        self._hurryNow()
        handler(number, frame)

    def _hurryNow(self) -> None:
        for number in _ENDING:
            signal.signal(number, self._again)

    def _again(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._hurry)

    def _hangUp(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        self._log.info("Received SIGHUP: reloading")
        for reload in self._reloads:
            try:
                reload()
            except Exception:
                # It does not keep the rest.
                self._log.failure("A reload failed", level=LogLevel.error)


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


def keepTime(reactor: Any) -> None:
    """
    Let a reactor go by the monotonic clock. Twisted's goes by that of the wall: when that is set
    forward, time-outs would come at once, and when it is set back, no timer would come for as long.

    @param reactor: Provides C{IReactorTime}. If it has calls to make already it is left alone,
        since they have been timed by the other clock.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
