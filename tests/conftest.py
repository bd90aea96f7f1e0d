"""
What several tests use.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.daemon import Daemon
from tests.support.manager import Ear
from tests.support.memory import MemoryServer, RecorderFactory
from tests.support.wires import Authority

# What is compiled is kept, also where Python is told not to: there are hundreds of processes here.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes is the machine's affair: others run beside it.
settings.register_profile("kvserver", deadline=None)
settings.load_profile("kvserver")


def pytest_configure() -> None:
    """
    Take the signals that this process was started to ignore, as a script starts its background
    jobs: what the tests start would ignore them, too.
    """
    for number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM:
        if signal.getsignal(number) == signal.SIG_IGN:
            isInterrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if isInterrupt else signal.SIG_DFL)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """
    One daemon for all tests of a module.
    """
    with Daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """
    Who issues certificates.
    """
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def freshDaemon(tmp_path: Path) -> Iterator[Daemon]:
    """
    A daemon for one test alone, that has served nobody yet.
    """
    with Daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    """
    A manager that listens.
    """
    ear = Ear(f"{tmp_path}/notify" if request.param == "path" else f"@kvserver-{os.getpid()}")
    with ear.socket:
        yield ear


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    """
    A server whose protocols record what happens; no connection is left at the end.
    """
    server = MemoryServer(factory=RecorderFactory())
    yield server
    server.close()
