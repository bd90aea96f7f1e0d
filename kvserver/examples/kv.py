"""
A key-value store with a line protocol, as in the next chapters of the Elixir guide, where KVServer
gets its commands. It knows nothing of the daemon that serves it::

    twistd -n kvserver --protocol=kvserver.examples.kv.KeyValueProtocol

The data is in memory, and is lost when the process ends.
"""

from twisted.internet.interfaces import ITransport
from twisted.protocols.basic import LineReceiver

BUCKETS: dict[bytes, dict[bytes, bytes]] = {}
"""
The buckets by name. Each has items by key. All connections share them.
"""


class KeyValueProtocol(LineReceiver):
    """
    Takes one command per line, as words separated by blanks. Sends one answer for each command; the
    last line of an answer is its status.
    """

    transport: ITransport
    # telnet ends a line with CR LF, nc with LF alone. A CR counts as a blank.
    delimiter = b"\n"

    def lineReceived(self, line: bytes) -> None:
        """
        Execute one command.
        """
        match line.split():
            case [b"CREATE", bucket]:
                BUCKETS.setdefault(bucket, {})
                answer = b"OK"
            case [b"PUT", bucket, key, value] if bucket in BUCKETS:
                BUCKETS[bucket][key] = value
                answer = b"OK"
            case [b"GET", bucket, key] if bucket in BUCKETS:
                answer = BUCKETS[bucket].get(key, b"") + b"\r\nOK"
            case [b"DELETE", bucket, key] if bucket in BUCKETS:
                BUCKETS[bucket].pop(key, None)
                answer = b"OK"
            case [b"PUT", _, _, _] | [b"GET" | b"DELETE", _, _]:
                answer = b"NOT FOUND"
            case _:
                answer = b"UNKNOWN COMMAND"
        self.transport.write(answer + b"\r\n")
