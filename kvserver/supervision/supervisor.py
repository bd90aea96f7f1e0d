"""
Starts the children in order, restarts a child that dies, and stops them one by one in reverse.
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
    A child can't start, so the daemon can't start either. It prints one line and exits with status
    1.

    Both bases are needed. For an C{Exception}, C{twistd} cleans up: it removes the pid file and
    tells the shell that waits for the daemon to start. A C{SystemExit} then ends the process with
    its one line and without a traceback.
    """

    # A daemon tells its shell this name and the line, cut off after 100 bytes.
    __module__ = "kvserver"


class RestartIntensity:
    """
    How many restarts are allowed in a period, as in OTP. Occasional faults are repaired by
    restarts; a fault that returns after every restart is not.
    """

    def __init__(
        self, seconds: Callable[[], float], restarts: int = 3, period: float = 5.0
    ) -> None:
        """
        @param seconds: The clock, as C{IReactorTime.seconds}.

        @param restarts: The most restarts that are allowed in the period.

        @param period: The period, in seconds.
        """
        self.restarts = restarts
        self.period = period
        self._seconds = seconds
        self._times: deque[float] = deque()

    def allowsRestart(self) -> bool:
        """
        Count one restart, now.

        @return: Whether this restart is allowed.
        """
        now = self._seconds()
        self._times.append(now)
        while self._times[0] < now - self.period:
            self._times.popleft()
        return len(self._times) <= self.restarts


Died = Callable[[Exception], None]
"""
A child calls this when it has died, with the reason.
"""


Restart = Literal["permanent", "temporary"]
"""
OTP's restart types, without C{transient}: here, no child may end normally before the daemon does.
"""


@dataclass(frozen=True)
class ChildSpec:
    """
    What a supervisor needs to know about a child. A service that has failed can't always be started
    again. So, as in OTP, the supervisor keeps the specification, and builds a new child from it.

    @ivar name: The name of the child.

    @ivar build: Builds the child. It takes a callable, which the child calls when it has died.

    @ivar restart: A C{"permanent"} child is restarted when it dies. A C{"temporary"} one is
        forgotten.
    """

    name: str
    build: Callable[[Died], Service]
    restart: Restart = "permanent"


class Supervisor(MultiService):
    """
    The root of the service tree. It is one_for_one, in OTP's terms: only the child that died is
    restarted.

    L{MultiService} starts its children in order, but would stop all of them at the same time. Here,
    as in OTP, they stop one by one in reverse order.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        intensity: RestartIntensity,
        giveUp: Callable[[], object],
        leave: Callable[[], Deferred[None]] | None = None,
    ) -> None:
        """
        @param specs: The children, in the order in which they start.

        @param intensity: How many restarts are allowed.

        @param giveUp: Called when one more restart is not allowed.

        @param leave: Called when the supervisor is to stop. Until the C{Deferred} that it returns
            has fired, all children run on, and are restarted when they die.

        @ivar restarts: How often each child has been restarted, by its name.
        """
        super().__init__()
        self._intensity = intensity
        self._giveUp = giveUp
        self._leave = leave
        self.restarts = Counter[str]()
        self._order = [spec.name for spec in specs]
        for spec in specs:
            self._add(spec)

    def privilegedStartService(self) -> None:
        """
        Let the children do what needs privileges, such as listening on a port below 1024.

        @raise CannotStart: A listener can't listen on its address.
        """
        try:
            super().privilegedStartService()
        except CannotListenError as error:
            raise CannotStart(f"kvserver: {error}") from error

    def startService(self) -> None:
        """
        Start the children in order.

        @raise CannotStart: A listener can't listen on its address.
        """
        try:
            super().startService()
        except CannotListenError as error:
            raise CannotStart(f"kvserver: {error}") from error

    def stopService(self) -> Deferred[None]:
        """
        Leave, and then stop the children one by one, in reverse order. If one fails to stop, the
        rest are still stopped.

        @return: Fires when all have stopped.
        """
        return Deferred.fromCoroutine(self._stopChildren())

    async def _stopChildren(self) -> None:
        if self._leave is not None:
            await self._leave()
        Service.stopService(self)
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
        # A new child takes the place of the one that died.
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
                # As in OTP, a child that fails to start counts as one more that has died.
                reason = error
                if spec.name in self.namedServices:
                    self._remove(self.getServiceNamed(spec.name))
            else:
                return
        _log.critical(
            "More than {restarts} restarts in {period} s: giving up. {child} died last: {reason}",
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
