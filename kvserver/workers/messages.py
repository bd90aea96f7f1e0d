"""
What master and worker must agree on: how messages are written, and whose signals are whose.
"""

import signal
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from kvserver.connections.certificates import Certificates
from kvserver.connections.record import CloseReason, ConnectionRecord

GROUP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""
The signals that a terminal or systemd sends to every process of the group. They are the master's.
"""


def fromAddress(address: IAddress | None) -> list[Any] | None:
    """
    Write an address.
    """
    if address is None:
        return None
    if isinstance(address, IPv4Address):
        return [4, address.host, address.port]
    if isinstance(address, IPv6Address):
        return [6, address.host, address.port, address.flowInfo, address.scopeID]
    path = getattr(address, "name", None)
    return [0, path and path.decode("utf-8", "surrogateescape")]


def toAddress(written: list[Any] | None) -> IAddress | None:
    """
    Read an address.
    """
    if written is None:
        return None
    family, *rest = written
    if family == 4:
        return IPv4Address("TCP", *rest)
    if family == 6:
        return IPv6Address("TCP", *rest)
    (path,) = rest
    return UNIXAddress(path and path.encode("utf-8", "surrogateescape"))


def fromProgress(record: ConnectionRecord, work: int) -> list[Any]:
    """
    Write what has become of a connection so far.

    @param work: What the protocol has done, by its own count.
    """
    return [record.id, record.received, record.sent, work, record.tls, record.subject]


def toProgress(record: ConnectionRecord, written: list[Any]) -> int:
    """
    Read it into the record.

    @return: What the protocol has done, by its own count.
    """
    _, record.received, record.sent, work, record.tls, record.subject = written
    assert isinstance(work, int)
    return work


def fromEnd(record: ConnectionRecord, now: float) -> list[Any]:
    """
    Write the end of a connection, and how long ago it was: another process may have another clock.
    """
    reason = record.reason and record.reason.value
    assert record.endedAt is not None
    progress = fromProgress(record, record.work)
    return [progress, reason, record.unacknowledged, now - record.endedAt]


def toEnd(record: ConnectionRecord, written: list[Any], now: float) -> None:
    """
    Read it into the record.
    """
    progress, reason, record.unacknowledged, ago = written
    record.endedAt = now - ago
    record.work = toProgress(record, progress)
    record.closeWith(CloseReason(reason))


def fromCertificates(certificates: Certificates) -> dict[str, Any]:
    """
    Write the certificates that the master has loaded.
    """
    return {
        "paths": certificates.paths,
        "files": certificates.files,
    }
