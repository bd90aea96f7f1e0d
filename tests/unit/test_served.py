"""
Protocols of anybody's, served in place of the echo: in memory, over socket pairs.
"""

import socket
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ILoggingContext
from twisted.internet.protocol import Factory, Protocol, ServerFactory, connectionDone
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.protocols.basic import FileSender
from twisted.protocols.finger import Finger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer
from zope.interface.verify import verifyClass, verifyObject

from kvserver.connections.drain import DRAIN_INTERVAL, QUIET_PERIOD
from kvserver.connections.limits import Limits
from kvserver.connections.output import CORK_SIZE
from kvserver.connections.record import CloseReason
from kvserver.echo.factory import EchoFactory
from kvserver.echo.protocol import EchoProtocol
from kvserver.interfaces import ICountsWork, IDrainable
from kvserver.served import load, unitOf
from tests.support.memory import PLENTY, MemoryServer, Pair, Watched, isReadable
from tests.support.protocols import Failing, Greeting, PouringLess, Shouting, Thinking, poured


class Asking(Protocol):
    """
    Can't be built without an argument.
    """

    def __init__(self, question: str) -> None:
        pass


class Keeping(Protocol):
    """
    Keeps what happens to it.
    """

    def __init__(self) -> None:
        self.lost: list[Any] = []

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Keep it.
        """
        self.lost.append(reason.type)


class FactoryOfKeeping(ServerFactory):
    """
    A factory, as somebody may have written it.
    """

    protocol = Keeping


def aFactory() -> Factory:
    """
    Make a factory.
    """
    return FactoryOfKeeping()


def aProtocol() -> type[Protocol]:
    """
    Find a protocol.
    """
    return Keeping


def unable() -> Factory:
    """
    Fail.
    """
    raise ZeroDivisionError("no\nfactory")


GIVEN = FactoryOfKeeping()


@pytest.fixture
def served() -> Iterator[Callable[..., MemoryServer]]:
    """
    Houses in which a protocol is served.
    """
    memoryServers: list[MemoryServer] = []

    def serve(protocol: Any, limits: Limits | None = None, verbose: bool = False) -> MemoryServer:
        factory: Any = Factory.forProtocol(protocol) if isinstance(protocol, type) else protocol
        memoryServers.append(MemoryServer(limits, factory, verbose=verbose))
        return memoryServers[-1]

    yield serve
    for memoryServer in memoryServers:
        memoryServer.close()


# Finding it.


def test_interfaces() -> None:
    """
    The echo says all that can be said, and so can others.
    """
    assert verifyObject(IDrainable, EchoProtocol())
    assert verifyObject(ICountsWork, EchoProtocol())
    assert verifyClass(IDrainable, Thinking)
    assert unitOf(EchoFactory()) == "lines"
    assert unitOf(Factory.forProtocol(Thinking)) == "thoughts"
    assert unitOf(FactoryOfKeeping()) is unitOf(Site(Resource())) is None


@pytest.mark.parametrize("name", ["Keeping", "FactoryOfKeeping", "aFactory", "aProtocol", "GIVEN"])
def test_load(name: str) -> None:
    """
    A protocol, a factory, a class of factories, and what makes one of these.
    """
    factory = load(f"tests.unit.test_served.{name}")
    assert isinstance(factory.buildProtocol(None), Keeping)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "'' is not the name of a Protocol class, "),
        ("echo", "'echo' is not the name of a Protocol class, "),
        (
            "tests.unit.test_served.CORK_SIZE",
            "'tests.unit.test_served.CORK_SIZE' is not the name of",
        ),
        (
            "tests.unit.test_served.Pair",
            "'tests.unit.test_served.Pair' can't be used: TypeError: ",
        ),
        ("", "'' is not the name of a Protocol class"),
        ("tests.nowhere.Echo", "'tests.nowhere.Echo' can't be used: "),
        (
            "nowhere.Echo",
            "'nowhere.Echo' can't be used: there is no module 'nowhere' (is its folder in "
            "PYTHONPATH?)",
        ),
        (
            "tests.unit.test_served.Asking",
            "'tests.unit.test_served.Asking' can't be used: TypeError: missing a required "
            "argument: 'question'",
        ),
        ("tests.unit.test_served.nothing", "'tests.unit.test_served.nothing' can't be used: "),
        (
            "tests.unit.test_served.unable",
            "'tests.unit.test_served.unable' can't be used: ZeroDivisionError: no factory",
        ),
    ],
)
def test_cannotLoad(name: str, reason: str) -> None:
    """
    What can't be served is named, in one line.
    """
    with pytest.raises(ValueError, match=r".") as caught:
        load(name)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


# What it can rely on.


def test_fewSegments(served: Callable[..., MemoryServer]) -> None:
    """
    What is written piece by piece goes out in two sends at most, in order.
    """
    memoryServer = served(Shouting)
    pair = memoryServer.enter()
    sends = Watched(pair).sends
    pair.peer.sendall(b"hello\nis it me\n" * 50)
    memoryServer.turn()
    assert pair.peer.recv(10_000) == b"HELLO\nIS IT ME\n" * 50
    assert len(sends) == 2
    assert sum(sends) == 15 * 50


def test_corkHasAnEnd(served: Callable[..., MemoryServer]) -> None:
    """
    No more is collected than the cork holds: a producer that writes at once what it has is paused.
    """

    class Producing(Protocol):
        transport: Any
        paused = False
        written = 0

        def dataReceived(self, data: bytes) -> None:
            self.transport.registerProducer(self, True)
            while not self.paused:
                self.transport.write(b"x" * 1000)
                self.written += 1000

        def pauseProducing(self) -> None:
            self.paused = True

        def resumeProducing(self) -> None:
            self.transport.unregisterProducer()

        def stopProducing(self) -> None:
            pass

    memoryServer = served(Producing)
    pair = memoryServer.enter()
    pair.peer.sendall(b"go")
    memoryServer.turn()
    assert pair.protocol.paused
    kernel = pair.record.sent
    assert pair.protocol.written - kernel < 2 * CORK_SIZE
    assert memoryServer.collect(pair.peer, pair.protocol.written) == b"x" * pair.protocol.written


def test_fileSender(served: Callable[..., MemoryServer]) -> None:
    """
    A pull producer of Twisted's own sends all it has.
    """
    memoryServer = served(Keeping)
    pair = memoryServer.enter()
    done: list[object] = []
    sending = FileSender().beginFileTransfer(BytesIO(PLENTY), pair.transport)
    sending.addCallback(done.append)
    assert memoryServer.collect(pair.peer, len(PLENTY)) == PLENTY
    memoryServer.turn()
    assert done == [PLENTY[-1:]]


def test_closesFirst(served: Callable[..., MemoryServer]) -> None:
    """
    A protocol that closes while the client still sends, and has read nothing, loses nothing: all
    arrives, then FIN. What the client still sends is dropped.
    """
    memoryServer = served(PouringLess)
    pair = memoryServer.enter(overTCP=True)
    pair.peer.sendall(b"nobody reads this")
    expected = b"".join(poured(PouringLess.size, PouringLess.chunk))
    assert memoryServer.collect(pair.peer, len(expected)) == expected
    memoryServer.turn()
    assert pair.peer.recv(1) == b""
    pair.peer.sendall(b"nor this")
    memoryServer.turn()
    pair.peer.close()
    memoryServer.turn()
    assert len(memoryServer.connections) == 0
    assert memoryServer.ended[-1].reason is CloseReason.CLIENT_CLOSED
    assert memoryServer.ended[-1].sent == len(expected)


def test_speaksFirst(served: Callable[..., MemoryServer]) -> None:
    """
    A protocol may speak first, and then it knows the client's address.
    """
    memoryServer = served(Greeting)
    pair = memoryServer.enter()
    memoryServer.turn()
    assert pair.peer.recv(100) == b"hello 192.0.2.1\n"
    pair.peer.sendall(b"x")
    memoryServer.turn()
    assert pair.peer.recv(100) == b"bye\n"
    pair.peer.close()
    memoryServer.turn()
    assert len(memoryServer.connections) == 0


def test_flushesBeforeTheEnd(served: Callable[..., MemoryServer]) -> None:
    """
    A protocol that knows no half-close hears of the client's end when all has been sent.
    """
    memoryServer = served(Keeping)
    pair = memoryServer.enter()
    pair.transport.write(PLENTY)
    pair.peer.shutdown(socket.SHUT_WR)
    memoryServer.turn()
    assert pair.protocol.lost == []
    assert memoryServer.collect(pair.peer, len(PLENTY)) == PLENTY
    memoryServer.turn()
    assert pair.protocol.lost == [ConnectionDone]
    assert pair.peer.recv(1) == b""


def test_failsAlone(served: Callable[..., MemoryServer]) -> None:
    """
    A protocol that raises ends its own connection alone, with the reason C{error}.
    """
    memoryServer = served(Failing)
    pair, other = memoryServer.enter(), memoryServer.enter()
    pair.peer.sendall(b"x")
    memoryServer.turn()
    assert [record.reason for record in memoryServer.ended] == [CloseReason.ERROR]
    assert other.transport.connected


@pytest.mark.parametrize("method", ["connectionMade", "connectionLost", "isIdle", "close"])
def test_failsAnywhere(served: Callable[..., MemoryServer], method: str) -> None:
    """
    It may raise in any method, with one error in the log: the connection is gone, nothing of it
    remains, and the drain comes to its end.
    """

    def fails(*arguments: object) -> None:
        raise ZeroDivisionError(method)

    with capturedLogs() as logs:
        memoryServer = served(type("FailingThere", (Thinking,), {method: fails}))
        memoryServer.connections.startService()
        pair = memoryServer.enter()
        done: list[object] = []
        memoryServer.connections.stopService().addCallback(done.append)
        memoryServer.passes(2 * DRAIN_INTERVAL + QUIET_PERIOD)
        if method == "connectionLost":
            assert pair.peer.recv(100) == b"goodbye\n"
            pair.peer.close()
            memoryServer.turn()
        assert done == [None]
    (failure,) = (event for event in logs if event["log_level"] is LogLevel.error)
    assert failure["log_failure"].getErrorMessage() == method
    (record,) = memoryServer.ended
    expected = CloseReason.DRAINED if method in ("connectionLost", "close") else CloseReason.ERROR
    assert record.reason is expected


def test_aborts(served: Callable[..., MemoryServer]) -> None:
    """
    A protocol may abort a connection: that is no fault in the daemon.
    """

    class Aborting(Protocol):
        transport: Any

        def dataReceived(self, data: bytes) -> None:
            self.transport.abortConnection()

    memoryServer = served(Aborting)
    memoryServer.enter().peer.sendall(b"x")
    memoryServer.turn()
    (record,) = memoryServer.ended
    assert record.reason is not CloseReason.ERROR


def test_countFails(served: Callable[..., MemoryServer]) -> None:
    """
    A protocol that can't say what it has done loses its connection, and no other one: who asks
    looks after all.
    """

    class Lost(Shouting):
        @property
        def count(self) -> int:  # type: ignore[override]
            if self.isLost:
                raise LookupError("lost count")
            return 1

        isLost = False

    memoryServer = served(Lost)
    one, two = memoryServer.enter(), memoryServer.enter()
    one.protocol.isLost = True
    with capturedLogs() as logs:
        assert memoryServer.connections.counts() == (1, 0, 0)
        assert memoryServer.connections.counts() == (1, 0, 0)
        memoryServer.turn()
    assert list(memoryServer.connections) == [two.transport]
    assert one.record.reason is CloseReason.ERROR
    assert formatEvent(logs[0]).endswith("can't count its work, and is aborted")
    assert "lost count" in logs[0]["log_failure"].getTraceback()


def test_nameFails(served: Callable[..., MemoryServer]) -> None:
    """
    A protocol that fails, and also when the log asks for its name, fails alone.
    """

    @implementer(ILoggingContext)
    class Nameless(Protocol):
        def logPrefix(self) -> str:
            raise LookupError("no name")

        dataReceived = connectionLost = logPrefix  # type: ignore[assignment]

    memoryServer = served(Nameless)
    one, two = memoryServer.enter(), memoryServer.enter()
    one.peer.sendall(b"x")
    with capturedLogs() as logs:
        memoryServer.turn()
    assert list(memoryServer.connections) == [two.transport]
    assert one.record.reason is CloseReason.ERROR
    assert logs[0]["connection"] == "Nameless,1,192.0.2.1"


def test_workInTheLog(served: Callable[..., MemoryServer]) -> None:
    """
    With --log-level=debug the end of a connection has the protocol's own unit.
    """
    with capturedLogs() as logs:
        memoryServer = served(Shouting, verbose=True)
        pair = memoryServer.enter()
        pair.peer.sendall(b"hello\nis it me\n")
        pair.peer.shutdown(socket.SHUT_WR)
        while len(memoryServer.connections):
            memoryServer.turn()
    *_, end = logs
    assert (end["ending"], end["shouts"]) == ("client_closed", 2)
    assert "lines" not in end


# What it is held to.


def test_drain(served: Callable[..., MemoryServer]) -> None:
    """
    A drain waits for the answer that a protocol says it owes, and lets it say goodbye; one that
    says nothing of that is closed when its bytes are at rest.
    """
    memoryServer = served(Thinking)
    memoryServer.connections.startService()
    pair = memoryServer.enter()
    pair.peer.sendall(b"???")
    memoryServer.turn()
    done: list[object] = []
    memoryServer.connections.stopService().addCallback(done.append)
    memoryServer.passes(5)
    assert done == []
    pair.protocol.answer()
    assert pair.peer.recv(100) == b"!!!"
    memoryServer.passes(1)
    assert pair.protocol.closed
    assert pair.peer.recv(100) == b"goodbye\n"
    pair.peer.close()
    memoryServer.passes(2 * DRAIN_INTERVAL)
    assert done == [None]
    (record,) = memoryServer.ended
    assert (record.unit, record.work, record.reason) == ("thoughts", 3, CloseReason.DRAINED)


def test_timeouts(served: Callable[..., MemoryServer]) -> None:
    """
    Idle, and unread: by the same rules as the echo. One that speaks unasked counts, too.
    """
    memoryServer = served(Keeping, Limits(idleTimeout=4, writeTimeout=4))
    memoryServer.connections.startService()
    idle, stuck = memoryServer.enter(), memoryServer.enter(overTCP=True)
    stuck.transport.write(PLENTY * 20)
    memoryServer.waitUntilFull(stuck)
    memoryServer.passes(7)
    assert idle.record.reason is CloseReason.IDLE_TIMEOUT
    assert stuck.record.reason is CloseReason.WRITE_TIMEOUT
    assert len(memoryServer.connections) == 0


def test_limits(served: Callable[..., MemoryServer]) -> None:
    """
    The limits of the echo are those of all.
    """
    memoryServer = served(Keeping, Limits(maxConnections=2, maxPerSource=1))
    memoryServer.enter()
    refused = memoryServer.enter()
    assert refused.record.reason is CloseReason.REFUSED
    assert refused.peer.recv(1) == b""
    assert len(memoryServer.connections) == 1


# Twisted's own.


def test_finger(served: Callable[..., MemoryServer]) -> None:
    """
    A protocol that nobody here wrote, of Twisted's.
    """
    memoryServer = served(Finger)
    pair = memoryServer.enter()
    pair.peer.sendall(b"moshez\r\n")
    memoryServer.turn()
    assert pair.peer.recv(1000) == b"Login: moshez\nNo such user\n"
    pair.peer.close()
    memoryServer.turn()
    assert len(memoryServer.connections) == 0


def test_web(served: Callable[..., MemoryServer]) -> None:
    """
    Twisted's HTTP server, with a large page, twice on one connection.
    """

    class Page(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return PLENTY

    site = Site(Page())
    site.doStart()
    memoryServer = served(site)
    pair: Pair = memoryServer.enter(overTCP=True)
    for _ in range(2):
        pair.peer.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, body = memoryServer.collect(pair.peer, len(PLENTY)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        body += memoryServer.collect(pair.peer, len(PLENTY) - len(body))
        assert body == PLENTY
    pair.peer.shutdown(socket.SHUT_WR)
    while not isReadable(pair.peer):
        memoryServer.turn()
    assert pair.peer.recv(1) == b""
    site.doStop()
