"""How fast a load may go: never above a rate, and slower still where Cassandra gets slow, so that reads survive it."""

import math
import time
from collections.abc import Callable

CREDIT_SECONDS = 0.05
"""A sender that comes late may catch up with so much: threads don't wake on the dot."""
WINDOW_SECONDS = 1.0
"""How long latencies are gathered before they are judged; after a step back, nothing else is made of the same trouble."""
STEPS_BACK_UP = 20
"""Windows without trouble from one row under way to all that are allowed."""


class Throttle:
    """A token bucket, and the rows that may be under way at once: halved in trouble, then raised step by step.

    `rows_per_second` 0 means no limit. Rows sent between any two moments t seconds apart are at most rate x (t +
    CREDIT_SECONDS), and those of the last send. Not safe for several threads at once.
    """

    def __init__(
        self, rows_per_second: float, most: int, slow_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = most
        """Rows that may be under way now, from 1 to `most`."""
        self._rate, self._most, self._slow, self._clock = rows_per_second, most, slow_seconds, clock
        self._free_at = self._window_ends = -math.inf
        self._stepped_back = False
        self._latencies: list[float] = []

    def pause(self, rows: int) -> float:
        """Seconds to wait before these rows are sent, as they then must be."""
        if not self._rate:
            return 0.0
        now = self._clock()
        begin = max(self._free_at, now - CREDIT_SECONDS)
        self._free_at = begin + rows / self._rate
        return max(0.0, begin - now)

    def took(self, seconds: float) -> None:
        """A write was acknowledged after so long."""
        self._judge()
        self._latencies.append(seconds)

    def busy(self) -> None:
        """A write was not taken, or timed out."""
        self._judge()
        self._step_back()

    def _judge(self) -> None:
        """Once a window: what its latencies say."""
        now = self._clock()
        if now < self._window_ends:
            return
        if self._latencies and _p99(self._latencies) > self._slow:
            self._step_back()
        elif not self._stepped_back:
            self.limit = min(self._most, self.limit + math.ceil(self._most / STEPS_BACK_UP))
        self._window_ends, self._stepped_back, self._latencies = now + WINDOW_SECONDS, False, []

    def _step_back(self) -> None:
        """Not for every row of one bad moment: they were under way together."""
        if not self._stepped_back:
            self.limit = max(1, self.limit // 2)
        self._stepped_back = True


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]
