"""
One listening socket, as a service that notices its own death.
"""

import errno
import os
import selectors
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.connections.addresses import fromSockaddr
from kvserver.connections.record import ConnectionRecord
from kvserver.connections.registry import Connections
from kvserver.listening.bindings import BACKLOG
from kvserver.listening.route import Route
from kvserver.listening.specification import ListenerSpec

_log = Logger(namespace="kvserver.listener.Listener")

ACCEPTS_PER_TURN = 100
"""
How many connections are accepted in one turn of the reactor, so that those who are connected get
theirs.
"""

ACCEPT_BACKOFF = 0.1
"""
For how long nothing is accepted when accept(2) can't, in seconds: what Ranch, Thousand Island,
OpenSSH and HAProxy wait.
"""

RECOVERY_PERIOD = 1.0
"""
For how long accept(2) must have worked before its trouble is said to be over, in seconds.
"""

CHECK_INTERVAL = 0.5
"""
How often a listener looks whether it still listens, in seconds.
"""

_RESOURCE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
"""
accept(2): no file descriptor, or no memory, for one more connection.
"""

_TRANSIENT_ERRORS = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
}
"""
accept(2): the connection that was next is gone, or a firewall forbids it. The one after it may be
well.
"""


def _identity(opened: socket.socket) -> tuple[int, int]:
    """
    What tells what a file descriptor stands for from all else that it may come to stand for.
    """
    status = os.fstat(opened.fileno())
    return status.st_dev, status.st_ino


