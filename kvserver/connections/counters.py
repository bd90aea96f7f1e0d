"""
Sums over all connections that have ended.
"""

from bisect import bisect_left
from collections import Counter

from kvserver.connections.record import CloseReason, ConnectionRecord

DURATION_BUCKETS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
"""
The upper bounds of the buckets in the histogram of durations, in seconds.
"""


class Counters:
    """
    Sums over all connections that have ended, and two counts of what listeners accept.

    @ivar accepted: Connections accepted, including those that have not ended.

    @ivar acceptedBy: The same, by the name of the listener.

    @ivar endedBy: Connections ended, by the name of the listener.

    @ivar acceptPauses: How often a listener has stopped accepting for a while because accept(2)
        failed.

    @ivar ended: Connections ended, by reason.

    @ivar work: The work that the protocols have done, by their own count.

    @ivar received: Bytes received for the protocols.

    @ivar sent: Bytes of the protocols that were handed to the kernel.

    @ivar durations: Connections by duration: one count for each bucket of L{DURATION_BUCKETS}, not
        cumulative, and one for all that lasted longer.

    @ivar duration: The sum of the durations, in seconds.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.acceptedBy = Counter[str]()
        self.endedBy = Counter[str]()
        self.acceptPauses = 0
        self.ended = dict.fromkeys(CloseReason, 0)
        self.work = 0
        self.received = 0
        self.sent = 0
        self.durations = [0] * (len(DURATION_BUCKETS) + 1)
        self.duration = 0.0

    def add(self, record: ConnectionRecord) -> None:
        """
        Add the record of a connection that has ended.
        """
        assert record.reason is not None
        assert record.duration is not None
        self.ended[record.reason] += 1
        self.endedBy[record.listener] += 1
        self.work += record.work
        self.received += record.received
        self.sent += record.sent
        self.durations[bisect_left(DURATION_BUCKETS, record.duration)] += 1
        self.duration += record.duration

    def live(self, listener: str) -> int:
        """
        Return how many connections of a listener have not ended.
        """
        return self.acceptedBy[listener] - self.endedBy[listener]
