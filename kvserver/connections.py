"""
Who is connected.
"""

from collections.abc import Iterator

from twisted.application.service import Service

from kvserver.protocol import EchoProtocol


class Connections(Service):
    """
    Every live connection; the place of the guide's C{Task.Supervisor}.

    A connection is temporary, in the sense of OTP: one that ends, for whatever reason, is forgotten
    and never restarted.
    """

    name = "connections"

    def __init__(self) -> None:
        self._live: set[EchoProtocol] = set()

    def __len__(self) -> int:
        """
        How many there are.
        """
        return len(self._live)

    def __iter__(self) -> Iterator[EchoProtocol]:
        """
        Each of them, as of now: it may end, and others may begin, while the caller goes through
        them.
        """
        return iter(list(self._live))

    def add(self, protocol: EchoProtocol) -> None:
        """
        C{protocol} is connected.
        """
        self._live.add(protocol)

    def discard(self, protocol: EchoProtocol) -> None:
        """
        C{protocol} is connected no more.
        """
        self._live.discard(protocol)
