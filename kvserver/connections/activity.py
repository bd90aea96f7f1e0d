"""
Finds out when bytes last moved on a connection.
"""

import termios

from kvserver.connections.connection import Connection


class Activity:
    """
    When bytes last moved on a connection, and whether the peer has acknowledged all.

    @ivar progress: The connection's progress at the last observation.

    @ivar unsent: How many bytes of the echo the peer had not acknowledged, by the kernel's count.
        None: the kernel has not been asked since bytes last moved.

    @ivar allAcknowledged: Whether the peer has acknowledged everything. If so, that holds until
        bytes move again.

    @ivar since: When bytes last moved, in seconds by the reactor's clock.
    """

    __slots__ = ("allAcknowledged", "progress", "since", "unsent")

    def __init__(self, now: float) -> None:
        self.progress = 0
        self.unsent: int | None = 0
        self.allAcknowledged = True
        self.since = now

    def observe(self, connection: Connection, now: float) -> float:
        """
        Look at the connection once.

        @return: How long no byte has moved, in seconds.
        """
        progress = connection.progress()
        if progress != self.progress:
            self.progress = progress
            self.unsent = None
            self.allAcknowledged = False
            self.since = now
        elif not self.allAcknowledged:
            # Only a connection that has just fallen silent, or hangs, costs a system call. Two
            # observations must agree: bytes that the connection still holds at the first have
            # reached the kernel by the second.
            before, self.unsent = self.unsent, connection.queued(termios.TIOCOUTQ)
            self.allAcknowledged = before == self.unsent == 0
            if before is not None and before != self.unsent:
                self.since = now
        return now - self.since
