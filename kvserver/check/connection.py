"""
One checked connection: what it sends, what comes back, how it ends.
"""

import ssl
from collections.abc import Callable

from zope.interface import implementer

from kvserver.check import run as runs
from kvserver.check.banner import Banner
from kvserver.check.compare import Comparison
from kvserver.check.reasons import RESETS, meaningOf, reasonOf
from kvserver.check.run import End, IChecked, Run
from kvserver.check.sending import Sending
from kvserver.check.stream import ISource
from kvserver.check.target import formatAddress, proxyHeader, proxySource
from kvserver.check.tls import TLSTransport
from kvserver.check.transport import IOwner, Transport
from kvserver.check.waiting import Waiting

QUIET = 1.0
"""
When something wrong has come, and then nothing for so long, in seconds, nothing more is expected.
"""


@implementer(IOwner, IChecked)
class CheckedConnection(Sending, Waiting):
    """
    A connection to the target.

    @ivar number: Its number in the run, from 0.

    @ivar local: Our end of it, as the other end's log has it; None: it is not established.

    @ivar connectTimeout: How long it may take to be accepted, in seconds.

    @ivar banner: The line that comes before the echo.

    @ivar beginnings: The first bytes that came after it.

    @ivar lastReceived: When something came, by the monotonic clock, in seconds.

    @ivar onPassed: Called with how many lines are behind us.

    @ivar onOpen: Called when lines can be sent.

    @ivar onEnd: Called when it has ended.

    @ivar announced: Whom the PROXY header has named, if there is one.

    @ivar failure: Why it could not be established.
    """

    def __init__(
        self, run: Run, source: ISource | None = None, sizes: tuple[int, int] | None = None
    ) -> None:
        """
        @param source: Its lines, if they are not those of the run.

        @param sizes: How long its lines are, if it is not as in the settings.
        """
        self.run = run
        self.number = run.begins(self)
        self.connectTimeout = run.settings.timeout
        if sizes is not None:
            run.sizes[self.number] = sizes
        self.local: str | None = None
        self.failure: str | None = None
        self.announced: str | None = None
        self.beginnings = b""
        self.banner = Banner(run.settings.hasBanner)
        self.onPassed: Callable[[int], None] = lambda count: None
        self.onOpen: Callable[[], None] = lambda: None
        self.onEnd: Callable[[], None] = lambda: None
        super().__init__(run.clock, source or run.foreign(self.number))
        foreign = run.foreign if source is None else None
        self.comparison = Comparison(self.source, run.faults, self.number, foreign, self._passed)
        self._peerEnded = False
        self._isPaused = False
        self._begunAt = self._stageBegan = self.lastReceived = run.clock()
        self._addresses = list(run.addresses)
        self._waiting = []
        self._now = 0.0

    linesSent = property(lambda self: self.comparison.sentLines)
    linesReturned = property(lambda self: self.comparison.returnedLines)
    bytesSent = property(lambda self: self.comparison.sent)
    bytesReturned = property(lambda self: self.comparison.returnedBytes)

    # Connecting

    def begin(self) -> None:
        """
        Connect.
        """
        settings = self.run.settings
        family, address = self._addresses.pop(0)
        if settings.context is not None:
            self.transport = TLSTransport(
                self.run.reactor, self, settings.context, settings.serverName
            )
        else:
            self.transport = Transport(self.run.reactor, self)
        try:
            self.transport.connect(family, address)
        except OSError as error:
            self.run.reactor.callLater(0, self.failed, error)

    def connected(self) -> None:
        """
        See L{IOwner}.
        """
        raw = self.transport.socket
        assert raw is not None
        try:
            name, peer = raw.getsockname(), raw.getpeername()
        except OSError as error:
            self.transport.close()
            self.failed(error)
            return
        self.local = self.comparison.local = formatAddress(name)
        self._stageBegan = now = self.run.clock()
        if self.run.latency is not None:
            self.run.latency.connect.record(now - self._begunAt)
        if "proxy" in self.run.settings.target.layers:
            source = proxySource(self.run.settings.proxySource, name)
            self.announced = formatAddress(source)
            header = proxyHeader(
                self.run.settings.proxyVersion, source, peer if isinstance(peer, tuple) else None
            )
            self.transport.send(header)
        if isinstance(self.transport, TLSTransport):
            self.transport.secure()
        else:
            self._opened()

    def secured(self) -> None:
        """
        See L{IOwner}.
        """
        if self.run.latency is not None:
            self.run.latency.handshake.record(self.run.clock() - self._stageBegan)
        self._opened()

    def _opened(self) -> None:
        if self.ending is None:
            self.isOpen = True
            self.run.opened += 1
            self._progress = self.lastReceived = self.run.clock()
            self.onOpen()
            self.pump()
            self._check()

    def isAllBack(self) -> bool:
        """
        Is all back that was to be sent?
        """
        return self.comparison.difference is None and self.comparison.position >= self._goal

    def isQuiet(self) -> bool:
        """
        Has something wrong come, and then nothing more for a while?
        """
        isWrong = self.ending is None and self.comparison.difference is not None
        return isWrong and self.run.clock() - self.lastReceived > QUIET

    def canSend(self) -> bool:
        """
        Is it established?
        """
        return self.isOpen

    # Receiving

    def pauseReading(self) -> None:
        """
        Read nothing for now.
        """
        self._isPaused = True
        self.transport.pauseReading()

    def resumeReading(self) -> None:
        """
        Read again.
        """
        self._isPaused = False
        self._progress = self.lastReceived = self.run.clock()
        self.transport.resumeReading()

    def dataReceived(self, data: bytes) -> None:
        """
        See L{IOwner}.
        """
        if self.ending is not None:
            return
        data = self.banner.received(data) if self.banner.isDue else data
        self._now = now = self.run.clock()
        self._progress = self.lastReceived = now
        if len(self.beginnings) < 256:
            self.beginnings += data[:256]
        if self.run.pauses is not None:
            self.run.pauses.look(now)
        comparison = self.comparison
        before = comparison.line
        comparison.received(data, now)
        self.run.echoed(now)
        if comparison.line != before:
            self.onPassed(comparison.line - before)
        if self._waiting:
            self._check()

    def _passed(self, count: int, inPlace: bool) -> None:
        flight = self._flight
        latency, pauses = self.run.latency, self.run.pauses
        if latency is None or pauses is None or not inPlace:
            for _ in range(min(count, len(flight))):
                flight.popleft()
            return
        now = self._now
        intended, actual = latency.intended.record, latency.actual.record
        for _ in range(count):
            due, written = flight.popleft()
            if due < pauses.lastEnd:
                pauses.lines += 1
            else:
                intended(now - due)
                actual(now - written)

    def writable(self) -> None:
        """
        See L{IOwner}.
        """
        self.pump()
        if self._waiting:
            self._check()

    # Ending

    def look(self, now: float) -> None:
        """
        See L{IChecked}.
        """
        timeout = self.run.settings.timeout
        if not self.isOpen:
            if self.local is None:
                if now - self._stageBegan > self.connectTimeout:
                    self._failedToConnect(f"no answer in {self.connectTimeout:g} s", runs.REFUSED)
            elif now - self._stageBegan > timeout:
                self.failure = f"the TLS handshake was not done in {timeout:g} s"
                self.end(runs.TIMEOUT)
            return
        isSending = self.comparison.sent < self._goal
        if not self._isPaused and (self.owes or isSending) and now - self._progress > timeout:
            self.end(runs.TIMEOUT)
        elif self._waiting:
            self._check()

    def ended(self) -> None:
        """
        See L{IOwner}.
        """
        self._now = self.run.clock()
        if not self.isOpen:
            self.failure = "the other side closed during the TLS handshake"
            self.end(runs.DROPPED)
        elif self._outputEnded:
            self._peerEnded = True
            self.end(runs.CLOSED)
        else:
            self.end(runs.CUT if self.comparison.isMidLine else runs.DROPPED)

    def failed(self, error: OSError) -> None:
        """
        See L{IOwner}.
        """
        if isinstance(error, ssl.SSLError):
            if not self.isOpen:
                self.failure = f"TLS handshake failed: {reasonOf(error)}"
            self.end(runs.ALERT)
        elif self.local is not None:
            if not self.isOpen:
                self.failure = "reset during the TLS handshake"
            self.end(runs.RESET)
        elif error.errno in RESETS:
            self._failedToConnect("reset", runs.RESET)
        else:
            self._failedToConnect(meaningOf(error), runs.REFUSED)

    def _failedToConnect(self, why: str, ending: str) -> None:
        if self.ending is not None:
            return
        self.transport.close()
        if self._addresses:
            self._stageBegan = self.run.clock()
            self.begin()
        else:
            self.failure = why
            self.end(ending)

    def end(self, ending: str) -> None:
        """
        It has ended in this way, or is to.
        """
        if self.ending is not None:
            return
        self.ending = ending
        now = self.run.clock()
        self._now = now
        if ending in (runs.CLOSED, runs.DROPPED, runs.CUT, runs.ALERT):
            self.transport.close()
        else:
            self.transport.abort()
        if self.failure is not None and self.run.whyNot is None:
            self.run.whyNot = self.failure
        # What was in flight when we were interrupted is no loss.
        self.comparison.finish(self._peerEnded and not self.run.interrupted, now)
        position = self.comparison.position
        outstanding = max(0, self.comparison.sent - position)
        end = End(self.number, self.local, ending, position, outstanding, now)
        self.run.noteEnd(self, end)
        self.source.forget()
        self.onEnd()
        self._check()

    def close(self) -> None:
        """
        End it by our own doing.
        """
        self.end(runs.CLOSED)

    def reset(self) -> None:
        """
        End it by RST, by our own doing.
        """
        self.transport.abort()
        self.end(runs.CLOSED)
