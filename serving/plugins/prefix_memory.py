"""What each replica was sent before, for rules that look for known prefixes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

CHUNK = 128


class PrefixMemory:
    """Prefixes in chunks of 128 characters, the least recently used forgotten first.

    Args:
        most_chunks: remembered per replica.
    """

    def __init__(self, most_chunks: int = 1 << 16) -> None:
        self._most = most_chunks
        self._known: dict[str, OrderedDict[int, None]] = {}

    def matched(self, replicas: Sequence[str], text: str) -> npt.NDArray[np.int64]:
        """Leading characters that each replica knows, shape (replicas,)."""
        chain = _chain(text)
        found = np.zeros(len(replicas), np.int64)
        for i, name in enumerate(replicas):
            known = self._known.get(name, ())
            found[i] = CHUNK * next((depth for depth, key in enumerate(chain) if key not in known), len(chain))
        return found

    def held(self, replicas: Sequence[str]) -> npt.NDArray[np.int64]:
        """Characters remembered of each replica, shape (replicas,)."""
        return np.array([CHUNK * len(self._known.get(name, ())) for name in replicas], np.int64)

    def sent(self, replica: str, text: str) -> None:
        """The replica now knows this text."""
        known = self._known.setdefault(replica, OrderedDict())
        for key in reversed(_chain(text)):  # so that a prefix outlives what follows it
            known[key] = None
            known.move_to_end(key)
        while len(known) > self._most:
            known.popitem(last=False)

    def keep(self, replicas: Sequence[str]) -> None:
        """Forget all others."""
        for gone in self._known.keys() - set(replicas):
            del self._known[gone]


def _chain(text: str) -> list[int]:
    keys: list[int] = []
    key = 0
    for start in range(0, len(text) - CHUNK + 1, CHUNK):
        key = hash((key, text[start : start + CHUNK]))
        keys.append(key)
    return keys
