"""
One listening socket, as a service that notices its own death.
"""

import errno
import os
import selectors
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.address import BACKLOG, UNIX, Address, addressOf
from kvserver.connections import Connections
from kvserver.record import Record
from kvserver.route import Route

ACCEPTS = 100
"""
How many connections are accepted in one turn of the reactor, so that those who are connected get
theirs.
"""

PAUSE = 0.1
"""
For how long nothing is accepted when accept(2) can't, in seconds: what Ranch, Thousand Island,
OpenSSH and HAProxy wait.
"""

CALM = 1.0
"""
For how long accept(2) must have worked before its trouble is said to be over, in seconds.
"""

CHECK_INTERVAL = 0.5
"""
How often a listener looks whether it still listens, in seconds.
"""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
"""
accept(2): no file descriptor, or no memory, for one more connection.
"""

_OF_ONE_CONNECTION = {
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

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: Address,
        layers: Sequence[str],
        route: Route,
        connections: Connections,
        poller: Any,
        died: Callable[[Exception], None],
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param address: Where to listen.

        @param layers: What a connection passes before its protocol, for the log.

        @param route: Takes the connections that are accepted.

        @param connections: Says when there are too many.

        @param poller: Watches the socket.

        @param died: Is called when the socket listens no more, unless it was stopped.
        """
        self._reactor = reactor
        self.address = address
        self.layers = tuple(layers)
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
            listening = undo.enter_context(self.address.listen())
            self._identity = _identity(listening)
            self._selector.register(listening, selectors.EVENT_READ)
            self._socket = listening
            undo.callback(setattr, self, "_socket", None)
            self._poller.addReader(self)
            self._route.factory.doStart()
            undo.pop_all()
        layers = f" ({', '.join(self.layers)})" if self.layers else ""
        self._log.info(
            "Accepting connections on {address}{layers}", address=str(self.address), layers=layers
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
        self._deaf()
        self._socket = None
        self._selector.close()
        self._route.factory.doStop()
        for call in self._pause, self._calm:
            if call is not None and call.active():
                call.cancel()
        self.address.release()
        if not self._isOurs(listening):
            # What has that number now is not ours to close.
            listening.detach()
            return
        # The kernel lets one more wait than it was told.
        self._acceptRest(listening, BACKLOG + 1)

    def _acceptRest(self, listening: socket.socket, most: int) -> None:
        """
        Accept those who have waited at the end, and listen no more. If there are too many of them
        for the file descriptors, some wait until others have left.
        """
        for number in range(most):
            try:
                accepted, name = listening.accept()
            except OSError as error:
                if error.errno in _OF_ONE_CONNECTION:
                    continue
                if error.errno in _EXHAUSTED and len(self._connections):
                    rest = most - number
                    self._connections.whenLeft(partial(self._acceptRest, listening, rest))
                    return
                break
            self._connect(accepted, name)
        listening.close()

    def isListening(self) -> bool:
        """
        Does the kernel take connections for us? The number of a socket that was closed may be that
        of another one by now, and a socket that was shut down is still open.
        """
        if self._socket is None or not self._isOurs(self._socket):
            return False
        try:
            listens = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            # It has just been replaced.
            return False
        return bool(listens) and (not isinstance(self.address, UNIX) or self.address.isThere())

    def _isOurs(self, listening: socket.socket) -> bool:
        try:
            return _identity(listening) == self._identity
        except OSError:
            return False

    def _check(self) -> None:
        if not self.isListening():
            self._die(OSError("its socket listens no more"))

    def _die(self, reason: Exception) -> None:
        self._deaf()
        self._died(reason)

    def _deaf(self) -> None:
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
        for _ in range(ACCEPTS):
            if not self._connections.whenRoom(self._resume):
                self._poller.removeReader(self)
                return
            try:
                accepted, name = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._wait(error)
                    return
                if error.errno not in _OF_ONE_CONNECTION:
                    self._die(error)
                    return
                failed = error
            else:
                failed = None
                self._connect(accepted, name)
                if not isBurst:
                    return
        if failed:
            # So many in a row, and there is no end of them: that is no trouble of one connection.
            self._wait(failed)

    def _wait(self, trouble: OSError) -> None:
        """
        accept(2) can't, and would not let us sleep: leave it alone for a while.
        """
        if not self._refusals:
            self._log.warn(
                "Can't accept: {reason}. Trying again every {seconds} s",
                reason=trouble.strerror,
                seconds=PAUSE,
            )
        self._refusals += 1
        self._connections.acceptPauses += 1
        self._poller.removeReader(self)
        self._pause = self._reactor.callLater(PAUSE, self._resume)
        if self._calm is not None and self._calm.active():
            self._calm.reset(CALM)
        else:
            self._calm = self._reactor.callLater(CALM, self._recovered)

    def _recovered(self) -> None:
        self._log.info("Accepting again, after {count} failures", count=self._refusals)
        self._refusals = 0

    def _resume(self) -> None:
        waits = self._pause is not None and self._pause.active()
        if self._socket is not None and not waits:
            self._poller.addReader(self)

    def _connect(self, accepted: socket.socket, name: Any) -> None:
        """
        Serve a connection. If that fails, it fails alone.
        """
        try:
            record = Record(str(self.name), addressOf(name))
            accepted.setblocking(False)
        except Exception:
            self._log.failure(
                "The connection from {name} could not begin", name=name, level=LogLevel.error
            )
            accepted.close()
        else:
            self._route.enter(accepted, record)
