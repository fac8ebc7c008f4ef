"""A run over time, in bins: what the batches were made of, how full the KV pool was, who waited."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.record import Record

BINS = 120

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Values a bin, shape (bins,); a step counts where it starts.

    Args:
        prefill_tps, decode_tps: tokens run a second of the bin.
        kv: share of the KV blocks in use, weighted by the steps' times; where no step starts, as in the bin before if
            its last step still runs, else 0.
        waiting, running: requests, in the same way.
        preemptions: in the bin.
    """

    prefill_tps: F64
    decode_tps: F64
    kv: F64
    waiting: F64
    running: F64
    preemptions: F64


def bin_edges(end_s: float, bins: int = BINS) -> F64:
    """Edges of bins from 0 to `end_s`, shape (bins + 1,)."""
    return np.linspace(0.0, max(end_s, 1e-9), bins + 1)


def timeline(record: Record, edges: F64) -> Timeline:
    """The steps of a run in these bins; steps beyond the last edge are left out."""
    s, bins = record.steps, len(edges) - 1
    at = np.searchsorted(edges, s.start_s, side="right") - 1
    inside = (at >= 0) & (at < bins)
    at = at[inside]
    width = np.diff(edges)

    def total(values: npt.NDArray[np.generic]) -> F64:
        sums: F64 = np.bincount(at, weights=np.asarray(values, np.float64)[inside], minlength=bins).astype(np.float64)
        return sums

    time = total(s.duration_s)
    busy = time > 0
    last = np.maximum.accumulate(np.where(busy, np.arange(bins), -1))
    before = np.searchsorted(s.start_s, edges[:-1], side="right") - 1
    runs_on = (before >= 0) & ((s.start_s + s.duration_s)[before] > edges[:-1])
    known = busy | (runs_on & (last >= 0))

    def mean(values: npt.NDArray[np.generic]) -> F64:
        weighted = total(np.asarray(values, np.float64) * s.duration_s) / np.where(busy, time, 1.0)
        return np.where(known, weighted[np.maximum(last, 0)], 0.0)

    return Timeline(
        prefill_tps=total(s.prefill_tokens) / width,
        decode_tps=total(s.decode_tokens) / width,
        kv=mean(s.kv_blocks) / record.kv_blocks,
        waiting=mean(s.waiting),
        running=mean(s.running),
        preemptions=total(s.preemptions),
    )
