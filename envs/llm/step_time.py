"""How long the step at hand takes, by the profile's coefficients."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.state import (
    BASE_S,
    CAPTURED_LEAD_S,
    CAPTURED_TOKENS,
    CHUNK_S,
    CONTEXT_S,
    DECODE_BASE_S,
    DECODE_CONTEXT_S,
    DECODE_ROW_S,
    DECODE_SPREAD_S,
    DECODE_TOKEN_S,
    DECODE_WEIGHTS_S,
    F64,
    HOST_MIXED_S,
    HOST_S,
    LEAD_S,
    MIXED_S,
    NONE,
    PAIR_S,
    RAGGED_S,
    REBUILD_S,
    ROW_S,
    SWAP_S,
    TOKEN_S,
    WEIGHTS_S,
    State,
    float64,
    int64,
)


@compiled
def _is_ragged(s: State) -> bool:
    """Decoding requests of the step at hand hold different numbers of tokens: a dense engine would realign them."""
    held = int64(NONE)
    for i in range(s.eng[0].batch):
        row = s.batch[i]
        if row.decode == 1:
            if held != NONE and row.start != held:
                return True
            held = int64(row.start)
    return False


@inlined
def lead_s(cost: F64, tokens: float) -> float:
    """Seconds that the host needs before the device can begin with a step that is not of plain decoding."""
    return cost[CAPTURED_LEAD_S] if tokens <= cost[CAPTURED_TOKENS] else cost[LEAD_S]


@inlined
def step_s(s: State, context: int) -> float:
    """Seconds that the step at hand takes when attention reads `context` tokens."""
    e = s.eng[0]
    rows = e.decodes
    positions = e.prefill_tokens + e.decode_tokens
    if e.prefills == 0 and rows < len(s.pad):  # a captured graph runs as many rows as it was captured for
        positions = positions * s.pad[rows] // rows if rows > 0 else positions
    c = s.cost
    if e.prefills == 0 and e.decode_tokens == rows:
        seconds = c[DECODE_BASE_S] + max(c[DECODE_WEIGHTS_S], c[DECODE_TOKEN_S] * positions) + c[DECODE_ROW_S] * rows
        seconds += c[DECODE_CONTEXT_S] * context + c[DECODE_SPREAD_S] * np.sqrt(float64(context))
    else:
        seconds = c[BASE_S] + max(c[WEIGHTS_S], c[TOKEN_S] * positions) + c[ROW_S] * (rows + e.prefills)
        seconds += c[PAIR_S] * e.pairs + c[CONTEXT_S] * context + c[CHUNK_S] * e.prefills
        host = c[HOST_S]
        if e.prefills > 0 and rows > 0:
            seconds += c[MIXED_S]
            host += c[HOST_MIXED_S]
        # what the host does while a captured step before still runs
        seconds = max(seconds - min(lead_s(c, positions), e.plain_s), host - e.plain_s)
    seconds += c[SWAP_S] * e.swap_bytes
    if e.held == 0:
        seconds += c[REBUILD_S]
    if c[RAGGED_S] > 0 and e.decode_tokens > e.decodes and _is_ragged(s):
        seconds += c[RAGGED_S] * context
    return seconds


@compiled
def step_seconds(s: State) -> float:
    """Seconds that the step at hand takes."""
    return step_s(s, s.eng[0].context)
