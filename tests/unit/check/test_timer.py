"""
A timer that is finer than a millisecond.
"""

import ctypes
import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from kvserver.check.timer import Timer


@pytest_twisted.ensureDeferred
async def test_itCallsOnceAfterItsTime() -> None:
    """
    It calls once after its time.
    """
    calls: list[float] = []
    called: Deferred[None] = Deferred()

    def call() -> None:
        calls.append(time.monotonic())
        called.callback(None)

    timer = Timer(reactor, call)
    verifyObject(IReadDescriptor, timer)
    begin = time.monotonic()
    timer.start(0.0105)
    await called
    timer.stop()
    assert calls[0] - begin >= 0.0105


def test_itIsTheReactorSWhereTheLibraryHasNone(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It is the reactor's where the library has none.
    """
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    calls: list[None] = []
    clock = Clock()
    timer = Timer(clock, lambda: calls.append(None))
    timer.start(0.5)
    clock.advance(0.5)
    assert calls == [None]
    timer.start(0.5)
    timer.stop()
    clock.advance(1)
    assert calls == [None]
