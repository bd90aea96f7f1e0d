"""
The bytes of one connection: TCP and UNIX sockets, and TLS over them by the standard library.

It is not Twisted's transport, because a checker needs what that hides: how much the kernel has
taken, the difference between FIN and RST, the end of one direction, urgent data.
"""

import errno
import select
import socket
import struct
from typing import Any

from twisted.internet.interfaces import ILoggingContext, IReadWriteDescriptor
from zope.interface import Interface, implementer

READ_SIZE = 1 << 17
"""
How much is read at a time, in bytes.
"""

_AGAIN = 0.02


class IOwner(Interface):
    """
    Who uses a transport. Nothing is called after C{failed}.
    """

    def connected() -> None:
        """
        The other end has accepted.
        """

    def secured() -> None:
        """
        The TLS handshake is done.
        """

    def dataReceived(data: bytes) -> None:
        """
        Something came.
        """

    def writable() -> None:
        """
        More can be sent.
        """

    def ended() -> None:
        """
        The other side sends no more: FIN, or TLS's close_notify.
        """

    def failed(error: OSError) -> None:
        """
        Connecting, TLS, reading or writing failed.
        """


@implementer(IReadWriteDescriptor, ILoggingContext)
class Transport:
    """
    A TCP connection, or one to a UNIX socket.
    """

    _isConnecting = True
    _isClosed = False
    _isPaused = False
    _reset: OSError | None = None

    def __init__(self, reactor: Any, owner: IOwner) -> None:
        """
        @param reactor: Provides C{IReactorFDSet} and C{IReactorTime}.
        """
        self._reactor = reactor
        self._owner = owner
        self.socket: socket.socket | None = None

    def connect(self, family: socket.AddressFamily, address: Any) -> None:
        """
        Begin to connect.

        @raise OSError: There is no descriptor for it.
        """
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        if family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connect(address)

    def _connect(self, address: Any) -> None:
        if self._isClosed:
            return
        assert self.socket is not None
        error = self.socket.connect_ex(address)
        if error == errno.EAGAIN:
            # The backlog of a UNIX socket is full: connect(2) does not wait for room.
            self._reactor.callLater(_AGAIN, self._connect, address)
        elif error in (0, errno.EINPROGRESS):
            self._reactor.addWriter(self)
        else:
            self._reactor.callLater(0, self._fail, OSError(error, errno.errorcode[error]))

    def send(self, data: bytes | memoryview) -> int:
        """
        Send what can be sent now. If that is not all, the owner is told when more can be.

        @return: How many bytes the kernel has taken.
        """
        if self._isClosed:
            return 0
        assert self.socket is not None
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._failedToWrite(error)
            return 0
        if sent < len(data):
            self._reactor.addWriter(self)
        return sent

    def askForTurn(self) -> None:
        """
        Let the owner be told when more can be sent, after the others have had their turn.
        """
        if not self._isClosed:
            self._reactor.addWriter(self)

    def sendUrgent(self, byte: bytes) -> None:
        """
        Send a byte that TCP marks as urgent.
        """
        assert self.socket is not None
        self.socket.send(byte, socket.MSG_OOB)

    def sendEnd(self) -> None:
        """
        Say that nothing more will be sent: FIN.
        """
        if self._isClosed:
            return
        assert self.socket is not None
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._failedToWrite(error)

    def pauseReading(self) -> None:
        """
        Leave what comes to the kernel.
        """
        self._isPaused = True
        self._reactor.removeReader(self)

    def resumeReading(self) -> None:
        """
        Read again.
        """
        self._isPaused = False
        if not self._isClosed:
            self._reactor.addReader(self)

    def isReadable(self) -> bool:
        """
        Is something to be read?
        """
        assert self.socket is not None
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """
        Close. Nothing more is reported.
        """
        if self._isClosed:
            return
        self._isClosed = True
        if self.socket is not None:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self.socket.close()

    def abort(self) -> None:
        """
        Close by RST.
        """
        if self.socket is not None and not self._isClosed:
            linger = struct.pack("ii", 1, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def doRead(self) -> None:
        """
        Something has come, or the end.
        """
        if self._isClosed:
            return
        assert self.socket is not None
        try:
            data = self.socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not data:
            self._reactor.removeReader(self)
        self._take(data)

    def _take(self, data: bytes) -> None:
        """
        Something has come, or the end. A write that says of a reset takes that from the socket: the
        next read looks as if a FIN had come. After a FIN a write says EPIPE.
        """
        if not data and self._reset is not None:
            self._fail(self._reset)
        else:
            self._received(data)

    def _received(self, data: bytes) -> None:
        if data:
            self._owner.dataReceived(data)
        else:
            self._owner.ended()

    def doWrite(self) -> None:
        """
        It is connected, or more can be sent.
        """
        if self._isClosed:
            return
        assert self.socket is not None
        self._reactor.removeWriter(self)
        if not self._isConnecting:
            self._writable()
            return
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(OSError(error, errno.errorcode.get(error, str(error))))
            return
        self._isConnecting = False
        self._reactor.addReader(self)
        self._owner.connected()

    def _writable(self) -> None:
        self._owner.writable()

    def connectionLost(self, reason: object) -> None:
        """
        The reactor has seen that the connection is broken: find out how.
        """
        if self._isClosed:
            return
        assert self.socket is not None
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(OSError(error, errno.errorcode.get(error, str(error))))
        else:
            self._readRest()

    def _readRest(self) -> None:
        self._isPaused = False
        while not self._isClosed:
            assert self.socket is not None
            try:
                data = self.socket.recv(READ_SIZE)
            except BlockingIOError:
                self._fail(OSError(errno.ECONNRESET, "ECONNRESET"))
                return
            except OSError as error:
                self._fail(error)
                return
            self._take(data)
            if not data:
                return

    def _failedToWrite(self, error: OSError) -> None:
        """
        What the other side sent before is still to be read.
        """
        if error.errno == errno.ECONNRESET:
            self._reset = error

        def readAndFail() -> None:
            self._reactor.removeReader(self)
            while not self._isClosed:
                assert self.socket is not None
                try:
                    data = self.socket.recv(READ_SIZE)
                except OSError:
                    break
                self._take(data)
                if not data:
                    break
            self._fail(error)

        if self.socket is not None and not self._isClosed:
            self._reactor.removeWriter(self)
            # Not from within the sending of the owner.
            self._reactor.callLater(0, readAndFail)

    def _fail(self, error: OSError) -> None:
        if not self._isClosed:
            self.close()
            self._owner.failed(error)

    def fileno(self) -> int:
        """
        See C{IFileDescriptor}.
        """
        return -1 if self.socket is None else self.socket.fileno()

    def logPrefix(self) -> str:
        """
        See C{ILoggingContext}.
        """
        return "kvcheck"
