"""
A TCP proxy that breaks what passes it, on purpose.
"""

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

from typing_extensions import Self


class Relay:
    """
    One connection through a proxy, which does no harm. Subclasses do.

    @ivar number: Its number, from 0.

    @ivar client: The socket to the client.

    @ivar server: The socket to the server.
    """

    def __init__(self, proxy: "FaultyProxy", number: int, client: socket.socket) -> None:
        self.proxy = proxy
        self.number = number
        self.client = client
        self.server = socket.create_connection(("127.0.0.1", proxy.target))
        for side in (client, self.server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """
        Pass on what comes, in both directions.
        """
        for work in (self._up, self._down):
            threading.Thread(target=work, daemon=True).start()

    def _up(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(1 << 16):
                self.up(data)
            self.upEnds()

    def _down(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.server.recv(1 << 16):
                self.down(data)
            self.downEnds()

    def up(self, data: bytes) -> None:
        """
        The client has sent something.
        """
        self.server.sendall(data)

    def down(self, data: bytes) -> None:
        """
        The server has sent something.
        """
        self.client.sendall(data)

    def upEnds(self) -> None:
        """
        The client has sent FIN.
        """
        self.server.shutdown(socket.SHUT_WR)

    def downEnds(self) -> None:
        """
        The server has sent FIN.
        """
        self.client.shutdown(socket.SHUT_WR)


class Whole(Relay):
    """
    Breaks what the server has sent, as soon as so much of it is there.

    @ivar end: How many bytes it waits for.
    """

    end = 0

    def start(self) -> None:
        """
        See L{Relay}.
        """
        self._held: bytearray | None = bytearray()
        super().start()

    def down(self, data: bytes) -> None:
        """
        See L{Relay}.
        """
        if self._held is not None:
            self._held += data
            if len(self._held) < self.end:
                return
            data, self._held = self.broken(bytes(self._held)), None
        self.client.sendall(data)

    def downEnds(self) -> None:
        """
        See L{Relay}.
        """
        if self._held:
            self.client.sendall(self._held)
        super().downEnds()

    def broken(self, data: bytes) -> bytes:
        """
        What is made of it.
        """
        return data


def breaking(end: int, how: Callable[[bytes], bytes]) -> type[Relay]:
    """
    Breaks, of the first connection, what the server has sent when so much of it is there.
    """

    class Breaking(Whole):
        def start(self) -> None:
            self.end = end if self.number == 0 else 0
            super().start()

        def broken(self, data: bytes) -> bytes:
            return how(data) if self.number == 0 else data

    return Breaking


class Early(Relay):
    """
    Lets parts of lines through before they are complete.
    """

    _early = 0

    def up(self, data: bytes) -> None:
        """
        See L{Relay}.
        """
        if not data.endswith(b"\n"):
            self._early += len(data)
            self.client.sendall(data)
        super().up(data)

    def down(self, data: bytes) -> None:
        """
        See L{Relay}.
        """
        cut = min(self._early, len(data))
        self._early -= cut
        super().down(data[cut:])


class NoFIN(Relay):
    """
    Does not pass on the client's FIN.
    """

    def upEnds(self) -> None:
        """
        See L{Relay}.
        """


class FINToRST(Relay):
    """
    Resets when the client sends FIN.
    """

    def upEnds(self) -> None:
        """
        See L{Relay}.
        """
        # The client first: the end of the server's side would be passed on to it as FIN.
        for side in (self.client, self.server):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A close does nothing while another thread is in recv.
            side.shutdown(socket.SHUT_RD)
            side.close()


class NoTail(Relay):
    """
    Drops an unterminated last line.
    """

    _line = b""

    def up(self, data: bytes) -> None:
        """
        See L{Relay}.
        """
        whole, lf, self._line = (self._line + data).rpartition(b"\n")
        super().up(whole + lf)


class Delay(Relay):
    """
    Is 200 ms late once in 1,000 lines.
    """

    _lines = 0

    def down(self, data: bytes) -> None:
        """
        See L{Relay}.
        """
        before = self._lines // 1000
        self._lines += data.count(b"\n")
        if self._lines // 1000 > before:
            time.sleep(0.2)
        super().down(data)


class IdleCut(Relay):
    """
    Closes what is silent for 3 s.
    """

    def start(self) -> None:
        """
        See L{Relay}.
        """
        self.client.settimeout(3)
        super().start()

    def _up(self) -> None:
        try:
            while data := self.client.recv(1 << 16):
                self.up(data)
        except OSError:
            for side in (self.client, self.server):
                side.shutdown(socket.SHUT_RDWR)


class Buffering(Relay):
    """
    Takes whatever it gets.
    """

    def start(self) -> None:
        """
        See L{Relay}.
        """
        self._queue: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._send, daemon=True).start()
        super().start()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._queue.get():
                self.server.sendall(data)
            self.server.shutdown(socket.SHUT_WR)

    def up(self, data: bytes) -> None:
        """
        See L{Relay}.
        """
        self._queue.put(data)

    def upEnds(self) -> None:
        """
        See L{Relay}.
        """
        self._queue.put(b"")


class Crossed(Relay):
    """
    Gives the first two connections each other's first line.
    """

    _held = b""
    _isDone = False

    def down(self, data: bytes) -> None:
        """
        See L{Relay}.
        """
        if self._isDone or self.number > 1:
            super().down(data)
            return
        self._held += data
        line, lf, rest = self._held.partition(b"\n")
        if lf:
            self._isDone = True
            swap = self.proxy.swap
            swap[self.number].put(line + lf)
            super().down(swap[1 - self.number].get(timeout=10) + rest)


class FaultyProxy:
    """
    The proxy.

    @ivar target: The port of the server.

    @ivar port: Where it listens.

    @ivar accepted: How many connections it has accepted.

    @ivar swap: What the connections of L{Crossed} give each other.
    """

    def __init__(
        self,
        target: int,
        relay: type[Relay] = Relay,
        refusesEach: int | None = None,
        port: int = 0,
    ) -> None:
        """
        @param refusesEach: Resets each connection of that number.

        @param port: Where to listen; 0 picks a free one.
        """
        self.target = target
        self.swap: list[queue.Queue[bytes]] = [queue.Queue(), queue.Queue()]
        self._relay = relay
        self._relays: list[Relay] = []
        self.accepted = 0
        self._refusesEach = refusesEach
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                if self._refusesEach and number % self._refusesEach == self._refusesEach - 1:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                else:
                    relay = self._relay(self, number, client)
                    self._relays.append(relay)
                    relay.start()
                number += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        # That also wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for relay in self._relays:
            for side in (relay.client, relay.server):
                with contextlib.suppress(OSError):
                    # By RST: the daemon is not to wait for what nobody will read.
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    # That also wakes the threads that use it.
                    side.shutdown(socket.SHUT_RDWR)
                    side.close()
