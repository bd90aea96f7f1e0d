"""
The channel between the master and a worker: messages, and sockets with them.
"""

import marshal
import socket
import struct
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

MAX_DESCRIPTORS = 250
"""
The most sockets in one message. Linux takes 253 (SCM_MAX_FD, unix(7)).
"""

_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)

_LENGTH = struct.Struct("=I")

_FORMAT = 2
"""
The format of C{marshal}, which all Pythons read: an update may have replaced the one that the
master runs on.
"""

RECEIVE_SIZE = 64 * 1024
"""
How many bytes are received at once, at most.
"""


@implementer(IReadWriteDescriptor)
class Channel:
    """
    One end of a UNIX stream socket that carries messages, and sockets (SCM_RIGHTS, unix(7)).

    A message is a list of what C{marshal} can write; its length precedes it. C{marshal} costs a
    quarter of what JSON costs, and takes bytes. It trusts who writes, as it may: a worker has the
    rights of the master.

    It is a stream, because a stream gives what a killed peer has sent before it says that the peer
    is gone. A SEQPACKET socket says so first.
    """

    def __init__(
        self,
        poller: Any,
        end: socket.socket,
        received: Callable[[list[Any], list[int]], None],
        lost: Callable[[], None],
    ) -> None:
        """
        @param poller: Provides C{IReactorFDSet}.

        @param end: The socket. It must be non-blocking.

        @param received: Called with each message, and with the descriptors that came with it.

        @param lost: Called once, when the other end is gone.
        """
        self._poller = poller
        self._socket = end
        self.fileno = end.fileno
        self._received = received
        self._lost = lost
        # What has come, and how much of it has been given away.
        self._incoming = b""
        self._place = 0
        self._descriptors: list[int] = []
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._whenFlushed: list[Callable[[], None]] = []
        self.isOpen = True
        poller.addReader(self)

    def logPrefix(self) -> str:
        """
        Return the name for the log.
        """
        return "worker channel"

    def send(self, message: list[Any], descriptors: Sequence[int] = ()) -> None:
        """
        Send a message now, or as soon as the other end takes it.

        @param descriptors: At most L{MAX_DESCRIPTORS}. They must stay open until they are sent.
        """
        if not self.isOpen:
            return
        data = marshal.dumps(message, _FORMAT)
        self._unsent.append((_LENGTH.pack(len(data)) + data, descriptors))
        if len(self._unsent) == 1:
            self._flush()

    def whenFlushed(self, call: Callable[[], None]) -> None:
        """
        Call C{call} when the kernel has all that was sent; now, if it has.
        """
        if self._unsent:
            self._whenFlushed.append(call)
        else:
            call()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                if descriptors:
                    sent = socket.send_fds(self._socket, [data], descriptors)
                else:
                    sent = self._socket.send(data)
            except (BrokenPipeError, ConnectionResetError):
                # The other end is gone; the next read says so.
                self._unsent.clear()
                break
            except OSError:
                # The other end takes nothing now, or the kernel has no memory for it.
                self._poller.addWriter(self)
                return
            if sent < len(data):
                # The descriptors went with the first byte.
                self._unsent[0] = data[sent:], ()
            else:
                self._unsent.popleft()
        calls, self._whenFlushed = self._whenFlushed, []
        for call in calls:
            call()

    def doWrite(self) -> None:
        """
        Send what waits.
        """
        self._flush()
        if not self._unsent:
            self._poller.removeWriter(self)

    def doRead(self) -> None:
        """
        Receive messages.
        """
        self._receiveOnce()

    def receiveAll(self) -> None:
        """
        Receive all that has been sent so far.
        """
        while self._receiveOnce():
            continue

    def _receiveOnce(self) -> bool:
        """
        Receive what the kernel gives at once. When the other end is gone, say so.

        @return: May there be more?
        """
        data = self._receive() if self.isOpen else None
        if data == b"" and self.isOpen:
            self.close()
            self._lost()
        return bool(data)

    def _receive(self) -> bytes | None:
        """
        Receive, and give away the messages that are complete. What a message brings about may
        receive, too: the limits ask for the connections that have ended.

        @return: What has come; nothing: the other end is gone; None: nothing has come yet.
        """
        try:
            # socket.recv_fds ignores its flags, and nobody is to inherit the descriptors.
            data, ancillary, _, _ = self._socket.recvmsg(
                RECEIVE_SIZE, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError:
            return b""
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors += array("i", content)
        self._incoming, self._place = self._incoming[self._place :] + data, 0
        while (message := self._nextMessage()) is not None:
            # The descriptors of a message come with its first byte.
            self._received(marshal.loads(message), self._descriptors)
        return data

    def _nextMessage(self) -> bytes | None:
        """
        Return the next message that is complete, once; None: there is none.
        """
        begin = self._place + _LENGTH.size
        if begin > len(self._incoming):
            return None
        (length,) = _LENGTH.unpack_from(self._incoming, self._place)
        end = begin + length
        if end > len(self._incoming):
            return None
        self._place = end
        return self._incoming[begin:end]

    def connectionLost(self, reason: Failure) -> None:
        """
        The poller can't watch the channel any longer.
        """
        if self.isOpen:
            self.close()
            self._lost()

    def close(self) -> None:
        """
        Close this end: the other one sees the end of the stream.
        """
        if self.isOpen:
            self.isOpen = False
            self._poller.removeReader(self)
            self._poller.removeWriter(self)
            self._socket.close()