@implementer(IReadDescriptor)
class Listener(Service):
    """
    One listening socket; the place of the guide's acceptor.

    The poller, which watches the connections, too, watches the socket through a selector of its
    own. If the socket were closed or replaced behind its back, the poller could not forget the file
    descriptor any more, and would take the connection that gets the same number next for one that
    it watches already. A selector can be thrown away.
    """

    def __init__(
        self,
        reactor: Any,
        spec: ListenerSpec,
        route: Route,
        connections: Connections,
        poller: Any,
        died: Callable[[Exception], None],
        purpose: str = "Accepting connections",
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param spec: Where to listen.

        @param route: Takes the accepted connections.

        @param connections: Says when there are too many.

        @param poller: Watches the socket.

        @param died: Called when the socket has ceased to listen, unless it was stopped.

        @param purpose: What the log says that this listener does.
        """
        self._reactor = reactor
        self.spec = spec
        self._purpose = purpose
        self._route = route
        self._connections = connections
        self._poller = poller
        self._died = died
        self._socket: socket.socket | None = None
        self._lastTurn = 0
        self._refusals = 0
        self._pause: IDelayedCall | None = None
        self._calm: IDelayedCall | None = None
        self._checking = LoopingCall(self._check)
        self._checking.clock = reactor

    def privilegedStartService(self) -> None:
        """
        Listen: while C{twistd} has not shed its privileges, for a port below 1024.

        @raise CannotListenError: The address can't be had.
        """
        with ExitStack() as undo:
            self._selector = undo.enter_context(selectors.DefaultSelector())
            listening = undo.enter_context(self.spec.binding.listen())
            self._identity = _identity(listening)
            self._selector.register(listening, selectors.EVENT_READ)
            self._socket = listening
            undo.callback(setattr, self, "_socket", None)
            self._poller.addReader(self)
            self._route.factory.doStart()
            undo.pop_all()
        layers = f" ({', '.join(self.spec.layers)})" if self.spec.layers else ""
        _log.info(
            self._purpose + " on {address}{layers}",
            address=str(self.spec.binding),
            layers=layers,
        )

    def startService(self) -> None:
        """
        Listen, if we don't yet: C{twist} never calls L{privilegedStartService}.

        @raise CannotListenError: The address can't be had.
        """
        if self._socket is None:
            self.privilegedStartService()
        super().startService()
        self._checking.start(CHECK_INTERVAL)

    def stopService(self) -> None:
        """
        Stop listening. Connections that were accepted go on; so do those that wait to be accepted:
        what they have sent has reached this machine.
        """
        super().stopService()
        listening = self._socket
        if listening is None:
            return
        self._stopReading()
        self._socket = None
        self._selector.close()
        self._route.factory.doStop()
        for call in self._pause, self._calm:
            if call is not None and call.active():
                call.cancel()
        self.spec.binding.unbind()
        if not self._isSameSocket(listening):
            # What has that number now is not ours to close.
            listening.detach()
            return
        # The kernel lets one more wait than it was told.
        self._acceptBacklog(listening, BACKLOG + 1)

    def _acceptBacklog(self, listening: socket.socket, most: int) -> None:
        """
        Accept those who have waited at the end, and listen no more. If there are too many of them
        for the file descriptors, some wait until others have left.
        """
        for number in range(most):
            try:
                accepted, name = listening.accept()
            except OSError as error:
                if error.errno in _TRANSIENT_ERRORS:
                    continue
                if error.errno in _RESOURCE_ERRORS and len(self._connections):
                    rest = most - number
                    self._connections.onNextEnd(partial(self._acceptBacklog, listening, rest))
                    return
                break
            self._serve(accepted, name)
        listening.close()

    def isListening(self) -> bool:
        """
        Does the kernel take connections for us? The number of a socket that was closed may be that
        of another one by now, and a socket that was shut down is still open.
        """
        if self._socket is None or not self._isSameSocket(self._socket):
            return False
        try:
            listens = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            # It has just been replaced.
            return False
        return bool(listens) and self.spec.binding.isBound()

    def _isSameSocket(self, listening: socket.socket) -> bool:
        try:
            return _identity(listening) == self._identity
        except OSError:
            return False

    def _check(self) -> None:
        if not self.isListening():
            self._die(OSError("its socket listens no more"))

    def _die(self, reason: Exception) -> None:
        self._stopReading()
        self._died(reason)

    def _stopReading(self) -> None:
        if self._checking.running:
            self._checking.stop()
        self._poller.removeReader(self)

    def fileno(self) -> int:
        """
        The selector's; -1 after the end.
        """
        return -1 if self._socket is None else self._selector.fileno()

    def logPrefix(self) -> str:
        """
        The name of this listener.
        """
        return str(self.name)

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor can't watch the selector any more.
        """
        self._die(OSError(reason.getErrorMessage()))

    def doRead(self) -> None:
        """
        Accept who is waiting: one, and as many as there are when we are asked again at once. To ask
        the kernel for a second one that is not there costs a tenth of a connection.
        """
        assert self._socket is not None
        isBurst, self._lastTurn = self._lastTurn == self._poller.turn, self._poller.turn
        failed: OSError | None = None
        for _ in range(ACCEPTS_PER_TURN):
            if not self._connections.hasRoom():
                self._poller.removeReader(self)
                self._connections.onNextEnd(self._resume)
                return
            try:
                accepted, name = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _RESOURCE_ERRORS:
                    self._backOff(error)
                    return
                if error.errno not in _TRANSIENT_ERRORS:
                    self._die(error)
                    return
                failed = error
            else:
                failed = None
                self._serve(accepted, name)
                if not isBurst:
                    return
        if failed:
            # So many in a row, and there is no end of them: that is no trouble of one connection.
            self._backOff(failed)

    def _backOff(self, trouble: OSError) -> None:
        """
        accept(2) can't, and would not let us sleep: leave it alone for a while.
        """
        if not self._refusals:
            _log.warn(
                "Can't accept: {reason}. Trying again every {seconds} s",
                reason=trouble.strerror,
                seconds=ACCEPT_BACKOFF,
            )
        self._refusals += 1
        self._connections.counters.acceptPauses += 1
        self._poller.removeReader(self)
        self._pause = self._reactor.callLater(ACCEPT_BACKOFF, self._resume)
        if self._calm is not None and self._calm.active():
            self._calm.reset(RECOVERY_PERIOD)
        else:
            self._calm = self._reactor.callLater(RECOVERY_PERIOD, self._recovered)

    def _recovered(self) -> None:
        _log.info("Accepting again, after {count} failures", count=self._refusals)
        self._refusals = 0

    def _resume(self) -> None:
        waits = self._pause is not None and self._pause.active()
        if self._socket is not None and not waits:
            self._poller.addReader(self)

    def _serve(self, accepted: socket.socket, name: Any) -> None:
        """
        Serve a connection. If that fails, it fails alone.
        """
        try:
            record = ConnectionRecord(str(self.name), fromSockaddr(name))
            accepted.setblocking(False)
        except Exception:
            _log.failure(
                "The connection from {name} could not begin", name=name, level=LogLevel.error
            )
            accepted.close()
        else:
            self._route.enter(accepted, record)
