"""How long the step at hand takes, by the profile's coefficients."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.state import (
    BASE_S,
    CAPTURED,
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
    SIZES,
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
def pass_at(cost: F64, tokens: float) -> int:
    """Where, before BASE_S .. MIXED_S, the terms begin of a step that does more than decode and has so many tokens."""
    return int64(CAPTURED) if tokens <= cost[CAPTURED_TOKENS] else int64(0)


@inlined
def filled(cost: F64, tokens: float) -> float:
    """Tokens that the captured pass runs which holds so many."""
    k = int64(SIZES)
    while cost[k] < tokens:
        k += 1
    return cost[k]


@inlined
def emptied(cost: F64, size: float) -> float:
    """Tokens of the next smaller captured pass than this one, 0 if there is none."""
    less, k = 0.0, int64(SIZES)
    while cost[k] < size:
        less = cost[k]
        k += 1
    return less


@inlined
def lead_s(cost: F64, at: int) -> float:
    """Seconds that the host needs before the device can begin with a step whose terms begin at `at`."""
    return cost[CAPTURED_LEAD_S] if at == CAPTURED else cost[LEAD_S]


@inlined
def step_s(s: State, context: int) -> float:
    """Seconds that the step at hand takes when attention reads `context` tokens."""
    e = s.eng[0]
    rows = e.decodes
    positions = e.prefill_tokens + e.decode_tokens
    c = s.cost
    at = pass_at(c, float64(positions))
    # a captured graph of decoding runs as many rows as it was captured for
    if e.prefills == 0 and 0 < rows < len(s.pad) and (e.decode_tokens == rows or c[CAPTURED_TOKENS] == 0):
        positions = positions * s.pad[rows] // rows
    if e.prefills == 0 and e.decode_tokens == rows:
        seconds = c[DECODE_BASE_S] + max(c[DECODE_WEIGHTS_S], c[DECODE_TOKEN_S] * positions) + c[DECODE_ROW_S] * rows
        seconds += c[DECODE_CONTEXT_S] * context + c[DECODE_SPREAD_S] * np.sqrt(float64(context))
    else:
        run = filled(c, float64(positions)) if at == CAPTURED else float64(positions)
        seconds = c[at + BASE_S] + max(c[at + WEIGHTS_S], c[at + TOKEN_S] * run) + c[at + ROW_S] * (rows + e.prefills)
        seconds += c[at + PAIR_S] * e.pairs + c[at + CONTEXT_S] * context
        seconds += c[at + CHUNK_S] * (e.prefills + (rows if e.decode_tokens > rows else 0))
        host = c[HOST_S]
        if e.prefills > 0 and rows > 0:
            seconds += c[at + MIXED_S]
            host += c[HOST_MIXED_S]
        # what the host does while a step of decoding alone before still runs
        seconds -= min(lead_s(c, at), e.plain_s)
        if at != CAPTURED:
            seconds = max(seconds, host - e.plain_s)
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


@compiled
def runs_through(s: State) -> bool:
    """The step at hand is captured: it does not stop, whatever it is told."""
    return s.eng[0].prefill_tokens + s.eng[0].decode_tokens <= s.cost[CAPTURED_TOKENS]
