"""
A socket that systemd listens on, and passes to us.
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
    The names of the sockets that the service manager passes; empty are those that have none.

    @param environment: Where it says so.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(environment.get("LISTEN_FDS", "0"))
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return [*names, *[""] * count][:count]


@implementer(IBinding)
class InheritedBinding:
    """
    A socket that systemd listens on and passes to us (sd_listen_fds(3)).

    @ivar index: Which of those that it passes, from 0.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._where = f"socket {index} from systemd"

    def __str__(self) -> str:
        return self._where

    def conflictsWith(self, other: object) -> bool:
        """
        See L{IBinding}.
        """
        return isinstance(other, InheritedBinding) and self.index == other.index

    def listen(self) -> socket.socket:
        """
        Take the socket, or take it again.

        @raise CannotListenError: It can't be had.
        """
        try:
            with ExitStack() as undo:
                descriptor = os.dup(_FIRST_FD + self.index)
                listening = undo.enter_context(ListeningSocket(fileno=descriptor))
                setSocketOptions(listening)
                # It listens already, unless somebody has shut it down.
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
        See L{IBinding}.
        """
        return True

    def unbind(self) -> None:
        """
        It is systemd's, and stays.
        """
