"""
What SIGHUP does, and what a second SIGTERM or SIGINT does.
"""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger, LogLevel

_log = Logger(namespace="kvserver.process.Signals")

_ENDING = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Reload:
    """
    The steps of a reload, which HUP starts.

    @ivar before: Called first.

    @ivar steps: Called in order. If one fails, the rest are still called.

    @ivar after: Called last, even if a step has failed.
    """

    before: Callable[[], None]
    steps: Sequence[Callable[[], None]]
    after: Callable[[], None]

    def __call__(self) -> None:
        """
        Call all steps.
        """
        for step in (self.before, *self.steps, self.after):
            try:
                step()
            except Exception:
                _log.failure("A reload failed", level=LogLevel.error)


class Signals(Service):
    """
    Started after every service that a signal acts on, and stopped before them.

    The reactor itself handles the first TERM or INT: it stops the services. A second one aborts the
    drain.
    """

    def __init__(
        self,
        reactor: Any,
        abortDrain: Callable[[], None],
        reload: Callable[[], None],
        replace: Callable[[], None] | None = None,
    ) -> None:
        """
        @param reactor: Provides C{IReactorCore} and C{IReactorFromThreads}: a signal may arrive at
            any moment, even in the middle of other code.

        @param abortDrain: Called on a second TERM or INT.

        @param reload: Called on HUP.

        @param replace: Called on USR2. None: USR2 has its default effect, and ends the process.
        """
        self._reactor = reactor
        self._abortDrain = abortDrain
        self._reload = reload
        self._replace = replace

    def startService(self) -> None:
        """
        Handle signals: from now on, HUP does not end the process.
        """
        super().startService()
        signal.signal(signal.SIGHUP, self._hangUp)
        if self._replace is not None:
            signal.signal(signal.SIGUSR2, self._onReplace)
        # By then the reactor has installed its own handlers, which are wrapped.
        self._reactor.callWhenRunning(self._wrapReactorHandlers)

    def stopService(self) -> None:
        """
        From now on, every TERM or INT aborts the drain.
        """
        super().stopService()
        self._installSecondSignal()

    def _wrapReactorHandlers(self) -> None:
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
        # The next signal may arrive before the reactor has even begun to stop.
        self._installSecondSignal()
        handler(number, frame)

    def _installSecondSignal(self) -> None:
        for number in _ENDING:
            signal.signal(number, self._onSecondSignal)

    def _onSecondSignal(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._abortDrain)

    def _hangUp(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reloadNow)

    def _onReplace(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._replace)

    def _reloadNow(self) -> None:
        _log.info("Received SIGHUP: reloading")
        self._reload()
