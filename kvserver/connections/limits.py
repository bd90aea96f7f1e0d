"""
The limits on connections.
"""

import resource
from dataclasses import dataclass

RESERVED_FDS = 32
"""
How many file descriptors the default of C{--max-connections} leaves for everything else: the log,
the listeners, the reactor, and a connection that is accepted only to be refused.
"""

FDS_PER_WORKER = 8
"""
How many more it leaves for each worker: its channel and its standard streams, twice while it is
replaced. A restart that found none would use up the supervisor's intensity at once.
"""


def maxConnectionsAllowed(workers: int = 0) -> int:
    """
    Return how many connections the hard limit of file descriptors allows.

    @param workers: How many worker processes this process looks after.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, hard - RESERVED_FDS - workers * FDS_PER_WORKER)


@dataclass(frozen=True)
class Limits:
    """
    The limits on connections.

    @ivar maxConnections: The most connections at a time. 0: as many as the file descriptors allow.

    @ivar maxPerSource: The most connections at a time from one source. 0: no limit.

    @ivar idleTimeout: A connection is closed after this number of seconds without a byte in either
        direction. 0: never.

    @ivar writeTimeout: A client may leave its echo unread for this number of seconds.

    @ivar drainTimeout: A stop waits for this number of seconds until connections are at rest.
    """

    maxConnections: int = 0
    maxPerSource: int = 0
    idleTimeout: float = 0
    writeTimeout: float = 60
    drainTimeout: float = 15
