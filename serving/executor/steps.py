"""From an engine's batch to a step of tokens: what runs, what is sent to the device, what comes out for whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.executor import Batch
from dispatchgym.serving.executor.inputs import HostStep

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a batch in the order in which they run, those with a single token first; shape (rows,) each.

    Attributes:
        order: place in the batch of each.
        request, start, tokens, slot: as in the batch.
        picks: logits wanted of each row, of its last tokens: all of a decoding row, one where a prompt ends, else none.
        is_new: the slot was another's, or its blocks were others.
    """

    order: I64
    request: I32
    start: I32
    tokens: I32
    slot: I32
    picks: I64
    is_new: npt.NDArray[np.bool_]

    @property
    def drafted(self) -> I64:
        """Rows that verify a draft."""
        return np.flatnonzero(self.picks > 1)

    @property
    def first_pick(self) -> I64:
        """First pick of each row, and their number; shape (rows + 1,)."""
        return np.concatenate([[0], np.cumsum(self.picks)])


def rows_of(batch: Batch, known: I32, is_new: npt.NDArray[np.bool_]) -> Rows:
    """The rows of a batch. `known`: tokens in each request's text, shape (rows,)."""
    order = np.argsort(batch.tokens != 1, kind="stable")
    decode = batch.decode == 1
    ends = batch.start + batch.tokens == known
    picks = np.where(decode, batch.tokens, ends).astype(np.int64)
    return Rows(
        order, batch.request[order], batch.start[order], batch.tokens[order], batch.slot[order], picks[order],
        is_new[order],
    )  # fmt: skip


def spans(first: I64 | I32, count: I64 | I32) -> I64:
    """first[0], first[0] + 1, .. (count[0] of them), first[1], ..; shape (sum of counts,)."""
    many = np.asarray(count, np.int64)
    before = np.cumsum(many) - many
    return np.asarray(np.arange(int(many.sum())) + np.repeat(np.asarray(first, np.int64) - before, many), np.int64)


def places_of(wanted: I32, among: I32) -> I64:
    """Where each of some distinct numbers is among the same numbers in another order."""
    order = np.argsort(among)
    return order[np.searchsorted(among, wanted, sorter=order)]


def host_step(rows: Rows, ids: I32) -> HostStep:
    """The step of these rows, with these token ids."""
    end = np.cumsum(rows.tokens)
    singles = int((rows.tokens == 1).sum())
    picked = spans(end - rows.picks, rows.picks).astype(np.int32)
    return HostStep(ids, rows.slot, rows.start, rows.tokens, picked, singles)


def new_cells(rows: Rows, table: I32, block_tokens: int) -> I32:
    """Blocks that the device's table lacks, int32 (3, n): slot, place, block."""
    held = np.where(rows.is_new, 0, -(-rows.start // block_tokens))
    count = -(-(rows.start + rows.tokens) // block_tokens) - held
    slot, place = np.repeat(rows.slot, count), spans(held, count)
    return np.stack([slot, place, table[slot, place]]).astype(np.int32)
