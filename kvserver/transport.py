"""
An accepted connection.
"""

import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.tcp import Port, Server
from twisted.python.failure import Failure

from kvserver.address import addressOf
from kvserver.record import Ending, Record


class Transport(Server):
    """
    An accepted connection, of TCP or UNIX, that shows its addresses as people know them: an IPv4
    peer of an IPv6 socket as IPv4, the client of a balancer as the balancer saw it.
    """

    # May a write go to the socket, or must it wait for what came before?
    _direct = True
    _corked: list[bytes] | None = None
    _inputEnds = False

    def __init__(
        self,
        accepted: socket.socket,
        protocol: IProtocol,
        record: Record,
        reactor: Any,
        ended: Callable[[Record], None],
    ) -> None:
        """
        @param accepted: The socket.

        @param protocol: Speaks with the other end.

        @param record: Takes what becomes known of the connection.

        @param reactor: Provides C{IReactorFDSet}.

        @param ended: Is called with the record when the connection has ended.
        """
        # There is no Port: that is None where Twisted itself adopts a connection, too.
        port, peer = cast(Port, None), (_shown(record.peer), 0)
        super().__init__(accepted, protocol, peer, port, record.number, reactor)
        self.record = record
        self._ended = ended
        self._host: IAddress | None = None

    def __repr__(self) -> str:
        return f"<{self.logPrefix()}>"

    def getPeer(self) -> IAddress:
        """
        The client's end of this connection.
        """
        return self.record.client or self.record.peer

    def getHost(self) -> IAddress:
        """
        The server's end of this connection.
        """
        return self._host or addressOf(self.socket.getsockname())

    def write(self, data: bytes) -> None:
        """
        Send now what the socket takes, and the rest later.

        Twisted would wait until the reactor says that the socket takes something, which is a system
        call to ask for that, one to take it back, and one more turn of the reactor for each line.
        """
        if not self._direct:
            self._hold(data)
            return
        try:
            sent = self.socket.send(data)
        except OSError:
            # Either it takes nothing now, or there is an error, which comes again in its own turn.
            sent = 0
        if sent < len(data):
            self._hold(data[sent:])
            producer: Any = self.producer
            if producer is not None and self.streamingProducer and not self.producerPaused:
                # Twisted would wait until a buffer is full. Nothing is read while anything waits.
                self.producerPaused = True
                producer.pauseProducing()

    def _hold(self, data: bytes) -> None:
        """
        Send later.
        """
        self._direct = False
        if self._corked is not None:
            self._corked.append(data)
            return
        self.record.unsent += len(data)
        super().write(data)

    def cork(self) -> None:
        """
        Hold what is written from now on. It is to be sent with one system call, and in as few
        segments as may be, by L{uncork}, which must follow in the same turn of the reactor.
        """
        self._direct = False
        self._corked = []

    def uncork(self) -> None:
        """
        Send what has been held.
        """
        held, self._corked = self._corked, None
        self._direct = bool(self.connected and not self.record.unsent)
        if held:
            self.write(b"".join(held))

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """
        Send them one after the other.
        """
        self.write(b"".join(iovec))

    def writeSomeData(self, data: bytes) -> int | ConnectionLost:
        """
        Send what has waited.
        """
        sent = super().writeSomeData(data)
        if isinstance(sent, int):
            self.record.unsent -= sent
            self._direct = not self.record.unsent and self._corked is None
        return sent

    def readConnectionLost(self, reason: Failure) -> None:
        """
        The peer sends no more. If then everything has been sent, and the protocol has closed, the
        connection ends now, and not in another turn of the reactor.
        """
        self._inputEnds = True
        try:
            super().readConnectionLost(reason)
        finally:
            self._inputEnds = False
        if self.disconnecting and self._hasSentAll():
            self.connectionLost(reason)

    def loseConnection(self, *reason: Any) -> None:
        """
        Close when all has been sent.
        """
        if self._inputEnds and self._hasSentAll():
            # L{readConnectionLost} goes on from here.
            self.disconnecting = True
        else:
            super().loseConnection(*reason)

    def _hasSentAll(self) -> bool:
        """
        Has everything been sent?
        """
        return bool(self.connected and not self.record.unsent)

    def connectionLost(self, reason: Failure) -> None:
        """
        The connection is gone.
        """
        self._direct = False
        try:
            super().connectionLost(reason)
        finally:
            # Twisted may say it twice.
            if self.record.seconds is None:
                self.record.ends(_endingFor(reason))
                self._ended(self.record)
                # Nothing is left that only the garbage collector could find.
                self.record.protocol = None

    def seenAs(self, peer: IAddress, host: IAddress | None) -> None:
        """
        Show the addresses that a balancer has named.
        """
        self.record.client = peer
        self._host = host
        self.hostname = _shown(peer)
        self.logstr = f"{self.logstr},{self.hostname}"


def _endingFor(reason: Failure) -> Ending:
    """
    How a connection has ended that nobody here wanted to end.
    """
    if reason.check(ConnectionDone):
        return Ending.CLIENT_CLOSED
    if reason.check(ConnectionLost) and not reason.check(ConnectionAborted):
        return Ending.RESET
    return Ending.ERROR


def _shown(address: IAddress) -> str:
    return address.host if isinstance(address, IPv4Address | IPv6Address) else "unix"
