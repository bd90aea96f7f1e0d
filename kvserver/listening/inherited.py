"""
A socket that systemd listens on and passes to this process.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from twisted.internet.address import UNIXAddress
from zope.interface import implementer

from kvserver.connections.addresses import fromSockaddr
from kvserver.interfaces import IBinding
from kvserver.listening.bindings import BACKLOG, CannotListen, ListeningSocket, setSocketOptions

_FIRST_FD = 3
"""
The first file descriptor that systemd passes (sd_listen_fds(3)).
"""


def passedNames(environment: Mapping[str, str]) -> list[str]:
    """
    Return the names of the sockets that the service manager passes (sd_listen_fds_with_names(3)). A
    socket without a name has an empty one.

    @param environment: The environment of the process.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(environment.get("LISTEN_FDS", "0"))
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return [*names, *[""] * count][:count]


@implementer(IBinding)
class InheritedBinding:
    """
    A socket that systemd listens on and passes to this process (sd_listen_fds(3)).

    @ivar index: Its index among the sockets that systemd passes, from 0.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.backlog = BACKLOG
        self._where = f"socket {index} from systemd"

    def __str__(self) -> str:
        return self._where

    def conflictsWith(self, other: object) -> bool:
        """
        Return whether both are the same socket.
        """
        return isinstance(other, InheritedBinding) and self.index == other.index

    def listen(self) -> socket.socket:
        """
        Take the socket, for the first time or again.

        @raise CannotListenError: The socket can't be used.
        """
        try:
            with ExitStack() as undo:
                descriptor = os.dup(_FIRST_FD + self.index)
                listening = undo.enter_context(ListeningSocket(fileno=descriptor))
                setSocketOptions(listening)
                # The socket listens already, unless somebody has shut it down.
                listening.listen(BACKLOG)
                undo.pop_all()
        except OSError as error:
            raise CannotListen(str(self), None, error) from error
        name = fromSockaddr(listening.getsockname())
        self._where = (
            os.fsdecode(name.name or b"") if isinstance(name, UNIXAddress) else f"port {name.port}"
        )
        return listening

    def isBound(self) -> bool:
        """
        Return true: systemd keeps the socket bound.
        """
        return True

    def unbind(self) -> None:
        """
        Do nothing: the socket belongs to systemd, and stays.
        """
