"""
What HUP does, and a second TERM or INT.
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
    What HUP does.

    @ivar before: Called first.

    @ivar steps: Called in order; one that fails does not keep the rest from it.

    @ivar after: Called last, however the steps went.
    """

    before: Callable[[], None]
    steps: Sequence[Callable[[], None]]
    after: Callable[[], None]

    def __call__(self) -> None:
        """
        Reload.
        """
        for step in (self.before, *self.steps, self.after):
            try:
                step()
            except Exception:
                _log.failure("A reload failed", level=LogLevel.error)


class Signals(Service):
    """
    Started after every service that a signal acts on, and stopped before them.

    The first TERM or INT is the reactor's: it stops the services. A second one aborts the drain.
    """

    def __init__(
        self, reactor: Any, abortDrain: Callable[[], None], reload: Callable[[], None]
    ) -> None:
        """
        @param reactor: Provides C{IReactorCore} and C{IReactorFromThreads}: a signal may come at
            any moment, also in the middle of something.

        @param abortDrain: Is called on a second TERM or INT.

        @param reload: Called on HUP.
        """
        self._reactor = reactor
        self._abortDrain = abortDrain
        self._reload = reload

    def startService(self) -> None:
        """
        From now on HUP does not end the process.
        """
        super().startService()
        signal.signal(signal.SIGHUP, self._hangUp)
        # By then the reactor has set its own handlers.
        self._reactor.callWhenRunning(self._wrapReactorHandlers)

    def stopService(self) -> None:
        """
        From now on TERM and INT end it at once.
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
        # The next one may come before the reactor has even begun to stop.
        self._installSecondSignal()
        handler(number, frame)

    def _installSecondSignal(self) -> None:
        for number in _ENDING:
            signal.signal(number, self._onSecondSignal)

    def _onSecondSignal(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._abortDrain)

    def _hangUp(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reloadNow)

    def _reloadNow(self) -> None:
        _log.info("Received SIGHUP: reloading")
        self._reload()
