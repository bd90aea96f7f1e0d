"""
Starts the children in order, and stops them one by one in reverse.
"""

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger


class CannotStart(SystemExit, Exception):
    """
    A child could not start, and so the daemon can't: one line, and exit status 1.

    Both bases are needed. As an C{Exception}, C{twistd} cleans up after it: it removes the pid file
    and tells the shell that waits for a daemon to start. As a C{SystemExit} it then ends the
    process with its line and without a traceback.
    """


class Supervisor(MultiService):
    """
    The root of the service tree.

    L{MultiService} starts its children in order. It would stop them all together; here, as in OTP,
    each is stopped when the one that was started after it has stopped.
    """

    _log = Logger()

    def privilegedStartService(self) -> None:
        """
        Do what children need privileges for.

        @raise CannotStart: The address of a listener can't be had.
        """
        try:
            super().privilegedStartService()
        except CannotListenError as error:
            raise CannotStart(str(error)) from error

    def startService(self) -> None:
        """
        Start the children in order.

        @raise CannotStart: The address of a listener can't be had.
        """
        try:
            super().startService()
        except CannotListenError as error:
            raise CannotStart(str(error)) from error

    def stopService(self) -> Deferred[None]:
        """
        Stop the children in reverse order, one after the other. One that fails to stop does not
        keep the rest.

        @return: Fires when all have stopped.
        """
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stopChildren())

    async def _stopChildren(self) -> None:
        for child in reversed(list(self)):
            try:
                await maybeDeferred(child.stopService)
            except Exception:
                self._log.failure("{child} did not stop", child=child.name)
