"""
Waiting for something to become true of a connection.
"""

from collections.abc import Callable

from twisted.internet.defer import Deferred


class Waiting:
    """
    What waits for something of a connection.

    @ivar ending: How the connection ended; None: it has not.
    """

    ending: str | None
    _waiting: list[tuple[Callable[[], bool], "Deferred[bool]"]]

    def until(self, condition: Callable[[], bool]) -> "Deferred[bool]":
        """
        Wait until something is so. Each wait ends, since the connection does.

        @return: Fires with whether it is so; False: the connection has ended before.
        """
        waiting: Deferred[bool] = Deferred()
        self._waiting.append((condition, waiting))
        self._check()
        return waiting

    def _check(self) -> None:
        for entry in list(self._waiting):
            condition, waiting = entry
            isSo = condition()
            if (isSo or self.ending is not None) and entry in self._waiting:
                self._waiting.remove(entry)
                waiting.callback(isSo)
