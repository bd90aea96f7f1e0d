"""
A key-value store by lines: the next chapters of the Elixir guide, in which KVServer gets its
commands. It knows nothing of what serves it::

    twistd -n kvserver --protocol=kvserver.examples.kv.KeyValueProtocol

The data is in memory, and gone with the process.
"""

from twisted.internet.interfaces import ITransport
from twisted.protocols.basic import LineReceiver

BUCKETS: dict[bytes, dict[bytes, bytes]] = {}
"""
Items by their key, in buckets by their name: what all connections share.
"""


class KeyValueProtocol(LineReceiver):
    """
    One command a line, its words parted by blanks. Each gets one answer, which ends with a status.
    """

    transport: ITransport
    # telnet ends a line with CR LF, nc with LF alone; a CR counts as a blank.
    delimiter = b"\n"

    def lineReceived(self, line: bytes) -> None:
        """
        Obey one command.
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
