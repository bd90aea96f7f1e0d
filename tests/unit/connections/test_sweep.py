"""
How a sweep takes turns with the traffic.
"""

from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock, Cooperator

from kvserver.connections import sweep
from kvserver.connections.connection import Connection
from kvserver.connections.sweep import VISITS_PER_STEP, Sweep


def test_takesTurns(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    After a few visits a sweep asks whether the reactor is to have its turn.
    """
    visited: list[Connection] = []
    asked: list[int] = []

    def isTimeOver() -> bool:
        asked.append(len(visited))
        return False

    def visit(connection: Connection) -> bool:
        visited.append(connection)
        return False

    asking = partial(Cooperator, terminationPredicateFactory=lambda: isTimeOver)
    monkeypatch.setattr(sweep, "Cooperator", asking)
    clock = Clock()
    connections: Any = range(2 * VISITS_PER_STEP + 1)
    sweeping = Sweep(clock, lambda: iter(connections), visit)
    sweeping.start(60)
    clock.advance(0)
    assert asked == [VISITS_PER_STEP, 2 * VISITS_PER_STEP, len(connections)]
    sweeping.stop()
