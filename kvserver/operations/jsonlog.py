"""
The daemon's log as JSON (RFC 8259), one object on each line.
"""

import json
from collections.abc import Mapping
from typing import TextIO

from twisted.logger import FileLogObserver, LogEvent, formatEvent
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from kvserver.operations.accesslog import formatTime

_HIDDEN = (
    *("format", "isError", "printed", "system"),
    *("time", "level", "logger", "message", "traceback"),
)
"""
Fields that are left out: those that Twisted's older log module adds, and those whose names are
taken.
"""


def jsonLogObserver(stream: TextIO) -> FileLogObserver:
    """
    Return a log observer that writes JSON. C{twisted.logger.jsonFileLogObserver} is for machines
    that read it with Twisted again: it has no text for people, and its own marks in each field.

    @param stream: Where it writes.
    """
    return FileLogObserver(stream, lambda event: _line(toObject(event)))


def _line(fields: dict[str, object]) -> str:
    try:
        return json.dumps(fields, default=safe_str) + "\n"
    except (RecursionError, TypeError, ValueError):
        # A field is a dict with keys that JSON has not, or contains itself.
        known = (str, int, float, type(None))
        texts = {
            name: value if isinstance(value, known) else safe_str(value)
            for name, value in fields.items()
        }
        return json.dumps(texts) + "\n"


def toObject(event: LogEvent) -> dict[str, object]:
    """
    Return the object for an event: C{time}, C{level}, C{logger}, C{message}, a C{traceback} if it
    has one, and its fields. In the place of a message, the record of the access log has itself.
    """
    fields = {
        name: value
        for name, value in event.items()
        if not name.startswith("log_") and name not in _HIDDEN
    }
    level = event.get("log_level")
    failure = event.get("log_failure")
    return {
        "time": formatTime(event["log_time"]),
        "level": level.name if level else "info",
        "logger": event.get("log_namespace"),
        **({} if isinstance(fields.get("record"), Mapping) else {"message": formatEvent(event)}),
        **({"traceback": failure.getTraceback()} if isinstance(failure, Failure) else {}),
        **fields,
    }
