"""
What the server has noted of a connection: the daemon's access log.
"""

import json
import os
from typing import Any


class ServerLog:
    """
    An access log that is being written.
    """

    def __init__(self, path: str) -> None:
        """
        What has been written so far is left out.

        @raise OSError: It can't be read.
        """
        self._path = path
        self._rest = b""
        with open(path, "rb") as file:
            self._at = file.seek(0, os.SEEK_END)
            self._file = os.fstat(file.fileno()).st_ino

    def find(self, received: int) -> dict[str, Any] | None:
        """
        The record of a connection by which the server has received so many bytes, among those that
        have been written since the last time.
        """
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._at:
                    # It was rotated.
                    self._at, self._file, self._rest = 0, status.st_ino, b""
                file.seek(self._at)
                data = file.read()
        except OSError:
            return None
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            record = _record(line)
            if record is not None and record.get("bytes_in") == received:
                return record
        return None


def _record(line: bytes) -> dict[str, Any] | None:
    """
    The record on a line; it may stand in a line of a log.
    """
    begin = line.find(b"{")
    try:
        record = json.loads(line[begin:]) if begin >= 0 else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
