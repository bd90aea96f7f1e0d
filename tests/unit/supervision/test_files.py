"""
The pid file and the log of C{twistd}.
"""

import os
from pathlib import Path

import pytest
from twisted.application.twist._options import TwistOptions
from twisted.scripts._twistd_unix import ServerOptions

from kvserver.supervision.files import settleFiles
from kvserver.supervision.supervisor import CannotStart


class Unfinished(ServerOptions):
    """
    The options of C{twistd} as those of a plugin find them: parsed, not yet finished.
    """

    def postOptions(self) -> None:
        """
        Come later.
        """


def settled(*options: str) -> str:
    """
    The pid file that C{twistd} has with these options.
    """
    twistd = Unfinished()
    twistd.parseOptions([*options])
    settleFiles(twistd)
    return str(twistd["pidfile"])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("foreground", ["-n", "--nodaemon"])
def test_foreground(foreground: str, tmp_path: Path) -> None:
    """
    In the foreground there is no pid file, unless it is asked for.
    """
    assert settled(foreground) == ""
    assert settled(foreground, "--pidfile=my.pid") == "my.pid"


def test_daemon() -> None:
    """
    A daemon has one.
    """
    assert settled("--pidfile=my.pid") == "my.pid"
    assert settled("--logfile=my.log") == "twistd.pid"
    assert settled("--pidfile=") == ""


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--pidfile={}/my.pid"], "pidfile"),
        (["-n", "--pidfile={}/my.pid"], "pidfile"),
        (["--logfile={}/my.log"], "logfile"),
        (["-n", "--logfile={}/my.log"], "logfile"),
    ],
)
def test_noFolder(options: list[str], name: str, tmp_path: Path) -> None:
    """
    A file that can't be written is named, with its option.
    """
    folder = tmp_path / "missing"
    with pytest.raises(CannotStart, match=rf"can't be written in {folder}: .* another --{name}$"):
        settled(*(option.format(folder) for option in options))
    folder.mkdir()
    settled(*(option.format(folder) for option in options))


def test_notWritten(tmp_path: Path) -> None:
    """
    What is not written here is not looked at.
    """
    os.rmdir(tmp_path)
    assert settled("-n") == ""
    assert settled("-n", "--logfile=-") == ""
    assert settled("--pidfile=", "--syslog") == ""
    assert settled("--pidfile=", "--logger=x.y") == ""
    assert settled("--pidfile=x", "--chroot=/", "--logfile=/dev/null") == "x"


def test_twist() -> None:
    """
    C{twist} writes no files.
    """
    settleFiles(TwistOptions())
