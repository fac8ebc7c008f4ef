"""What happened to a cluster, in order: the record that the validator replays and tables are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["bind", "move", "evict", "depart"]
KINDS: tuple[Kind, ...] = ("bind", "move", "evict", "depart")
"""In the order of the kernel's numbers."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    `slots`: numbers of the GPUs it holds (bind, move) or held (evict, depart) on `node`. `cause`: the pod it was
    evicted for, or the node it was moved from; -1 otherwise.
    """

    time: int
    kind: Kind
    pod: int
    node: int
    slots: tuple[int, ...]
    cause: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """Events in the order in which they happened; `rows`, int64, holds one a row as the kernel writes them."""

    rows: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: npt.NDArray[np.int64]) -> Log:
        """A copy, which the next step does not change."""
        return cls(rows.copy())

    def events(self) -> list[Event]:
        return [
            Event(time, KINDS[kind], pod, node, tuple(g for g in range(slots.bit_length()) if slots >> g & 1), cause)
            for time, kind, pod, node, slots, cause in self.rows.tolist()
        ]

    def __len__(self) -> int:
        return len(self.rows)
