"""
A timer that is finer than that of the reactor: epoll(7) waits for whole milliseconds.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import ILoggingContext, IReadDescriptor
from zope.interface import implementer

_CLOCK_MONOTONIC = 1

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
"""
TFD_NONBLOCK and TFD_CLOEXEC are the same (timerfd_create(2)).
"""


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


@implementer(IReadDescriptor, ILoggingContext)
class Timer:
    """
    Calls something after a time. Python has timerfd only from 3.13 on, so this asks the C library.
    Where that has none, the reactor's timer must do.
    """

    def __init__(self, reactor: Any, call: Callable[[], None]) -> None:
        """
        @param reactor: Provides C{IReactorFDSet} and C{IReactorTime}.
        """
        self._reactor = reactor
        self._call = call
        self._later: Any = None
        self._descriptor = -1
        try:
            self._library = ctypes.CDLL(None)
            self._descriptor = self._library.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        except (AttributeError, OSError):
            pass
        if self._descriptor >= 0:
            reactor.addReader(self)

    def start(self, seconds: float) -> None:
        """
        Call it after this time.
        """
        if self._descriptor < 0:
            self._later = self._reactor.callLater(seconds, self._call)
            return
        # All zeros would stop it.
        nanoseconds = max(1, int(seconds * 1e9))
        setting = _Setting(_Time(0, 0), _Time(*divmod(nanoseconds, 1_000_000_000)))
        self._library.timerfd_settime(self._descriptor, 0, ctypes.byref(setting), None)

    def stop(self) -> None:
        """
        Call it no more.
        """
        if self._later is not None and self._later.active():
            self._later.cancel()
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1

    def doRead(self) -> None:
        """
        It is time.
        """
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        self._call()

    def connectionLost(self, reason: object) -> None:
        """
        See C{IReadDescriptor}: it does not come to that.
        """

    def fileno(self) -> int:
        """
        See C{IFileDescriptor}.
        """
        return self._descriptor

    def logPrefix(self) -> str:
        """
        See C{ILoggingContext}.
        """
        return "kvcheck"
