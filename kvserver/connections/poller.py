"""
Watches the sockets of all connections, for the reactor.
"""

import select
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IReactorFDSet,
    IReadDescriptor,
    IReadWriteDescriptor,
)
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.connections.connection import DONE

_log = Logger(namespace="kvserver.poller.Poller")

EVENTS_PER_TURN = 256
"""
The most connections that are served at one look. A turn of the reactor has two at most, and then
timers have theirs.
"""


@implementer(IReactorFDSet, IReadDescriptor)
class Poller:
    """
    The poller acts as the reactor of the connections. To the real reactor it is one file
    descriptor, which is readable as soon as a connection has an event.

    That saves 2 us per line, a quarter of its cost. The reactor sets a context for the log around
    each event; here, there is one such context for each batch of events. The kernel allows an
    epoll(7) to watch another epoll, so this works with any reactor of Twisted's. Avoiding the
    context in the reactor itself would take its private methods.
    """

    _hasNew = False

    def __init__(self, reactor: Any, areShared: bool = False) -> None:
        """
        @param reactor: Provides C{IReactorFDSet} and C{IReactorTime}.

        @param areShared: May other processes have the same sockets open?

        @ivar turn: The number of turns of the reactor in which there were events.
        """
        self.turn = 0
        self._areShared = areShared
        self._reactor = reactor
        self._epoll = select.epoll()
        self._watched: dict[int, IReadWriteDescriptor] = {}
        self._events: dict[int, int] = {}
        self._isServing = False
        self._soon: list[Callable[[], None]] = []
        self.callLater = reactor.callLater

    def addReader(self, reader: Any) -> None:
        """
        Watch whether a descriptor has bytes to read.
        """
        self._setInterest(reader, select.EPOLLIN, 0)

    def addWriter(self, writer: Any) -> None:
        """
        Watch whether bytes can be written to a descriptor.
        """
        self._setInterest(writer, select.EPOLLOUT, 0)

    def removeReader(self, reader: Any) -> None:
        """
        No longer watch whether a descriptor has bytes to read.
        """
        self._setInterest(reader, 0, select.EPOLLIN)

    def removeWriter(self, writer: Any) -> None:
        """
        No longer watch whether bytes can be written to a descriptor.
        """
        self._setInterest(writer, 0, select.EPOLLOUT)

    def _setInterest(self, descriptor: Any, more: int, less: int) -> None:
        number = descriptor.fileno()
        before = self._events.get(number, 0)
        after = (before | more) & ~less
        if after == before:
            return
        if not after:
            self._epoll.unregister(number)
            del self._watched[number], self._events[number]
            return
        if before:
            self._epoll.modify(number, after)
        else:
            if not self._watched:
                self._reactor.addReader(self)
            self._epoll.register(number, after)
            self._watched[number] = descriptor
            self._hasNew = True
        self._events[number] = after

    def callSoon(self, call: Callable[[], None]) -> None:
        """
        Call C{call} when all that is ready has been served. At the end of a turn that costs less
        than another turn of the reactor.
        """
        self._soon.append(call)
        if len(self._soon) == 1 and not self._isServing:
            self._reactor.callLater(0, self._callAll)

    def _callAll(self) -> None:
        calls, self._soon = self._soon, []
        for call in calls:
            try:
                call()
            except Exception:
                _log.failure("What was to be done at the end of a turn failed")

    def isReading(self, descriptor: Any) -> bool:
        """
        Is the descriptor watched for bytes that come in?
        """
        return bool(self._events.get(descriptor.fileno(), 0) & select.EPOLLIN)

    def readNow(self, descriptor: Any) -> None:
        """
        Read what the kernel has, before the reactor asks it. After a pause of the process, timers
        come before the bytes that have arrived during the pause.
        """
        if not self.isReading(descriptor):
            return
        try:
            why = descriptor.doRead()
            if why is not None:
                self._end(descriptor, why, True)
        except BaseException as error:
            self._fail(descriptor, error)

    def remove(self, descriptor: Any) -> None:
        """
        No longer watch a descriptor at all.
        """
        self._setInterest(descriptor, 0, select.EPOLLIN | select.EPOLLOUT)

    def forget(self, descriptor: Any) -> None:
        """
        No longer watch a descriptor that is about to be closed. The close removes it from the
        epoll, unless another process has the socket open, too.
        """
        if self._areShared:
            self.remove(descriptor)
            return
        number = descriptor.fileno()
        if self._watched.pop(number, None) is not None:
            del self._events[number]

    def removeAll(self) -> list[Any]:
        """
        No longer watch any descriptor.

        @return: The descriptors that were watched.
        """
        removed = list(self._watched.values())
        for descriptor in removed:
            self.remove(descriptor)
        return removed

    def getReaders(self) -> list[Any]:
        """
        Return the descriptors that are watched for reading.
        """
        return self._watchedFor(select.EPOLLIN)

    def getWriters(self) -> list[Any]:
        """
        Return the descriptors that are watched for writing.
        """
        return self._watchedFor(select.EPOLLOUT)

    def _watchedFor(self, event: int) -> list[Any]:
        return [self._watched[number] for number, events in self._events.items() if events & event]

    def fileno(self) -> int:
        """
        Return the file descriptor of the epoll.
        """
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """
        Return the name in the log that all connections share.
        """
        return "connections"

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor has ended: end every connection that is watched.
        """
        for descriptor in self.removeAll():
            self.lose(descriptor, reason)

    def doRead(self) -> None:
        """
        Serve the connections that are ready. Then look once more if some were accepted: often their
        first line has already arrived, and a look costs less than a turn of the reactor. Also look
        once more if calls wait (L{callSoon}): in a larger hand-over a connection costs up to a
        quarter less.
        """
        self.turn += 1
        self._hasNew = False
        self._isServing = True
        try:
            self._serve()
            if self._hasNew or self._soon:
                self._serve()
        finally:
            self._isServing = False
        if self._soon:
            self._callAll()

    def _serve(self) -> None:
        """
        Serve the connections that are ready. An exception ends only the connection that raised it,
        whatever it is: as with Twisted's own transports, a C{SystemExit} does not end the process.
        """
        watched = self._watched
        for number, event in self._epoll.poll(0, EVENTS_PER_TURN):
            descriptor = watched.get(number)
            if descriptor is None:
                # A connection that was served before it has closed it.
                continue
            why: Any
            try:
                if event == select.EPOLLIN:
                    reads, why = True, descriptor.doRead()
                else:
                    reads, why = self._readAndWrite(descriptor, number, event)
                if why is not None:
                    self._end(descriptor, why, reads)
            except BaseException as error:
                self._fail(descriptor, error)

    def _readAndWrite(
        self, descriptor: IReadWriteDescriptor, number: int, event: int
    ) -> tuple[bool, Any]:
        """
        Serve a connection of which the kernel says more than that bytes have come in.

        @return: Was it read from last, and why it has ended, if it has.
        """
        why: Any = None
        reads = False
        # A hang-up or an error may come without EPOLLIN and EPOLLOUT. The read or the write then
        # finds out what it is.
        wanted = self._events[number]
        if event & ~select.EPOLLOUT and wanted & select.EPOLLIN:
            reads = True
            why = descriptor.doRead()
        writes = event & ~select.EPOLLIN and wanted & select.EPOLLOUT
        # The read may have ended the connection.
        if writes and why is None and self._watched.get(number) is descriptor:
            reads = False
            why = descriptor.doWrite()
        return reads, why

    def _fail(self, descriptor: Any, error: BaseException) -> None:
        """
        A connection has raised an exception: it ends, and no other one.
        """
        _log.failure(
            "{connection} failed, and is closed",
            connection=descriptor.logPrefix(),
            level=LogLevel.error,
        )
        self.lose(descriptor, Failure(error))

    def _end(self, descriptor: Any, why: Exception, reads: bool) -> None:
        """
        End a connection, or only its receiving half if the peer sends no more.
        """
        if why is not CONNECTION_DONE:
            descriptor.connectionLost(Failure(why))
        elif reads and IHalfCloseableDescriptor.providedBy(descriptor):
            descriptor.readConnectionLost(DONE)
        else:
            descriptor.connectionLost(DONE)

    def lose(self, descriptor: Any, reason: Failure) -> None:
        """
        End a connection, even if that raises an exception.
        """
        try:
            descriptor.connectionLost(reason)
        except BaseException:
            _log.failure(
                "{connection} failed while it was closed",
                connection=descriptor.logPrefix(),
                level=LogLevel.error,
            )
        self.remove(descriptor)
