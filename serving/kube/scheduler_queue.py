"""Pods that wait for a node: urgent ones first, failed ones after a pause or once something has changed.

As in kube-scheduler: an active queue by priority, then arrival; a back-off of 1 s doubling to 10 s after each
failure; pods that fit nowhere are set aside until the cluster changes, and tried again after 5 minutes anyway.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 10.0
ASIDE_S = 300.0


@dataclass(slots=True)
class _Entry:
    uid: str
    priority: int
    number: int  # order of arrival
    failures: int = 0
    ready_at: float = 0.0
    is_aside: bool = False
    is_gone: bool = False
    given_at: int = 0  # count of wakes when it was handed out
    ticket: int = 0  # only the newest heap entry counts


@dataclass(slots=True)
class PodQueue:
    """Safe to use from several threads; holds uids, not pods."""

    clock: Callable[[], float] = time.monotonic
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _active: list[tuple[int, int, int, str]] = field(default_factory=list)
    _later: list[tuple[float, int, str]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _tickets: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _wakes: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, uid: str, priority: int) -> None:
        """A pod that waits; nothing happens if it is known."""
        with self._changed:
            if uid not in self._entries:
                entry = self._entries[uid] = _Entry(uid, priority, next(self._numbers))
                self._activate(entry)

    def remove(self, uid: str) -> None:
        """It was bound or deleted."""
        with self._changed:
            entry = self._entries.pop(uid, None)
            if entry:
                entry.ticket = 0

    def pop(self, timeout_s: float = 0.0) -> str | None:
        """The next pod to decide, None if there is none in time. It stays known until `remove` or a `retry`."""
        with self._changed:
            end = self.clock() + timeout_s
            while True:
                now = self.clock()
                self._promote(now)
                while self._active:
                    _, _, ticket, uid = heapq.heappop(self._active)
                    entry = self._entries.get(uid)
                    if entry and entry.ticket == ticket:
                        entry.ticket = 0
                        entry.given_at = self._wakes
                        return uid
                left = end - now
                if left <= 0:
                    return None
                if self._later:
                    left = min(left, max(0.0, self._later[0][0] - now))
                self._changed.wait(max(left, 0.001))

    def retry(self, uid: str, *, set_aside: bool, failed: bool = True) -> None:
        """It was not bound. Try again after a pause, or, `set_aside`, once `wake` tells that something has changed.

        A change since it was handed out counts: the decision may not have seen it.

        Args:
            failed: it had its turn, and must pause; otherwise it was only held back.
        """
        with self._changed:
            entry = self._entries.get(uid)
            if entry is None:
                return
            pause = min(FIRST_BACKOFF_S * 2.0**entry.failures, LONGEST_BACKOFF_S) if failed else 0.0
            entry.failures = min(entry.failures + failed, 10)
            entry.ready_at = self.clock() + pause
            entry.is_aside = set_aside and entry.given_at == self._wakes
            self._defer(entry, entry.ready_at if not entry.is_aside else self.clock() + ASIDE_S)

    def wake(self) -> None:
        """The cluster has changed so that a pod that fitted nowhere may fit now."""
        with self._changed:
            self._wakes += 1
            for entry in self._entries.values():
                if entry.is_aside:
                    entry.is_aside = False
                    self._defer(entry, entry.ready_at)

    def __len__(self) -> int:
        """Pods that wait, those handed out included."""
        return len(self._entries)

    @property
    def num_aside(self) -> int:
        """Pods that fitted nowhere."""
        with self._changed:
            return sum(entry.is_aside for entry in self._entries.values())

    def _activate(self, entry: _Entry) -> None:
        entry.ticket = next(self._tickets)
        heapq.heappush(self._active, (-entry.priority, entry.number, entry.ticket, entry.uid))
        self._changed.notify()

    def _defer(self, entry: _Entry, until: float) -> None:
        entry.ticket = next(self._tickets)
        heapq.heappush(self._later, (until, entry.ticket, entry.uid))
        self._changed.notify()

    def _promote(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            _, ticket, uid = heapq.heappop(self._later)
            entry = self._entries.get(uid)
            if entry and entry.ticket == ticket:
                entry.is_aside = False
                self._activate(entry)
