"""
What connections are held to.
"""

import resource
from dataclasses import dataclass

RESERVED_FDS = 32
"""
How many file descriptors the default of C{--max-connections} leaves for all that is no connection:
the log, the listeners, the reactor's own, and one that is accepted only to be refused.
"""


def maxConnectionsAllowed() -> int:
    """
    How many connections the hard limit of file descriptors admits.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, hard - RESERVED_FDS)


@dataclass(frozen=True)
class Limits:
    """
    What the connections are held to.

    @ivar maxConnections: The most connections at a time; 0: as many as the file descriptors allow.

    @ivar maxPerSource: The most connections at a time from one source; 0: no limit.

    @ivar idleTimeout: A connection is closed after so many seconds without a byte in either
        direction; 0: never.

    @ivar writeTimeout: For how many seconds a client may leave its echo unread.

    @ivar drainTimeout: For how many seconds a stop waits for connections to come to rest.
    """

    maxConnections: int = 0
    maxPerSource: int = 0
    idleTimeout: int = 0
    writeTimeout: int = 60
    drainTimeout: int = 15
