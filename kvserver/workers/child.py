"""
A worker process: it serves the connections that the master hands over, and nothing else.
"""

import faulthandler
import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.interfaces import IAddress
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from kvserver.connections.banner import Banner
from kvserver.connections.certificates import Certificates
from kvserver.connections.handover import LocalHandover, begin
from kvserver.connections.limits import Limits
from kvserver.connections.poller import Poller
from kvserver.connections.record import ConnectionRecord
from kvserver.connections.registry import Connections
from kvserver.connections.throttle import SourceLog
from kvserver.served import load, unitOf
from kvserver.supervision.process import useMonotonicClock
from kvserver.workers.channel import Channel
from kvserver.workers.messages import GROUP_SIGNALS, fromAddress, fromEnd, fromProgress, toAddress

HEARTBEAT_INTERVAL = 1.0
"""
How often a worker says that it is alive, and how its connections go on, in seconds.
"""

HIGHEST = 1 << 16
"""
Up to how many descriptors L{highest} holds for.
"""

REPORT_INTERVAL = 0.02
"""
How long the end of a connection may wait to be reported with others, in seconds. A message for each
would cost the master as much as the connection itself.
"""


class MasterSourceLog(SourceLog):
    """
    Lets the master log the warnings that a client can cause: it throttles those of all workers.
    """

    def __init__(self, reactor: Any, send: Callable[[list[Any]], None]) -> None:
        """
        @param send: Sends a message.
        """
        super().__init__(reactor)
        self._send = send

    def warn(self, address: IAddress, text: str, **fields: object) -> None:
        """
        Log a warning about a client.
        """
        words = {
            name: value if isinstance(value, int) else str(value) for name, value in fields.items()
        }
        self._send(["warn", fromAddress(address), text, words])


class WorkerConnections(Connections):
    """
    The connections of a worker.
    """

    def warnOfBusy(self, count: int) -> None:
        """
        Do not log it: the master does, for all workers.
        """


class WorkerCertificates(Certificates):
    """
    The certificates of a worker: those that the master has loaded.
    """

    def warn(self, what: str, when: float) -> None:
        """
        Do not log it: the master does, for all workers.
        """


