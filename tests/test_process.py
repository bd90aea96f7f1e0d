"""
Signals, and the exit status.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from twisted.internet.testing import MemoryReactor

from kvserver.process import Signals


class Reactor(MemoryReactor):
    """
    Calls at once what a thread, or a signal, leaves it to call.
    """

    def callFromThread(self, f, *args):  # type: ignore
        """
        Call.
        """
        f(*args)


@pytest.fixture
def hurries() -> list[str]:
    """
    The times that there was a hurry.
    """
    return []


@pytest.fixture
def signals(hurries: list[str]) -> Iterator[Signals]:
    """
    The service, and the handlers as they were when the test is over.
    """
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield Signals(Reactor(), lambda: hurries.append("hurry"))
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def test_hangUp(signals: Signals, hurries: list[str]) -> None:
    """
    HUP ends nothing, as long as the service runs and after it.
    """
    signals.startService()
    signal.raise_signal(signal.SIGHUP)
    signals.stopService()
    signal.raise_signal(signal.SIGHUP)
    assert hurries == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_secondSignal(signals: Signals, hurries: list[str], number: int) -> None:
    """
    TERM and INT are the reactor's until everything stops; then they say that there is a hurry.
    """
    before = signal.getsignal(number)
    signals.startService()
    assert signal.getsignal(number) is before
    signals.stopService()
    signal.raise_signal(number)
    assert hurries == ["hurry"]


def test_fail() -> None:
    """
    The reactor stops in good order, what twistd does then is done, and the status
    is 1.
    """
    script = (
        "from twisted.internet import reactor\n"
        "from kvserver.process import fail\n"
        "reactor.addSystemEventTrigger('before', 'shutdown', print, 'stopped')\n"
        "reactor.callWhenRunning(fail, reactor)\n"
        "reactor.run()\n"
        "print('cleaned up')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "stopped\ncleaned up\n"
