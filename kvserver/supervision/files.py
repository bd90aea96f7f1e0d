"""
The files that C{twistd} writes for its process: the pid file, and the log.
"""

import os
from collections.abc import Iterator, MutableMapping
from typing import Any

from kvserver.supervision.supervisor import CannotStart

_PID_FILE = "twistd.pid"
"""
The pid file that C{twistd} has unless it is told otherwise, in the working directory.
"""

_LOG = "twistd.log"
"""
Where a daemon logs unless it is told otherwise, in the working directory.
"""


def settleFiles(twistd: MutableMapping[str, Any]) -> None:
    """
    Leave the pid file out where nobody needs one, and see whether the files can be written that are
    left.

    A pid file tells others the process that has gone into the background. In the foreground the one
    that started it knows it. There the default only does harm: two processes in one folder refuse
    each other, a process that is number 1 in its container takes itself for the one before, and a
    folder that is not writable stops the start.

    @param twistd: The options of C{twistd}, of which C{pidfile} may be changed. Those of C{twist},
        which writes no files, are left alone.

    @raise CannotStart: A file can't be written. C{twistd} itself would end in a traceback.
    """
    if "pidfile" not in twistd:
        return
    foreground = twistd["nodaemon"] or twistd["debug"]
    if foreground and twistd["pidfile"] == _PID_FILE:
        twistd["pidfile"] = ""
    for option, path in _written(twistd, foreground):
        folder, name = os.path.split(os.path.abspath(path))
        if not os.access(path if os.path.exists(path) else folder, os.W_OK):
            raise CannotStart(
                f"kvserver: {name} can't be written in {folder}: give twistd another --{option}"
            )


def _written(twistd: MutableMapping[str, Any], foreground: bool) -> Iterator[tuple[str, str]]:
    """
    Each file that C{twistd} will write, after the name of its option.
    """
    # In a chroot the path means another file, which can't be seen from here.
    if twistd["pidfile"] and not twistd["chroot"]:
        yield "pidfile", twistd["pidfile"]
    log = twistd["logfile"] or ("-" if foreground else _LOG)
    if log != "-" and not (twistd["syslog"] or twistd["logger"]):
        yield "logfile", log
