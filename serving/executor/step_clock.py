"""How long steps take, those included that still run when their successors are planned."""

from __future__ import annotations

import time
from collections import deque

FEW = 3
"""The first ones may have waited for a compiler."""


class StepClock:
    """Lays steps end to end: a step lasts from the end of the one before, or from its own beginning if that is later.

    A step that is not waited for is expected to last as long as others of its kind did lately: the median of those that
    were seen to end, once there are FEW. What that gets wrong, the next step makes good. A step that had ended before
    anybody looked tells nothing, for time went by idly.
    """

    def __init__(self) -> None:
        self._end_s = 0.0  # of the latest step, or when it is expected
        self._seen_s = 0.0  # when a step that was not waited for was last seen to end
        self._latest_s: deque[float] = deque(maxlen=5)
        self._launched_s = 0.0

    def waited(self, began_s: float) -> float:
        """Seconds of a step that is over now."""
        return self._lasts(began_s, time.perf_counter())

    def launched(self, began_s: float, launched_s: float, *, previous_ended: bool, idle: bool = False) -> float:
        """Seconds that a step will have taken which was launched, but is not waited for.

        Args:
            previous_ended: the step before, which was not waited for either, has just been seen to end.
            idle: it had ended before this one began.
        """
        now = time.perf_counter()
        if idle:
            self._end_s = min(self._end_s, began_s)
        elif previous_ended:
            self._latest_s.append(now - max(self._seen_s, self._launched_s))
        if previous_ended:
            self._seen_s = now
        self._launched_s = launched_s
        usual_s = sorted(self._latest_s)[len(self._latest_s) // 2] if len(self._latest_s) >= FEW else 0.0
        return self._lasts(began_s, now + usual_s)

    def _lasts(self, began_s: float, end_s: float) -> float:
        seconds = max(end_s - max(began_s, self._end_s), 1e-6)
        self._end_s = max(began_s, self._end_s) + seconds
        return seconds
