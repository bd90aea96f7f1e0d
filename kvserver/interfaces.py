"""
The published interfaces. Two of them describe what a served protocol can offer besides Twisted's
C{IProtocol}; both are optional. The third describes what a listener needs.
"""

import socket
from typing import Any

from zope.interface import Attribute, Interface


class IDrainable(Interface):
    """
    A protocol that knows whether it owes an answer.

    When the daemon stops, a connection is closed as soon as no bytes are in transit and its
    protocol is idle. A protocol without this interface counts as idle whenever no bytes are in
    transit: if it answers late, that answer may be lost. C{--idle-timeout} closes a connection
    whether its protocol is idle or not.
    """

    def isIdle() -> bool:
        """
        Return whether no answer is owed and no request has begun.
        """

    def close() -> None:
        """
        Say goodbye, if the protocol has a message for that, and close the connection with
        C{self.transport.loseConnection()}. The drain calls this only after L{isIdle} has returned
        true. C{--idle-timeout} calls it without asking.
        """


class ICountsWork(Interface):
    """
    A protocol that counts what it does, for the access log and the metrics.
    """

    unit = Attribute(
        """
        What is counted, in the plural, as C{"lines"}: a C{str} of lower-case letters and C{_}, of
        the class. The access log has a field of that name, the metrics have C{kvserver_UNIT_total}.
        """
    )

    count = Attribute("How many of them, so far: an C{int} that never falls.")


class IBinding(Interface):
    """
    What a listener listens on, such as a TCP port. C{str()} gives its address as people write it.
    """

    backlog = Attribute("How many connections wait in the kernel's backlog to be accepted.")

    def listen() -> socket.socket:
        """
        Make a non-blocking listening socket.

        @raise CannotListenError: It can't listen on the address. The message says where and why.
        """

    def isBound() -> bool:
        """
        Return whether clients that connect to the address still reach this socket.
        """

    def unbind() -> None:
        """
        The socket listens no more: remove what would outlive it, such as a path.
        """

    def conflictsWith(other: object) -> bool:
        """
        Return whether it is impossible to listen on both bindings at once.
        """


class IHandover(Interface):
    """
    Where an admitted connection goes: to a protocol in this process, or to a worker.
    """

    kind = Attribute("The class of the connections that this takes.")

    def start() -> None:
        """
        A listener has begun to listen.
        """

    def stop() -> None:
        """
        A listener has ceased to listen.
        """

    def handOver(connection: Any) -> None:
        """
        Take an admitted connection.
        """


class IWorkers(Interface):
    """
    Processes that serve connections.
    """

    def drain(seconds: float) -> None:
        """
        Close each connection as soon as it is at rest, and reset those that are left after a time.
        """

    def abort() -> None:
        """
        Reset all connections.
        """

    def receive() -> None:
        """
        Receive which connections have ended, as far as that was sent already.
        """
