"""
When bytes last moved on a connection.
"""

import termios

from kvserver.connections.transport import Transport


class Activity:
    """
    When bytes last moved on a connection, and whether the peer has acknowledged all.

    @ivar progress: The transport's progress, when it was last observed.

    @ivar unsent: How many bytes of the echo the peer had not acknowledged; None before the kernel
        was asked.

    @ivar allAcknowledged: Can nothing be unsent until something comes in?

    @ivar since: When bytes last moved, by the reactor's clock.
    """

    __slots__ = ("allAcknowledged", "progress", "since", "unsent")

    def __init__(self, now: float) -> None:
        self.progress = 0
        self.unsent: int | None = 0
        self.allAcknowledged = True
        self.since = now

    def observe(self, transport: Transport, now: float) -> float:
        """
        Look at the connection.

        @return: For how many seconds no byte has moved.
        """
        progress = transport.progress()
        if progress != self.progress:
            self.progress = progress
            self.unsent = None
            self.allAcknowledged = False
            self.since = now
        elif not self.allAcknowledged:
            # Only connections that have just fallen silent, or hang, cost a system call. It takes
            # two observations: what the transport still holds reaches the kernel by the second.
            before, self.unsent = self.unsent, transport.queued(termios.TIOCOUTQ)
            self.allAcknowledged = before == self.unsent == 0
            if before is not None and before != self.unsent:
                self.since = now
        return now - self.since
