"""
A listening socket, as a service that notices when its socket dies.
"""

import errno
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
from kvserver.listening.route import Route
from kvserver.listening.sockets import identityOf, placeOf
from kvserver.listening.specification import ListenerSpec

_log = Logger(namespace="kvserver.listener.Listener")

ACCEPTS_PER_TURN = 100
"""
The most connections that are accepted in one turn of the reactor, so that the existing ones get
their share.
"""

ACCEPT_BACKOFF = 0.1
"""
How long to wait after accept(2) has failed, in seconds: as long as Ranch, Thousand Island, OpenSSH
and HAProxy wait.
"""

RECOVERY_PERIOD = 1.0
"""
How long accept(2) must have worked before the recovery is logged, in seconds.
"""

CHECK_INTERVAL = 0.5
"""
How often a listener checks that its socket still listens, in seconds.
"""

_RESOURCE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
"""
Errors of accept(2): there is no file descriptor, or no memory, for one more connection.
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
Errors of accept(2) that concern one connection: it is lost, or a firewall forbids it. The next one
may work.
"""


@implementer(IReadDescriptor)
class Listener(Service):
    """
    One listening socket. It takes the place of the guide's acceptor.

    The poller watches the socket through a selector that belongs to the listener. Suppose that the
    socket were closed or replaced behind the poller's back. The poller could no longer forget its
    file descriptor, and would take the next connection with the same number for one that it already
    watches. A selector can be thrown away.
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

        @param connections: Decides whether one more connection may be accepted.

        @param poller: Watches the socket.

        @param died: Called when the socket no longer listens, unless this service was stopped.

        @param purpose: What the listener does, for the log.
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
        Start to listen before C{twistd} gives up its privileges, which a port below 1024 needs.

        @raise CannotListenError: It can't listen on the address.
        """
        with ExitStack() as undo:
            self._selector = undo.enter_context(selectors.DefaultSelector())
            listening = undo.enter_context(self.spec.binding.listen())
            self._identity = identityOf(listening)
            self._selector.register(listening, selectors.EVENT_READ)
            self._socket = listening
            undo.callback(setattr, self, "_socket", None)
            self._poller.addReader(self)
            self._route.handover.start()
            undo.pop_all()
        layers = f" ({', '.join(self.spec.layers)})" if self.spec.layers else ""
        _log.info(
            self._purpose + " on {address}{layers}",
            address=str(self.spec.binding),
            layers=layers,
            listener=self.spec.name,
            **placeOf(listening),
        )

    def startService(self) -> None:
        """
        Start to listen, unless that is done: C{twist} never calls L{privilegedStartService}.

        @raise CannotListenError: It can't listen on the address.
        """
        if self._socket is None:
            self.privilegedStartService()
        super().startService()
        self._checking.start(CHECK_INTERVAL)

    def stopService(self) -> None:
        """
        Stop listening. The accepted connections continue. The backlog is accepted and continues as
        well: what these clients have sent has already reached this machine.
        """
        super().stopService()
        listening = self._socket
        if listening is None:
            return
        self._stopReading()
        self._socket = None
        self._selector.close()
        self._route.handover.stop()
        for call in self._pause, self._calm:
            if call is not None and call.active():
                call.cancel()
        self.spec.binding.unbind()
        if not self._isSameSocket(listening):
            # Another file has this number now. It is not ours to close.
            listening.detach()
            return
        # The kernel's queue holds one connection more than the backlog.
        self._acceptBacklog(listening, self.spec.binding.backlog + 1)

    def _acceptBacklog(self, listening: socket.socket, most: int) -> None:
        """
        Accept the connections in the backlog, and then close the socket. If there are not enough
        file descriptors, the rest of the backlog waits until other connections end.
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
        Return whether the kernel takes connections for us. If the socket was closed, its number may
        belong to another file by now. If it was shut down, it is still open.
        """
        if self._socket is None or not self._isSameSocket(self._socket):
            return False
        try:
            listens = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            # The socket has just been replaced.
            return False
        return bool(listens) and self.spec.binding.isBound()

    def _isSameSocket(self, listening: socket.socket) -> bool:
        try:
            return identityOf(listening) == self._identity
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
        Return the file descriptor of the selector; -1 after the end.
        """
        return -1 if self._socket is None else self._selector.fileno()

    def logPrefix(self) -> str:
        """
        Return the name of this listener.
        """
        return str(self.name)

    def connectionLost(self, reason: Failure) -> None:
        """
        The poller can't watch the selector any more.
        """
        self._die(OSError(reason.getErrorMessage()))

    def doRead(self) -> None:
        """
        Accept one connection. If this is called a second time in the same turn, accept all that
        wait. To ask the kernel in vain for another connection costs a tenth of what a connection
        costs.
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
            # accept(2) fails again and again, so the fault is not in a single connection.
            self._backOff(failed)

    def _backOff(self, trouble: OSError) -> None:
        """
        accept(2) fails, and the socket stays readable, so the process could not sleep: pause
        accepting.
        """
        if not self._refusals:
            _log.warn(
                "accept(2) fails: {reason}. Trying again every {seconds} s",
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
        _log.info("Accepting again, after a number of failures: {count}", count=self._refusals)
        self._refusals = 0

    def _resume(self) -> None:
        waits = self._pause is not None and self._pause.active()
        if self._socket is not None and not waits:
            self._poller.addReader(self)

    def _serve(self, accepted: socket.socket, name: Any) -> None:
        """
        Serve a connection. If that fails, only this connection fails.
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
