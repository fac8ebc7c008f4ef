"""How long steps take, those included that still run when their successors are planned."""

from __future__ import annotations

import time


class StepClock:
    """Lays steps end to end: a step lasts from the end of the one before, or from its own beginning if that is later.

    A step that is not waited for is expected to last as long as the latest of its kind that was seen to end; what that
    gets wrong, the next step makes good.
    """

    def __init__(self) -> None:
        self._end_s = 0.0  # of the latest step, or when it is expected
        self._seen_s = 0.0  # when a step that was not waited for was last seen to end
        self._usual_s = 0.0
        self._launched_s = 0.0

    def waited(self, began_s: float) -> float:
        """Seconds of a step that is over now."""
        return self._lasts(began_s, time.perf_counter())

    def launched(self, began_s: float, launched_s: float, *, previous_ended: bool) -> float:
        """Seconds that a step will have taken which was launched, but is not waited for.

        Args:
            previous_ended: the step before, which was not waited for either, has just been seen to end.
        """
        now = time.perf_counter()
        if previous_ended:
            self._usual_s = now - max(self._seen_s, self._launched_s)
            self._seen_s = now
        self._launched_s = launched_s
        return self._lasts(began_s, now + self._usual_s)

    def _lasts(self, began_s: float, end_s: float) -> float:
        seconds = max(end_s - max(began_s, self._end_s), 1e-6)
        self._end_s = max(began_s, self._end_s) + seconds
        return seconds
