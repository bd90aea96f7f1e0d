"""
Opens the file of a log. It follows no symbolic link of another user.
"""

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

# Without O_NONBLOCK, the daemon would hang on a FIFO that nobody reads. Without O_NOCTTY, it could
# get a controlling terminal.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

MAX_LINKS = 40
"""
How many symbolic links in a row are followed, as in path_resolution(7).
"""


def openLog(path: str) -> int:
    """
    Open a file for appending; create it if it is missing. A write to it by L{newWriter} never
    blocks.

    If the last part of the path is a symbolic link, root or this process's user must own it:
    otherwise anybody who may write to the folder could choose where we write. The folders before it
    are the administrator's.

    @return: The file descriptor.

    @raise OSError: The file can't be opened. For a symbolic link of another user this is C{ELOOP},
        as with C{O_NOFOLLOW} (open(2)).
    """
    for _ in range(MAX_LINKS):
        try:
            return os.open(path, _FLAGS | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        target = _targetOf(path)
        if target is None:
            return _openShared(path)
        path = os.path.join(os.path.dirname(path), target)
    raise _tooManyLinks()


def _targetOf(path: str) -> str | None:
    """
    Return where a symbolic link leads to, or None for a link of the kernel, such as
    C{/proc/self/fd/1}: it leads to no path, and no user can create it.

    @raise OSError: The link must not be followed.
    """
    # Check and read the same link: somebody may replace the one at the path at any time.
    link = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(link)
        # Without a procfs there are no links of the kernel.
        with suppress(FileNotFoundError):
            if status.st_dev == os.lstat("/proc/self").st_dev:
                return None
        if status.st_uid not in (0, os.geteuid()):
            raise _tooManyLinks()
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _openShared(path: str) -> int:
    """
    Open what a link of the kernel leads to.

    If it is a descriptor of this process, such as standard output, then others write there, too:
    the daemon's log, above all. In a regular file, each of two that have opened it for themselves
    has a place of its own, and one would overwrite what the other has appended. A socket can't be
    opened at all. So both are used as they are.
    """
    folder, name = os.path.split(path)
    status = os.stat(path)
    isOurs = os.path.realpath(folder) == os.path.realpath("/proc/self/fd") and name.isdigit()
    if isOurs and (stat.S_ISREG(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
        return os.dup(int(name))
    return os.open(path, _FLAGS, 0o640)


def newWriter(opened: int) -> Callable[[bytes], int]:
    """
    Return a function that writes to a log that L{openLog} has opened, and never blocks. It returns
    how many bytes were written, and raises C{OSError} if there is no room.
    """
    if not stat.S_ISSOCK(os.fstat(opened).st_mode):
        return lambda data: os.write(opened, data)

    def send(data: bytes) -> int:
        # The socket is shared, and may be a blocking one.
        shared = socket.socket(fileno=opened)
        try:
            return shared.send(data, socket.MSG_DONTWAIT)
        finally:
            shared.detach()

    return send


def _tooManyLinks() -> OSError:
    return OSError(errno.ELOOP, os.strerror(errno.ELOOP))
