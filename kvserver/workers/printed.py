"""
What a worker process prints, as lines of the log: the traceback of one that hangs, for example.
"""

from twisted.logger import Logger

_log = Logger(namespace="kvserver.worker")

MAX_LINE = 10_000
"""
The longest line that is logged as one, in bytes.
"""


class Printed:
    """
    Logs what a worker prints, a line at a time.
    """

    def __init__(self, number: int) -> None:
        """
        @param number: The number of the worker.
        """
        self._number = number
        self._rest = b""

    def add(self, data: bytes) -> None:
        """
        Log the lines that are complete, or too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._logLine(line)
        if len(self._rest) > MAX_LINE:
            self.end()

    def end(self) -> None:
        """
        Log the rest.
        """
        if self._rest:
            self._logLine(self._rest)
            self._rest = b""

    def _logLine(self, line: bytes) -> None:
        _log.error(
            "Worker {worker}: {line}", worker=self._number, line=line.decode(errors="replace")
        )
