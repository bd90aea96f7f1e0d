"""
What SIGHUP does, and what a second SIGTERM or SIGINT does. Signals belong to the process: all
service trees in it share their handlers.
"""

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger, LogLevel

from kvserver.supervision.terminal import Terminal

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


Handler = Callable[[int, FrameType | None], object]


class ProcessSignals:
    """
    The signal handlers of the process. They act on all service trees that run in it.

    HUP reloads each tree, USR2 replaces its workers. The reactor itself handles the first TERM or
    INT: it stops the services. A second one aborts the drain of each tree. The HUP of a terminal
    that goes away stops the reactor, too.

    If INT is ignored at the start, as in a background job of a shell, it stays ignored. If HUP is
    ignored, as under nohup(1), then a hang-up of the terminal is ignored, and HUP always reloads.

    @ivar endedBy: The number of the first TERM or INT; None before.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: Provides C{IReactorCore} and C{IReactorFromThreads}: a signal may arrive at
            any moment, even in the middle of other code.
        """
        self.endedBy: int | None = None
        self._reactor = reactor
        self._trees: list[Signals] = []
        self._wrapped: list[int] = []
        self._hangUpBefore: Handler | None = None
        self._terminal = Terminal(reactor)
        self._areInstalled = False
        self._ignoresHangUp = False

    def add(self, tree: "Signals") -> None:
        """
        Let signals act on this tree. From now on, HUP does not end the process.
        """
        self._trees.append(tree)
        if not self._areInstalled:
            self._areInstalled = True
            self._install()
        if len(self._trees) == 1 and not self._ignoresHangUp:
            self._terminal.start()

    def _install(self) -> None:
        signal.signal(signal.SIGUSR2, self._onReplace)
        before = signal.signal(signal.SIGHUP, self._hangUp)
        self._hangUpBefore = before if callable(before) else None
        self._ignoresHangUp = before == signal.SIG_IGN
        # By then the reactor has installed its own handlers, which are wrapped.
        self._reactor.callWhenRunning(self._wrapReactorHandlers)
        # Something else may stop the reactor, too. Then the first signal aborts the drain.
        self._reactor.addSystemEventTrigger("before", "shutdown", self._installSecondSignal)

    def remove(self, tree: "Signals") -> None:
        """
        Signals no longer act on this tree.
        """
        self._trees.remove(tree)
        if not self._trees:
            self._terminal.stop()

    def _wrapReactorHandlers(self) -> None:
        for number in _ENDING:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, partial(self._end, handler))
                self._wrapped.append(number)

    def _end(self, handler: Handler, number: int, frame: FrameType | None) -> None:
        # The next signal may arrive before the reactor has even begun to stop, or right here.
        isFirst, self.endedBy = self.endedBy is None, self.endedBy or number
        self._installSecondSignal()
        if isFirst:
            handler(number, frame)
        else:
            self._onSecondSignal(number, frame)

    def _installSecondSignal(self) -> None:
        for number in self._wrapped:
            signal.signal(number, self._onSecondSignal)

    def _onSecondSignal(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._abortDrains)

    def _abortDrains(self) -> None:
        if self._trees:
            _log.info("Received a second signal: waiting for no connection")
        # A tree without connections has stopped, and is removed, when this returns.
        for tree in list(self._trees):
            tree.abortDrain()

    def _hangUp(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reloadOrStop)
        if self._hangUpBefore:
            self._hangUpBefore(number, frame)

    def _onReplace(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._replace)

    def _replace(self) -> None:
        if not any(tree.replace for tree in self._trees):
            _log.warn("Received SIGUSR2: ignored, since there are no workers")
        for tree in self._trees:
            if tree.replace is not None:
                tree.replace()

    def _reloadOrStop(self) -> None:
        if self._terminal.hasJustGone():
            _log.info("The terminal has gone: stopping")
            # A signal may have stopped the reactor already.
            with suppress(ReactorNotRunning):
                self._reactor.stop()
            return
        _log.info("Received SIGHUP: reloading")
        for tree in self._trees:
            tree.reload()


@cache
def processSignals(reactor: Any) -> ProcessSignals:
    """
    The signal handlers of the process that a reactor runs in: one object for all service trees.
    """
    return ProcessSignals(reactor)


class Signals(Service):
    """
    Lets signals act on one service tree. It is the first child, and so stops last: a second signal
    acts on the drain of the others.
    """

    def __init__(
        self,
        reactor: Any,
        abortDrain: Callable[[], None],
        reload: Callable[[], None],
        replace: Callable[[], None] | None = None,
    ) -> None:
        """
        @param abortDrain: Called on a second TERM or INT.

        @param reload: Called on HUP.

        @param replace: Called on USR2. None: there is nothing to replace.
        """
        self._process = processSignals(reactor)
        self.replace = replace
        self.abortDrain = abortDrain
        self.reload = reload

    def startService(self) -> None:
        """
        From now on, signals act on this tree.
        """
        super().startService()
        self._process.add(self)

    def stopService(self) -> None:
        """
        From now on, they do not.
        """
        if self.running:
            self._process.remove(self)
        super().stopService()
