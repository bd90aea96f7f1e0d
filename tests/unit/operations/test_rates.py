"""
What has happened in the last minutes, on a fake clock.
"""

import pytest

from kvserver.operations.rates import INTERVAL, SAMPLES, Rates
from tests.support.memory import MemoryServer


def test_rates() -> None:
    """
    Between each two samples the rate is the mean; the numbers of connections are those of the
    moments.
    """
    server = MemoryServer()
    rates = Rates(server.clock, server.connections)
    rates.startService()
    assert (rates.perSecond("work"), rates.values("connections")) == ([], [])
    pair = server.enter()
    pair.peer.sendall(b"x\n" * 20)
    server.turn()
    assert rates.latest.work == 0
    server.clock.advance(INTERVAL)
    server.enter()
    server.clock.advance(INTERVAL)
    assert rates.perSecond("work") == [20 / INTERVAL, 0]
    assert rates.perSecond("received") == rates.perSecond("sent") == [40 / INTERVAL, 0]
    assert rates.perSecond("accepted") == [1 / INTERVAL, 1 / INTERVAL]
    assert rates.values("connections") == [1, 2]
    assert (rates.latest.work, rates.uptime) == (20, 2 * INTERVAL)
    server.close()


def test_lateSample() -> None:
    """
    If the process was paused, the rate is the mean of all that time.
    """
    server = MemoryServer()
    rates = Rates(server.clock, server.connections)
    rates.startService()
    for _ in range(3):
        server.enter()
    server.clock.advance(3 * INTERVAL)
    assert rates.perSecond("accepted") == [pytest.approx(1 / INTERVAL)]
    server.close()


def test_bounded() -> None:
    """
    Old samples are dropped. After the end none is taken.
    """
    server = MemoryServer()
    rates = Rates(server.clock, server.connections)
    rates.startService()
    for _ in range(2 * SAMPLES):
        server.clock.advance(INTERVAL)
    assert len(rates.values("connections")) == len(rates.perSecond("sent")) == SAMPLES - 1
    rates.stopService()
    assert server.clock.getDelayedCalls() == []
