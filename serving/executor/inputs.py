"""A step as the device sees it, packed from an engine's batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class HostStep:
    """The rows of a step on the host, those with a single token first; T tokens in R rows.

    Attributes:
        ids: T token ids; -1 stands for the newest token of the row's slot, which only the device may know.
        slot: row of the block table, shape (R,).
        start: tokens held before, shape (R,).
        tokens: to run, shape (R,).
        picked: tokens of the step whose logits are wanted, rising, shape (picks,).
        singles: rows with one token.
    """

    ids: I32
    slot: I32
    start: I32
    tokens: I32
    picked: I32
    singles: int

    @property
    def first(self) -> npt.NDArray[np.int64]:
        """First token of each row, and T; shape (R + 1,)."""
        return np.concatenate([[0], np.cumsum(self.tokens)])


@dataclass(frozen=True, slots=True)
class Cut:
    """How a GPU attends over a step; int32, on the device.

    Attributes:
        slots, positions: of rows with a single token, which are the step's first.
        tiles: (tiles, 4): of the others, see `tiles_of`.
        tokens: of the largest tile.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    tiles: torch.Tensor
    tokens: int


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The same on the device, int32; T tokens in R rows.

    Attributes:
        ids: (T,) as in `HostStep`.
        positions: (T,) place of each token in its text.
        slots: (T,) row of `table` that each token's request has.
        picked: (picks,).
        table: (max_seqs, blocks): the device's copy of the block table, all of it.
        host: what kernels need to know before they run.
        cut: settled beforehand in captured passes; there rows and tiles may be those of nobody.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    picked: torch.Tensor
    table: torch.Tensor
    host: HostStep
    cut: Cut | None = None


def pack(step: HostStep) -> I32:
    """Token ids, positions, slots and picks one after another: what goes to the device in a single copy."""
    first = step.first
    within = np.arange(first[-1]) - np.repeat(first[:-1], step.tokens)
    positions = np.repeat(step.start, step.tokens) + within
    slots = np.repeat(step.slot, step.tokens)
    return np.concatenate([step.ids, positions, slots, step.picked], dtype=np.int32)


def unpack(packed: torch.Tensor, table: torch.Tensor, step: HostStep) -> StepInputs:
    """Views of a packed step that has come to the device."""
    ids, positions, slots, picked = torch.split(packed, [len(step.ids)] * 3 + [len(step.picked)])
    return StepInputs(ids, positions, slots, picked, table, step)
