"""
What the operations site shows besides metrics: the state of the daemon, and who is connected.
"""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from kvserver import __version__
from kvserver.connections.addresses import formatAddress
from kvserver.connections.connection import Connection
from kvserver.connections.registry import Connections
from kvserver.listening.listener import Listener
from kvserver.operations.accesslog import describe
from kvserver.operations.rates import INTERVAL, Rates
from kvserver.workers.pool import Pool

SHOWN = 100
"""
How many of the oldest connections are shown, and how many of the newest.
"""

SEARCHED = 5000
"""
From how many connections, from either end, those with an address are chosen. Each takes about 0.3
us, and no connection is served meanwhile.
"""


class Overview:
    """
    Describes the daemon as of now. The time that this takes is bounded, however many connections
    there are.
    """

    def __init__(
        self,
        reactor: Any,
        connections: Connections,
        rates: Rates,
        listeners: Callable[[], Iterable[Listener]],
        restarts: Callable[[], Mapping[str, int]],
        notReadyReason: Callable[[], str | None],
        drainDelay: float = 0,
        pool: Pool | None = None,
    ) -> None:
        """
        @param reactor: Provides C{IReactorTime}.

        @param rates: What has happened in the last minutes.

        @param listeners: Returns the listeners.

        @param restarts: Returns how often each listener has been restarted, by its name.

        @param notReadyReason: Returns why the daemon is not ready. None: it is ready.

        @param drainDelay: How long clients are accepted after the signal to stop, in seconds.

        @param pool: The workers. None: there are none.
        """
        self._reactor = reactor
        self._connections = connections
        self._rates = rates
        self._listeners = listeners
        self._restarts = restarts
        self._notReadyReason = notReadyReason
        self._drainDelay = drainDelay
        self._pool = pool
        self._host = socket.gethostname()

    def describe(self, address: str = "") -> dict[str, Any]:
        """
        Describe the daemon, in values that JSON has.

        @param address: Only connections with this in the address of their peer or client are shown.
        """
        oldest, newest = self._choose(address)
        return {
            "name": "kvserver",
            "version": __version__,
            "host": self._host,
            "uptime": round(self._rates.uptime, 3),
            "ready": self._notReadyReason() or "ready",
            "unit": self._connections.unit,
            "listeners": list(self._describeListeners()),
            "workers": list(self._describeWorkers()),
            "limits": self._limits(),
            "totals": self._totals(),
            "rates": self._describeRates(),
            "address": address,
            "oldest": [self._describe(connection) for connection in oldest],
            "newest": [self._describe(connection) for connection in newest],
        }

    def _choose(self, address: str) -> tuple[list[Connection], list[Connection]]:
        """
        Choose the connections to show.

        @return: The oldest and the newest, both by age, the oldest first. None is in both.
        """

        def isMeant(connection: Connection) -> bool:
            record = connection.record
            client = record.client
            return address in formatAddress(record.peer) or (
                client is not None and address in formatAddress(client)
            )

        connections = self._connections
        count = len(connections)
        # Together, the two ends must not meet.
        most = SEARCHED if address else SHOWN
        front = islice(connections.byAge(), most)
        back = islice(connections.byAge(newestFirst=True), min(most, max(0, count - most)))
        if not address:
            return list(front), list(back)[::-1]
        oldest = list(filter(isMeant, front))
        newest = list(islice(filter(isMeant, back), SHOWN))[::-1]
        # Few in the newer half: the newest of the older half are the next ones.
        missing = SHOWN - len(newest)
        first, rest = oldest[:SHOWN], oldest[SHOWN:]
        return first, [*rest[max(0, len(rest) - missing) :], *newest]

    def _describe(self, connection: Connection) -> dict[str, Any]:
        record = connection.record
        seconds = round(self._reactor.seconds() - record.acceptedAt, 3)
        described = describe(record, connection.work, record.sent, seconds)
        # None until a worker has it.
        return described if self._pool is None else {**described, "worker": record.worker}

    def _describeListeners(self) -> Iterator[dict[str, Any]]:
        restarts, counters = self._restarts(), self._connections.counters
        for listener in self._listeners():
            name = listener.spec.name
            yield {
                "listener": name,
                "address": str(listener.spec.binding),
                "listening": listener.isListening(),
                "connections": counters.live(name),
                "accepted": counters.acceptedBy[name],
                "restarts": restarts[name],
            }

    def _describeWorkers(self) -> Iterator[dict[str, Any]]:
        pool = self._pool
        if pool is not None:
            loads, cpu = pool.loads(), pool.cpu()
            for number, load in loads.items():
                process = pool.current.get(number)
                yield {
                    "worker": number,
                    "pid": process and process.pid,
                    "ready": process is not None and process.isServing,
                    "connections": load,
                    "cpu_seconds": round(cpu[number], 3),
                    "restarts": max(0, pool.restarts[number]),
                }

    def _limits(self) -> dict[str, Any]:
        limits = self._connections.limits
        return {
            "max_connections": self._connections.maxConnections,
            "max_connections_per_source": limits.maxPerSource,
            "idle_timeout": limits.idleTimeout,
            "write_timeout": limits.writeTimeout,
            "drain_timeout": limits.drainTimeout,
            "drain_delay": self._drainDelay,
        }

    def _totals(self) -> dict[str, Any]:
        latest, unit = self._rates.latest, self._connections.unit
        return {
            "connections": len(self._connections),
            "accepted": self._connections.counters.accepted,
            **({} if unit is None else {unit: latest.work}),
            "bytes_in": latest.received,
            "bytes_out": latest.sent,
        }

    def _describeRates(self) -> dict[str, Any]:
        unit = self._connections.unit
        series = {
            "connections": self._rates.values("connections"),
            "accepted": self._rates.perSecond("accepted"),
            **({} if unit is None else {unit: self._rates.perSecond("work")}),
            "bytes_in": self._rates.perSecond("received"),
            "bytes_out": self._rates.perSecond("sent"),
        }
        return {
            "interval": INTERVAL,
            **{name: [round(value, 3) for value in values] for name, values in series.items()},
        }
