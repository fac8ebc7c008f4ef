"""What the device knows of each slot, a row of the block table that a running request has to itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

I32 = npt.NDArray[np.int32]

_COLUMNS = 6


class SlotTable:
    """What the device knows of each slot: its blocks, its newest token, how its next one is drawn.

    Only what has changed is sent: the whole row after an admission, else the blocks that a step adds.

    Attributes:
        table: int32 (max_seqs + 1, blocks); the last row is for padding, and names the cache's block for that.
        newest: int32 (max_seqs + 1,).
        temperature, top_p: float32; top_k: int32; seeds: int64; all (max_seqs + 1,).
        padding: slot of rows that only fill up a step.
        admission: who the device knows to be in each slot, on the host.
    """

    def __init__(self, max_seqs: int, blocks: int, kv_blocks: int, device: torch.device) -> None:
        def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(max_seqs + 1, *shape, dtype=dtype, device=device)

        self.table = empty(torch.int32, blocks)
        self.newest = empty(torch.int32)
        self.temperature, self.top_p = empty(torch.float32), empty(torch.float32).fill_(1.0)
        self.top_k, self.seeds = empty(torch.int32), empty(torch.int64)
        self.admission: npt.NDArray[np.int64] = np.full(max_seqs, -1, np.int64)
        self.padding = max_seqs
        self.table[max_seqs] = kv_blocks

    def admit(self, slots: I32, admissions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Note who is in these slots; which of them are new there."""
        new: npt.NDArray[np.bool_] = self.admission[slots] != admissions
        self.admission[slots] = admissions
        return new

    def forget(self) -> None:
        """Nobody is in any slot."""
        self.admission[:] = -1

    def write(self, cells: torch.Tensor) -> None:
        """Blocks into the table; int32 (3, n): slot, place, block."""
        slot, place, block = cells
        self.table[slot.long(), place.long()] = block

    def pack(self, slots: I32, rows: npt.NDArray[Any]) -> I32:
        """Slots and the sampling of who is new there (rows of SEQUENCE), as bits to send and `place`; (6 n,)."""
        seed = np.ascontiguousarray(rows["seed"]).view(np.int32).reshape(-1, 2)
        columns = (
            slots, rows["temperature"].view(np.int32), rows["top_p"].view(np.int32), rows["top_k"], seed[:, 0],
            seed[:, 1],
        )  # fmt: skip
        return np.concatenate([np.ascontiguousarray(column) for column in columns], dtype=np.int32)

    def place(self, packed: torch.Tensor) -> None:
        """Take in what `pack` made."""
        slot, temperature, top_p, top_k, low, high = packed.view(_COLUMNS, -1)
        where = slot.long()
        self.temperature[where] = temperature.view(torch.float32)
        self.top_p[where] = top_p.view(torch.float32)
        self.top_k[where] = top_k
        self.seeds[where] = (high.long() << 32) | (low.long() & 0xFFFFFFFF)
