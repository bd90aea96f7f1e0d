"""
Keeps clients from filling the log.
"""

from collections.abc import Callable, Hashable
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from kvserver.connections.addresses import sourceKey

_log = Logger(namespace="kvserver.connections.Connections")

REPEAT_INTERVAL = 60.0
"""
How long the same message is not logged again, in seconds.
"""

MAX_KEYS = 1000
"""
The most keys that are throttled separately; all further ones share one.
"""

REPEATED = ("", " ({count} times in a minute)")
"""
Appended to the format of a throttled message. The first one is for a single event, the second for
several.
"""


def connectionsText(count: int, field: str = "count") -> str:
    """
    Return how many connections there are, as a part of the format of a message.

    @param field: The field of the message that has the number.
    """
    return "1 connection" if count == 1 else f"{{{field}}} connections"


_MORE = object()
"""
The key of all events that are not throttled separately.
"""


def _logMore(count: int) -> None:
    _log.warn("Not logged, messages of further sources or reasons: {count}", count=count)


class LogThrottle:
    """
    Logs a message at once. As long as its cause continues, it logs the message again once a minute,
    with a count.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: Provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._counts: dict[Hashable, int] = {}

    def __call__(self, key: Hashable, log: Callable[[int], None]) -> None:
        """
        Count an event. Log it, unless one with the same key was logged within L{REPEAT_INTERVAL}.

        @param key: Events with the same key are throttled together. Their messages must be the
            same, except for the count.

        @param log: Logs the message. Called with the number of events since the last call.
        """
        if key not in self._counts and len(self._counts) >= MAX_KEYS:
            key, log = _MORE, _logMore
        if key in self._counts:
            self._counts[key] += 1
        else:
            self._log(key, 1, log)

    def _log(self, key: Hashable, count: int, log: Callable[[int], None]) -> None:
        self._counts[key] = 0
        self._reactor.callLater(REPEAT_INTERVAL, self._expire, key, log)
        log(count)

    def _expire(self, key: Hashable, log: Callable[[int], None]) -> None:
        count = self._counts.pop(key)
        if count:
            self._log(key, count, log)


class SourceLog:
    """
    Logs the warnings that a client can cause. Each is logged at most once a minute for each source
    and reason.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: Provides C{IReactorTime}.
        """
        self._throttle = LogThrottle(reactor)

    def warn(self, address: IAddress, text: str, **fields: object) -> None:
        """
        Log a warning about a client.

        @param address: The client's address.

        @param text: The format of the warning. C{source} in it becomes the source. Warnings with
            the same format, source and C{reason} are throttled together.

        @param fields: The other fields of the format. C{reason} has one of a few values. No field
            has a value that a client can choose freely.
        """
        source = sourceKey(address) or "a UNIX socket"
        self._throttle(
            (source, text, fields.get("reason")),
            lambda count: _log.warn(
                text + REPEATED[count > 1], source=source, count=count, **fields
            ),
        )
