"""
The line that a connection begins with, over socket pairs, turn by turn.
"""

import pytest
from twisted.internet.address import IPv6Address
from twisted.internet.protocol import Protocol

from kvserver.connections.banner import MAX_LENGTH, Banner
from kvserver.connections.handover import LocalHandover
from kvserver.connections.record import CloseReason
from kvserver.listening.route import Route
from tests.support.memory import CLIENT_ADDRESS, PLENTY, MemoryServer, RecorderFactory


class ServerWithBanner(MemoryServer):
    """
    A server whose connections begin with a line.
    """

    def __init__(self, text: str, worker: int | None = None) -> None:
        super().__init__()
        banner = Banner(text, worker, "web1")
        self.handover = LocalHandover(self.factory, banner=banner)
        self.route = Route(self.connections, self.poller, self.handover, None)


@pytest.mark.parametrize(
    ("text", "worker", "line"),
    [
        ("hello", None, "hello"),
        ("%h %l %c %w", None, "web1 tcp:0 192.0.2.1:1024 -"),
        ("%w%w", 7, "77"),
        ("100%% %%h", None, "100% %h"),
        ("é\t", None, "é\t"),
    ],
)
def test_fields(text: str, worker: int | None, line: str) -> None:
    """
    The line says where the client has arrived.
    """
    server = ServerWithBanner(text, worker)
    pair = server.enter()
    assert pair.peer.recv(100) == line.encode() + b"\n"
    server.close()


def test_client() -> None:
    """
    The client is the one that a balancer has named.
    """
    pair = ServerWithBanner("x").enter()
    pair.transport.setClient(IPv6Address("TCP", "2001:db8::1", 5), None)
    assert Banner("%c").line(pair.transport) == b"[2001:db8::1]:5\n"
    pair.peer.close()


def test_staysOneLine() -> None:
    """
    Whatever the name of the listener, the banner is one line.
    """
    pair = ServerWithBanner("x").enter()
    pair.record.listener = "unix:/a\r\nb\udcff"
    assert Banner("%l").line(pair.transport) == b"unix:/a??b\xff\n"
    pair.peer.close()


@pytest.mark.parametrize(
    "text", ["", "%", "a%", "%x", "%H", "%\n", "a\nb", "a\r", "\n", "%% %", "x" * (MAX_LENGTH + 1)]
)
def test_wrong(text: str) -> None:
    """
    What can't be a banner is named.
    """
    with pytest.raises(ValueError, match="is not one line of 1 to 1000 characters") as caught:
        Banner(text)
    assert str(caught.value).startswith(repr(text))
    assert "\n" not in str(caught.value)


def test_earlyData() -> None:
    """
    What a client sends at once, its end included, is echoed after the banner; the banner counts as
    sent.
    """
    server = ServerWithBanner("first")
    pair = server.enter()
    pair.peer.sendall(b"one\ntwo\nrest")
    pair.peer.shutdown(1)
    assert server.collect(pair.peer, 18) == b"first\none\ntwo\nrest"
    assert pair.peer.recv(1) == b""
    (record,) = server.ended
    assert (record.received, record.sent) == (12, 18)
    assert record.reason is CloseReason.CLIENT_CLOSED
    server.close()


class Greeting(Protocol):
    """
    Speaks first.
    """

    def connectionMade(self) -> None:
        """
        Greet.
        """
        assert self.transport is not None
        self.transport.write(b"220 ready\n")


def test_first() -> None:
    """
    The banner comes before whatever the protocol says.
    """
    server = ServerWithBanner("first")
    server.factory.protocol = Greeting
    pair = server.enter()
    assert server.collect(pair.peer, 16) == b"first\n220 ready\n"
    server.close()


def test_fullSocket() -> None:
    """
    A banner that the socket does not take waits like any other byte, and nothing is read meanwhile.
    """
    server = ServerWithBanner("first")
    refused = server.enter()

    class Full(LocalHandover):
        """
        Fills the socket before the connection begins.
        """

        def _connect(self, transport: object) -> None:
            transport.write(PLENTY)  # type: ignore[attr-defined]
            super()._connect(transport)  # type: ignore[arg-type]

    server.route = Route(
        server.connections, server.poller, Full(RecorderFactory(), banner=Banner("first")), None
    )
    pair = server.enter()
    assert not pair.transport.isIdle()
    pair.peer.sendall(b"hello\n")
    for _ in range(3):
        server.turn()
    assert pair.protocol.events == []
    assert server.collect(pair.peer, len(PLENTY) + 6) == PLENTY + b"first\n"
    server.turn()
    assert pair.protocol.events == [b"hello\n"]
    refused.peer.close()
    server.close()


def test_refused() -> None:
    """
    A client that the factory refuses gets no banner.
    """
    server = ServerWithBanner("first")
    server.factory.buildProtocol = lambda addr: None  # type: ignore[method-assign]
    pair = server.enter(CLIENT_ADDRESS)
    assert pair.peer.recv(100) == b""
    server.close()
