"""
Notifications to the service manager, in the protocol of sd_notify(3).
"""

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from kvserver.connections.throttle import REPEATED, LogThrottle

_log = Logger(namespace="kvserver.notify.Notifier")

STATUS_INTERVAL = 5.0
"""
The shortest interval between two status messages, in seconds.
"""

RETRY = 0.1
"""
How long to wait before a busy manager is notified again, in seconds.
"""

STOP_MARGIN = 5.0
"""
How long the process may take to end after the drain, in seconds.
"""

_BUSY = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM}
"""
Errors of sendto(2) that mean: not now.
"""


@dataclass(frozen=True)
class NotifySocket:
    """
    The socket of the service manager that has started this process.

    @ivar address: An absolute path, or C{@} and the name of an abstract socket.

    @ivar watchdog: The longest interval between two keep-alive messages that the manager allows, in
        seconds. 0: it expects no such messages.
    """

    address: str
    watchdog: float = 0.0

    @classmethod
    def fromEnvironment(cls, environment: Mapping[str, str]) -> "NotifySocket | None":
        """
        Read the variables that sd_notify(3) and sd_watchdog_enabled(3) define.

        @return: None if there is no service manager to notify.

        @raise ValueError: A variable can't be used. The message says which one and why.
        """
        address = environment.get("NOTIFY_SOCKET")
        watchdog = environment.get("WATCHDOG_USEC")
        if address is None:
            return None
        if not (address.startswith(("/", "@")) and 1 < len(os.fsencode(address)) < 108):
            raise ValueError(
                f"NOTIFY_SOCKET (environment): {address!r} is not an absolute path, nor @ and a "
                "name, of 2 to 107 bytes"
            )
        ours = str(os.getpid())
        if watchdog is None or environment.get("WATCHDOG_PID", ours) != ours:
            return cls(address)
        if not (watchdog.isascii() and watchdog.isdigit() and int(watchdog)):
            raise ValueError(
                f"WATCHDOG_USEC (environment): {watchdog!r} is not a number of microseconds from 1"
            )
        return cls(address, int(watchdog) / 1_000_000)


def forgetEnvironment(environment: MutableMapping[str, str]) -> None:
    """
    Remove the variables of sd_notify(3): child processes must not send notifications for this one.
    """
    for name in "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID":
        environment.pop(name, None)


class Notifier(Service):
    """
    The last child. It sends READY when all other children are ready, and STOPPING before they stop.
    """

    def __init__(
        self,
        reactor: Any,
        manager: NotifySocket | None,
        status: Callable[[], str],
        isHealthy: Callable[[], bool],
        drain: float,
        ready: Deferred[None] | None = None,
    ) -> None:
        """
        @param reactor: Provides C{IReactorCore} and C{IReactorTime}.

        @param manager: The socket of the service manager. None: there is no manager to notify.

        @param status: Returns the status, in words.

        @param isHealthy: While this returns false, no keep-alive message is sent.

        @param drain: How long the other children may take to stop, in seconds.

        @param ready: Fires when the workers are ready, if there are any.
        """
        self._reactor = reactor
        self._manager = manager
        self._status = status
        self._isHealthy = isHealthy
        self._drain = drain
        self._ready = ready or succeed(None)
        self._said = ""
        self._unsent: list[bytes] = []
        self._throttle = LogThrottle(reactor)
        self._loops = (
            (LoopingCall(self._tellStatus), STATUS_INTERVAL),
            (LoopingCall(self._tellWatchdog), manager.watchdog / 2 if manager else 0.0),
        )
        for loop, _ in self._loops:
            loop.clock = reactor

    def startService(self) -> None:
        """
        Send READY as soon as the reactor runs.
        """
        super().startService()
        if self._manager is not None:
            # All messages share this socket: later, there may be no file descriptor for another
            # one.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._ready.addCallback(lambda _: self._reactor.callWhenRunning(self._begin))

    def _begin(self) -> None:
        if not self.running:
            return
        self.ready()
        for loop, interval in self._loops:
            if interval:
                loop.start(interval)

    def stopService(self) -> None:
        """
        Send STOPPING, unless that was done, and ask for as much time as the stop may take.
        """
        if not self.running:
            return
        super().stopService()
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()
        # The manager's own time-out still holds if it is longer.
        extension = int((self._drain + STOP_MARGIN) * 1_000_000)
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={extension}")

    def ready(self) -> None:
        """
        Send READY, at the start or after a reload.
        """
        if self.running:
            self._tell("READY=1")

    def reloading(self) -> None:
        """
        Send RELOADING: not ready again before the next READY.
        """
        if self.running:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def _tellStatus(self) -> None:
        status = self._status()
        if status != self._said and not self._unsent:
            self._said = status
            self._tell(f"STATUS={status}")

    def _tellWatchdog(self) -> None:
        # A delayed message might no longer be true when it arrives.
        if self._isHealthy() and not self._unsent:
            self._tell("WATCHDOG=1")

    def _tell(self, *assignments: str) -> None:
        """
        Send a message, now or as soon as the manager can take it.
        """
        if self._manager is None:
            return
        self._unsent.append("\n".join(assignments).encode())
        if len(self._unsent) == 1:
            self._send(self._manager)

    def _send(self, manager: NotifySocket) -> None:
        # The first byte of the name of an abstract socket is 0 (unix(7)).
        address = manager.address
        name = "\0" + address[1:] if address.startswith("@") else address
        while self._unsent:
            try:
                self._socket.sendto(self._unsent[0], name)
            except OSError as error:
                if error.errno in _BUSY:
                    # Clients must not wait for the manager, so this never blocks.
                    self._reactor.callLater(RETRY, self._send, manager)
                    return
                key = address, error.errno
                self._throttle(key, partial(self._complain, address, error))
            del self._unsent[0]

    def _complain(self, address: str, error: OSError, count: int) -> None:
        text = "The service manager at {address} can't be told: {reason}"
        _log.warn(text + REPEATED[count > 1], address=address, reason=error.strerror, count=count)
