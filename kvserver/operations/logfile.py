"""
Opens the file of a log: follows no symbolic link that a stranger could have made.
"""

import errno
import os
from contextlib import suppress

# Without O_NONBLOCK a FIFO that nobody reads would hang the daemon; without O_NOCTTY a terminal
# could become the one that signals it.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

MAX_LINKS = 40
"""
The most symbolic links in a row that are followed, as path_resolution(7) has it.
"""


def openLog(path: str) -> int:
    """
    Open a file to append to it; make it if it is missing. A write to it never blocks.

    The last part of the path may be a symbolic link only if root or this process's user owns it:
    otherwise whoever may write to the folder could choose where we write. The folders before it are
    the administrator's.

    @return: The file descriptor.

    @raise OSError: It can't be opened. A symbolic link of somebody else is C{ELOOP}, as with
        C{O_NOFOLLOW} (open(2)).
    """
    for _ in range(MAX_LINKS):
        try:
            return os.open(path, _FLAGS | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        target = _targetOf(path)
        if target is None:
            return os.open(path, _FLAGS, 0o640)
        path = os.path.join(os.path.dirname(path), target)
    raise _tooManyLinks()


def _targetOf(path: str) -> str | None:
    """
    Where a symbolic link leads to. None: it is a link of the kernel, as C{/proc/self/fd/1}, which
    has no path to follow, and which nobody else can make.

    @raise OSError: It is not to be followed.
    """
    # What is checked must be what is read: a path may have another link in the next moment.
    link = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(link)
        # Where there is no procfs there is none of its links.
        with suppress(FileNotFoundError):
            if status.st_dev == os.lstat("/proc/self").st_dev:
                return None
        if status.st_uid not in (0, os.geteuid()):
            raise _tooManyLinks()
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _tooManyLinks() -> OSError:
    return OSError(errno.ELOOP, os.strerror(errno.ELOOP))
