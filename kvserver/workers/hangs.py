"""
Finds workers that hang.
"""

from typing import Any

from twisted.internet.task import LoopingCall

HANG_TIMEOUT = 10.0
"""
A worker that has sent no heartbeat for this long hangs, in seconds.
"""

START_TIMEOUT = 30.0
"""
How long a worker may take to get ready, in seconds.
"""

CHECK_INTERVAL = 0.5
"""
How often the master looks whether a worker hangs, in seconds.
"""


class Hangs:
    """
    Finds workers that hang, and kills them.
    """

    def __init__(self, pool: Any) -> None:
        """
        @param pool: The C{Pool}.
        """
        self._pool = pool
        self._checking = LoopingCall(self._check)
        self._checking.clock = pool.reactor
        self._checkedAt = self._onTimeSince = pool.reactor.seconds()

    def start(self) -> None:
        """
        Look from now on.
        """
        self._checking.start(CHECK_INTERVAL)

    def stop(self) -> None:
        """
        Look no more.
        """
        self._checking.stop()

    def _check(self) -> None:
        """
        Kill the workers that hang. While the master itself was late, it has not heard them.
        """
        now = self._pool.reactor.seconds()
        if now - self._checkedAt > 2 * CHECK_INTERVAL:
            self._onTimeSince = now
        self._checkedAt = now
        for process in self._pool.processes:
            timeout = HANG_TIMEOUT if process.hasBeenReady else START_TIMEOUT
            if now - max(process.lastBeat, self._onTimeSince) > timeout and not process.isKilled:
                process.killHung()
        self._pool.schedule()
