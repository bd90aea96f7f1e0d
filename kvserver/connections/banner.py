"""
The line that C{--banner} sends when a connection opens.
"""

import re
import socket
from collections.abc import Callable

from kvserver.connections.addresses import formatAddress
from kvserver.connections.connection import Connection

MAX_LENGTH = 1000
"""
The most characters of C{--banner}.
"""

ACCEPTED = (
    f"one line of 1 to {MAX_LENGTH} characters, in which %h is the host name, %l the listener, %c "
    "the client, %w the worker, %% a percent sign"
)

_FIELD = re.compile("%(.?)", re.DOTALL)


class Banner:
    """
    A line that tells the client where it has arrived.
    """

    def __init__(self, text: str, worker: int | None = None, host: str | None = None) -> None:
        """
        @param text: The line, without its end. C{%h}: the name of this host; C{%l}: the listener;
            C{%c}: the client, as the access log has it; C{%w}: the number of the worker, C{-} if
            there are no workers; C{%%}: a percent sign.

        @param worker: The number of this worker. None: there are no workers.

        @param host: The name of this host; by default the kernel is asked.

        @raise ValueError: The text is too long, has a line break, or another C{%}. The message says
            what is accepted.
        """
        fields: dict[str, Callable[[Connection], str]] = {
            "h": lambda connection: name,
            "l": lambda connection: connection.record.listener,
            "c": lambda connection: formatAddress(connection.getPeer()),
            "w": lambda connection: "-" if worker is None else str(worker),
            "%": lambda connection: "%",
        }
        isKnown = all(field in fields for field in _FIELD.findall(text))
        if not (isKnown and 0 < len(text) <= MAX_LENGTH and not re.search("[\r\n]", text)):
            raise ValueError(f"{text!r} is not {ACCEPTED}")
        name = socket.gethostname() if host is None else host
        self._text = text
        self._fields = fields

    def line(self, connection: Connection) -> bytes:
        """
        Return the line for a connection.
        """
        line = _FIELD.sub(lambda found: self._fields[found[1]](connection), self._text)
        # The name of a listener may have any character.
        return re.sub("[\r\n]", "?", line).encode("utf-8", "surrogateescape") + b"\n"
