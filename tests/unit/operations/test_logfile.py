"""
How the file of a log is opened: which symbolic links are followed.
"""

import errno
import os
import socket
import stat
from functools import partial
from pathlib import Path

import pytest

from kvserver.operations.logfile import newWriter, openLog

STRANGER = 65534
"""
A user who is neither root nor we.
"""


def disown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Let a symbolic link be a stranger's: give it away, or, if we may not, be somebody else.
    """
    if os.getuid() == 0:
        os.lchown(path, STRANGER, STRANGER)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


def written(path: str | Path) -> None:
    """
    Write to what is opened there.
    """
    opened = openLog(str(path))
    try:
        os.write(opened, b"written")
    finally:
        os.close(opened)


def test_file(tmp_path: Path) -> None:
    """
    A file is made for its owner and group alone, appended to, and never waited for.
    """
    path = tmp_path / "log"
    for _ in range(2):
        written(path)
    assert path.read_text() == "writtenwritten"
    assert path.stat().st_mode & 0o137 == 0
    opened = openLog(str(path))
    assert not os.get_blocking(opened)
    assert not os.get_inheritable(opened)
    os.close(opened)


@pytest.mark.parametrize("there", [True, False])
def test_ownLink(tmp_path: Path, there: bool) -> None:
    """
    A link of our own is followed, be it relative, be there several in a row, and be the file still
    to be made.
    """
    (tmp_path / "logs").mkdir()
    target = tmp_path / "logs" / "log"
    if there:
        target.touch()
    (tmp_path / "one").symlink_to("logs/log")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "logs" / "three").symlink_to("../two")
    written(tmp_path / "logs" / "three")
    assert target.read_text() == "written"


@pytest.mark.parametrize("number", [0, 1])
def test_strangersLink(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A stranger's link is not followed, be it not the first one: neither is the file written to, nor
    is one made.
    """
    links = tmp_path / "one", tmp_path / "two"
    links[0].symlink_to(links[1])
    links[1].symlink_to(tmp_path / "target")
    disown(links[number], monkeypatch)
    with pytest.raises(OSError, match="Too many levels of symbolic links") as caught:
        openLog(str(links[0]))
    assert caught.value.errno == errno.ELOOP
    assert not (tmp_path / "target").exists()


def test_circle(tmp_path: Path) -> None:
    """
    Links that lead to each other have an end.
    """
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        openLog(str(tmp_path / "one"))


def test_folderOfAStranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The folders before the last part are the administrator's, and may be reached by any link: as
    /var/log/kvserver is with systemd's C{DynamicUser}.
    """
    (tmp_path / "private").mkdir()
    (tmp_path / "logs").symlink_to("private")
    disown(tmp_path / "logs", monkeypatch)
    written(tmp_path / "logs" / "log")
    assert (tmp_path / "private" / "log").read_text() == "written"


@pytest.mark.parametrize("by", ["/proc/self/fd", "/dev/fd", "a link of ours"])
def test_descriptor(tmp_path: Path, by: str) -> None:
    """
    A file descriptor is opened anew: a pipe that others share does not become one that does not
    wait.
    """
    reader, writer = os.pipe()
    try:
        path = Path(f"/proc/self/fd/{writer}" if by == "a link of ours" else f"{by}/{writer}")
        if by == "a link of ours":
            link = tmp_path / "link"
            link.symlink_to(path)
            path = link
        written(path)
        assert os.read(reader, 100) == b"written"
        assert os.get_blocking(writer)
    finally:
        os.close(reader)
        os.close(writer)


def test_strangersLinkToADescriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A stranger does not reach our file descriptors.
    """
    reader, writer = os.pipe()
    try:
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{writer}")
        disown(tmp_path / "link", monkeypatch)
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            openLog(str(tmp_path / "link"))
    finally:
        os.close(reader)
        os.close(writer)


def test_terminal() -> None:
    """
    A terminal can be written to, and is not waited for.
    """
    controller, terminal = os.openpty()
    try:
        opened = openLog(os.ttyname(terminal))
        assert stat.S_ISCHR(os.fstat(opened).st_mode)
        assert not os.get_blocking(opened)
        os.close(opened)
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize("folder", ["/proc/self/fd", "/dev/fd"])
def test_sharedFile(tmp_path: Path, folder: str) -> None:
    """
    A file that is ours already is written to at the same place, so that nothing is overwritten. The
    shared descriptor stays as it is.
    """
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as log:
        opened = openLog(f"{folder}/{log.fileno()}")
        for number in range(3):
            log.write(b"log %d\n" % number)
            newWriter(opened)(b"record %d\n" % number)
        assert not os.get_inheritable(opened)
        os.close(opened)
        log.write(b"log\n")
    assert path.read_text().split("\n") == [
        *("log 0", "record 0", "log 1", "record 1", "log 2", "record 2", "log", ""),
    ]


def test_sharedSocket() -> None:
    """
    A socket, as systemd's journal, is written to, and never waited for, though it is blocking.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        opened = openLog(f"/proc/self/fd/{theirs.fileno()}")
        write = newWriter(opened)
        assert write(b"record\n") == 7
        assert ours.recv(100) == b"record\n"
        with pytest.raises(BlockingIOError):
            list(iter(partial(write, b"x" * 65536), 0))
        assert theirs.getblocking()
        os.close(opened)
        theirs.close()
        while ours.recv(1 << 20):
            pass
