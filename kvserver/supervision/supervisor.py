"""
Starts the children in order, restarts the one that dies, and stops them one by one in reverse.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger, LogLevel

_log = Logger(namespace="kvserver.supervisor.Supervisor")


class CannotStart(SystemExit, Exception):
    """
    A child could not start, and so the daemon can't: one line, and exit status 1.

    Both bases are needed. As an C{Exception}, C{twistd} cleans up after it: it removes the pid file
    and tells the shell that waits for a daemon to start. As a C{SystemExit} it then ends the
    process with its line and without a traceback.
    """


class RestartIntensity:
    """
    How many restarts there may be in how much time, as in OTP: the faults of a bad moment are
    repaired, a fault that each repair runs into again is not.
    """

    def __init__(
        self, seconds: Callable[[], float], restarts: int = 3, period: float = 5.0
    ) -> None:
        """
        @param seconds: The clock, as C{IReactorTime.seconds}.

        @param restarts: The most restarts there may be in the period.

        @param period: In seconds.
        """
        self.restarts = restarts
        self.period = period
        self._seconds = seconds
        self._times: deque[float] = deque()

    def allowsRestart(self) -> bool:
        """
        Count one restart, now.

        @return: Was it one of those that there may be?
        """
        now = self._seconds()
        self._times.append(now)
        while self._times[0] < now - self.period:
            self._times.popleft()
        return len(self._times) <= self.restarts


Died = Callable[[Exception], None]
"""
What a child calls when it has died, with the reason.
"""


Restart = Literal["permanent", "temporary"]
"""
OTP's restart types, without C{transient}: no child here may end normally before the daemon.
"""


@dataclass(frozen=True)
class ChildSpec:
    """
    What a supervisor needs to know of a child. A service that failed can't always be started again,
    so, as in OTP, it is the specification that is kept, and a new child is built from it.

    @ivar name: The name of the child.

    @ivar build: Builds the child, which calls what it is given when it has died.

    @ivar restart: A child that dies is restarted if it is C{"permanent"}, and forgotten if it is
        C{"temporary"}.
    """

    name: str
    build: Callable[[Died], Service]
    restart: Restart = "permanent"


class Supervisor(MultiService):
    """
    The root of the service tree; one_for_one, in OTP's terms: only the child that died is
    restarted.

    L{MultiService} starts its children in order. It would stop them all together; here, as in OTP,
    each is stopped when the one that was started after it has stopped.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        intensity: RestartIntensity,
        giveUp: Callable[[], object],
    ) -> None:
        """
        @param specs: The children, in the order in which they start.

        @param intensity: How many restarts there may be.

        @param giveUp: Is called when there would be more.

        @ivar restarts: How often each child has been restarted, by its name.
        """
        super().__init__()
        self._intensity = intensity
        self._giveUp = giveUp
        self.restarts = Counter[str]()
        self._order = [spec.name for spec in specs]
        for spec in specs:
            self._add(spec)

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
            await self._stop(child)

    async def _stop(self, child: Service) -> None:
        try:
            await maybeDeferred(child.stopService)
        except Exception:
            _log.failure("{child} did not stop", child=child.name, level=LogLevel.error)

    def _add(self, spec: ChildSpec) -> None:
        child = spec.build(lambda reason: self._died(spec, child, reason))
        child.setName(spec.name)
        child.setServiceParent(self)
        # A child that is built again takes the place that it had.
        self.services.sort(key=lambda child: self._order.index(child.name))

    def _died(self, spec: ChildSpec, child: Service, reason: Exception) -> None:
        if not self.running or child not in self.services:
            return
        self._remove(child)
        if spec.restart == "temporary":
            _log.error("{child} died: {reason}", child=spec.name, reason=reason)
            return
        while self._intensity.allowsRestart():
            _log.warn("{child} died, and is restarted: {reason}", child=spec.name, reason=reason)
            self.restarts[spec.name] += 1
            try:
                self._add(spec)
            except Exception as error:
                # As in OTP, a child that does not come up has died once more.
                reason = error
                if spec.name in self.namedServices:
                    self._remove(self.getServiceNamed(spec.name))
            else:
                return
        _log.critical(
            "{child} died more than {restarts} times in {period} s, the last time of: {reason}",
            child=spec.name,
            restarts=self._intensity.restarts,
            period=self._intensity.period,
            reason=reason,
        )
        self._giveUp()

    def _remove(self, child: Service) -> None:
        maybeDeferred(child.disownServiceParent).addErrback(
            lambda failure: _log.failure(
                "{child} did not stop", failure, child=child.name, level=LogLevel.error
            )
        )
