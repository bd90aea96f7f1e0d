"""
What a protocol that is served here may say besides, and what a Twisted C{IProtocol} cannot say.
Both are optional.
"""

import socket

from zope.interface import Attribute, Interface


class IDrainable(Interface):
    """
    A protocol that knows whether it owes an answer.

    When the daemon stops, or a client has been idle for too long, a connection is closed as soon as
    nothing is on its way. Of a protocol without this interface only the bytes are known: one that
    answers late may lose that answer.
    """

    def isIdle() -> bool:
        """
        Is no answer owed, and no request begun?
        """

    def close() -> None:
        """
        Say goodbye, if that is the custom, and close the connection:
        C{self.transport.loseConnection()}. Called only when the protocol L{isIdle}, by its own
        word.
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
    What a listener listens on. C{str()} says where that is, for people.
    """

    def listen() -> socket.socket:
        """
        Make a socket that listens, and does not block.

        @raise CannotListenError: The address can't be had. Says where, and why.
        """

    def isBound() -> bool:
        """
        Do clients still get to this socket by its address?
        """

    def unbind() -> None:
        """
        The socket is not listened on any more: remove what would outlive it.
        """

    def conflictsWith(other: object) -> bool:
        """
        Is it impossible to listen on both?
        """