@implementer(ILogObserver)
class Child:
    """
    What runs in a worker process.
    """

    def __init__(self, reactor: Any, end: socket.socket) -> None:
        """
        @param reactor: The reactor that it runs on.

        @param end: The worker's end of the channel.
        """
        self._reactor = reactor
        # The master has its copy of a socket until it has read the acknowledgement.
        self._poller = Poller(reactor, areShared=True)
        self._channel = Channel(self._poller, end, self._receive, self._masterIsGone)
        self._ended: list[ConnectionRecord] = []
        # How far each connection was at the last heartbeat, by its id: one that stands still is not
        # reported. What it does without a byte is reported with the next one, or with its end.
        self._progress: dict[int, int] = {}
        self._deadline: float | None = None
        self._files: dict[str, bytes] = {}
        self._certificates: WorkerCertificates | None = None
        self._beating = LoopingCall(self._beat)
        self._beating.clock = reactor

    def __call__(self, event: LogEvent) -> None:
        """
        Send an event to the log of the master.
        """
        text = formatEvent(event)
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            text = f"{text}\n{failure.getTraceback()}"
        self._channel.send(["log", event["log_level"].name, event.get("log_namespace"), text])

    def _receive(self, message: list[Any], descriptors: list[int]) -> None:
        kind, *rest = message
        getattr(self, f"_on_{kind}")(*rest, descriptors)

    def _on_begin(self, settings: dict[str, Any], descriptors: list[int]) -> None:
        """
        Get ready to serve.
        """
        limits = Limits(**settings["limits"])
        # A client that has seen the end of its connection may come again at once, and must not be
        # refused because the master has not heard of that end.
        self._isExact = bool(limits.maxPerSource or limits.maxConnections)
        try:
            factory = load(settings["served"])
        except ValueError as error:
            self._channel.send(["failed", f"--protocol: {error}"])
            return
        self.connections = WorkerConnections(
            self._reactor, limits, self._report, unit=unitOf(factory)
        )
        self.connections.sourceLog = MasterSourceLog(self._reactor, self._channel.send)
        self.connections.startService()
        text = settings["banner"]
        banner = None if text is None else Banner(text, settings["number"])
        self._handovers = {False: LocalHandover(factory, banner=banner)}
        if settings["certificates"]:
            paths = self._unpack(settings["certificates"])
            self._certificates = WorkerCertificates(paths[0], paths[1], paths[2], self._read)
            self._handovers[True] = LocalHandover(factory, self._certificates, banner)
        for handover in self._handovers.values():
            handover.start()
        self._channel.send(["ready"])
        self._beating.start(HEARTBEAT_INTERVAL)

    def _unpack(self, packed: dict[str, Any]) -> list[Any]:
        self._files = packed["files"]
        paths: list[Any] = packed["paths"]
        return paths

    def _read(self, option: str, path: str) -> bytes:
        return self._files[option]

    def _on_take(self, descriptions: list[list[Any]], descriptors: list[int]) -> None:
        """
        Serve these connections. They are acknowledged before the first byte is read: what the
        master hands over again, because this worker has died, must be untouched.
        """
        taken = [socket.socket(fileno=number) for number in descriptors[: len(descriptions)]]
        del descriptors[: len(descriptions)]
        if missing := descriptions[len(taken) :]:
            self._channel.send(["missing", [description[0] for description in missing]])
            descriptions = descriptions[: len(taken)]
        self._channel.send(["took", [description[0] for description in descriptions]])
        self._channel.whenFlushed(lambda: self._serve(taken, descriptions))

    def _serve(self, taken: list[socket.socket], descriptions: list[list[Any]]) -> None:
        for accepted, description in zip(taken, descriptions, strict=True):
            number, listener, isTLS, *addresses = description
            peer, client, host = map(toAddress, addresses)
            assert peer is not None
            record = ConnectionRecord(listener, peer)
            record.id = number
            handover = self._handovers[isTLS]
            connection = handover.kind(
                accepted,
                record,
                self._poller,
                self.connections.ended,
                self.connections.sourceLog,
            )
            if client is not None:
                connection.setClient(client, host)
            self.connections.accepted(connection)
            begin(connection, handover.handOver)
        if self._deadline is not None:
            self.connections.drain(max(0.0, self._deadline - self._reactor.seconds()))

    def _on_drain(self, seconds: float, descriptors: list[int]) -> None:
        self._deadline = self._reactor.seconds() + seconds
        self.connections.isDraining = True
        self.connections.drain(seconds)

    def _on_abort(self, descriptors: list[int]) -> None:
        self._deadline = self._reactor.seconds()
        self.connections.drain(0)

    def _on_certificates(self, packed: dict[str, Any], descriptors: list[int]) -> None:
        """
        Use these certificates for new connections.
        """
        self._unpack(packed)
        if self._certificates is not None:
            self._certificates.load()

    def _report(self, record: ConnectionRecord) -> None:
        self._progress.pop(record.id, None)
        self._ended.append(record)
        if self._isExact:
            self._reportEnded()
        elif self._deadline is not None:
            self._poller.callSoon(self._reportEnded)
        elif len(self._ended) == 1:
            self._reactor.callLater(REPORT_INTERVAL, self._reportEnded)

    def _reportEnded(self) -> None:
        if self._ended:
            ended, self._ended = self._ended, []
            now = self._reactor.seconds()
            self._channel.send(["ended", [fromEnd(record, now) for record in ended]])

    def _beat(self) -> None:
        moved = []
        for connection in self.connections.byAge():
            progress, number = connection.progress(), connection.record.id
            if progress != self._progress.get(number):
                self._progress[number] = progress
                moved.append(fromProgress(connection.record, connection.work))
        times = os.times()
        self._channel.send(["beat", times.user + times.system, moved])

    def _masterIsGone(self) -> None:
        """
        Serve nobody new, and end when all connections have.
        """
        if not hasattr(self, "connections"):
            self._reactor.stop()
            return
        self.connections.stopService().addBoth(self._end)

    def _end(self, result: object) -> None:
        for handover in self._handovers.values():
            handover.stop()
        self._reactor.stop()


def highest(number: int) -> int:
    """
    Give a descriptor a number above those of all clients. When a process is killed, Linux ends its
    files from the highest number down: so the master knows of the end before a client does, and a
    client that comes again at once is not counted twice.

    @return: The new number.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The kernel has a table as long as the highest number.
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, min(soft, HIGHEST) - 1)
    os.close(number)
    return moved


def main() -> None:
    """
    Run a worker. Its arguments: the number of the descriptor of its channel, and the C{PYTHONPATH}
    of the master.
    """
    os.environ["PYTHONPATH"] = sys.argv[2]
    if not sys.argv[2]:
        del os.environ["PYTHONPATH"]
    for number in GROUP_SIGNALS:
        # Unlike SIG_IGN, this is not inherited by what a protocol starts.
        signal.signal(number, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    # A worker that hangs is made to say where, by SIGABRT.
    faulthandler.enable()
    from twisted.internet import reactor

    useMonotonicClock(reactor)
    end = socket.socket(fileno=highest(int(sys.argv[1])))
    end.setblocking(False)
    globalLogPublisher.addObserver(Child(reactor, end))
    cast(Any, reactor).run(installSignalHandlers=False)
