"""An engine with steps of short prompts captured on a grid, as LAPS's: padded to the grid, launched at once."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

from dispatchgym.envs.llm.executor import Batch, SimulatedExecutor, StepResult
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.state import NONE, State

LENGTHS = (8, 16, 32, 64, 128, 256)
DEPTHS = (1, 2, 4, 8, 16, 32, 64)
"""Prompt tokens and requests of the captured steps. Source: arXiv 2601.11589."""

CAPTURE_BYTES = 240e6
"""Memory of a captured step of a model of 7B to 14B, the same source; capturing one takes 8 to 12 s at the start."""


class CapturedPrompts:
    """The simulated executor, but for a step of prompts alone that fits the grid.

    It runs as many positions as the smallest captured step that holds it, without the host's launches (`host_s`), and
    cannot be interrupted. What is captured is replayed whether or not it is faster, as serving engines do.
    """

    def __init__(self, state: State, times: Profile) -> None:
        self._state = state
        self._times = times
        self._inner = SimulatedExecutor(state, times.segments, times.pause_s)

    def run(self, batch: Batch | None, interrupt_s: float) -> StepResult:
        """The step at hand of the engine whose arrays these are."""
        seconds = self._captured_s()
        if seconds is None:
            return self._inner.run(batch, interrupt_s)
        return replace(self._inner.run(batch, float("inf")), duration_s=seconds)

    def _captured_s(self) -> float | None:
        """Seconds of the captured step that holds the one at hand, None if none does."""
        e, t = self._state.eng[0], self._times
        rows = self._state.batch["tokens"][: e["batch"]]
        if e["decodes"] or e["group"] != NONE or len(rows) > DEPTHS[-1] or rows.max() > LENGTHS[-1]:
            return None
        depth, length = DEPTHS[bisect_left(DEPTHS, len(rows))], LENGTHS[bisect_left(LENGTHS, int(rows.max()))]
        device = t.base_s + max(t.weights_s, t.token_s * depth * length) + (t.row_s + t.chunk_s) * depth
        device += t.pair_s * depth * length * (length + 1) / 2 + t.context_s * float(e["context"])
        return device + t.rebuild_s + float(e["swap_bytes"]) / t.swap_bytes_per_s


def pool_without(kv_blocks: int, block_tokens: int, times: Profile) -> int:
    """Blocks that are left of a pool when all of the grid is captured."""
    lost = len(LENGTHS) * len(DEPTHS) * CAPTURE_BYTES / (block_tokens * times.kv_bytes_per_token)
    return max(1, kv_blocks - round(lost))
