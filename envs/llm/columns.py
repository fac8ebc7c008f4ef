"""The choices of a step as rows of columns, as `graph` names them."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.graph import ADMIT, FIRST_ENGINE, KINDS, MERIT, NUM_COLUMNS, NUM_ENGINE, PREEMPT
from dispatchgym.envs.llm.outlook import is_doomed, work_s
from dispatchgym.envs.llm.sight import (
    ARRIVAL,
    CACHED,
    GENERATED,
    MAX_NEW,
    PICKED,
    PREEMPTIONS,
    PRIORITY,
    PROGRAM,
    SESSION,
    TENANT,
    TTFT,
    Sight,
    alone_s,
    blocks_of,
    host_s,
    known,
    peak_with,
    seconds,
    start_of,
)
from dispatchgym.envs.llm.state import F32, F64, I32, I64, REBUILD_S, float64, int64

BRIEF = 4.0
"""Shortest steps that a step with a brief piece takes at most, unless the host takes longer."""

NO_REQUEST = -1


class Choices(NamedTuple):
    """Choices of one engine, and its prefixes; `most` of each."""

    size: I64  # (2,) choices, prefixes
    kind: I64  # (most,)
    who: I64  # (most,) place in the sight, NO_REQUEST for RUN and WAIT
    tokens: I64  # (most,) of the piece
    row: F32  # (most, NUM_COLUMNS)
    prefix: I32  # (most,) place of its prefix, -1 for none
    key: I64  # (most,) what names the prefix
    prefix_row: F32  # (most, columns of a prefix)
    engine: F32  # (NUM_ENGINE,)
    weights: F64  # (kinds, NUM_COLUMNS - 1)


def new_choices(most: int, weights: Any) -> Choices:
    """Empty arrays."""
    return Choices(
        np.zeros(2, np.int64), np.zeros(most, np.int64), np.zeros(most, np.int64), np.zeros(most, np.int64),
        np.zeros((most, NUM_COLUMNS), np.float32), np.zeros(most, np.int32), np.zeros(most, np.int64),
        np.zeros((most, 3), np.float32), np.zeros(NUM_ENGINE, np.float32),
        np.array(weights, np.float64).reshape(len(KINDS), NUM_COLUMNS - 1),
    )  # fmt: skip


@inlined
def brief_s(sight: Sight) -> float:
    """Time of a step with a brief piece at most."""
    return max(BRIEF * sight.head[0].unit_s, host_s(sight) + sight.cost[REBUILD_S])


@compiled
def write_request(sight: Sight, choices: Choices, kind: int, k: int, tokens: int, now_s: float) -> None:
    h = sight.head[0]
    at = choices.size[0]
    choices.size[0] += 1
    choices.kind[at], choices.who[at], choices.tokens[at] = kind, k, tokens
    x = choices.row[at]
    x[:] = 0
    x[kind] = 1
    unit, now = h.unit_s, h.now
    start = start_of(sight, k)
    text, out = known(sight, k), int64(sight.n[GENERATED, k])
    left = text - start
    work = 0.0 if kind == PREEMPT else work_s(sight, k)
    then_s = seconds(sight, tokens, start)
    if kind != PREEMPT:
        x[5] = 1.0 if then_s > h.limit_s * (1 + 1e-9) else 0.0
        x[6] = 1.0 if then_s <= brief_s(sight) * (1 + 1e-9) else 0.0
        x[7] = 1.0 if tokens == left else 0.0
        x[8] = tokens / float64(h.token_budget)
        x[9] = np.log1p(max(0.0, then_s - now_s) / unit)
        x[10] = np.log1p(work / unit)
        x[31] = max(-1.0, min(1.0, 1.0 - (then_s - now_s) / alone_s(sight, tokens, start)))
        x[33] = 1.0 if now_s <= h.due_s < then_s else 0.0
        x[34] = float64(sight.dropped[k])
        x[35] = np.log1p(sight.ahead[k] / unit)
        x[36] = 1.0 if then_s > (h.later_s if h.late_who == k else h.late_s) else 0.0
    ttft = sight.f[TTFT, k]
    waited = now - sight.f[ARRIVAL, k]
    if out == 0:
        if ttft < np.inf:
            slack = ttft - waited - max(work, then_s)
            x[11] = 1.0
            x[12] = 1.0 if slack < 0.0 else 0.0
            x[13] = max(-1.0, min(1.0, slack / ttft))
            x[14] = np.log1p(max(slack, 0.0) / unit)
            x[15] = 1.0 if 0.0 <= slack < 8.0 * unit else 0.0
            x[32] = np.log1p(max(ttft - waited, 0.0) / unit)
    else:
        x[12] = 1.0 if is_doomed(sight, k) else 0.0
        x[18] = 1.0
    x[16] = np.log1p(max(waited, 0.0) / unit)
    x[17] = min(4.0, max(waited, 0.0) / ttft)
    x[19] = min(2.0, blocks_of(sight, text) / max(1.0, float64(h.free)))
    kv = float64(h.kv_blocks * h.block_tokens)
    if kind == ADMIT:
        x[20] = min(4.0, peak_with(sight, float64(text), sight.rest[k]) / kv)
        x[21] = min(1.0, max(0.0, x[20] - 0.9))
    x[22] = sight.n[CACHED, k] / float64(text)
    x[23] = np.log1p(sight.rest[k]) / 8.0
    x[24] = np.log1p(float64(text)) / 10.0
    x[25] = np.log1p(max(0.0, float64(sight.n[MAX_NEW, k] - out))) / 8.0
    if h.most_rank > h.least_rank:
        x[26] = (sight.n[PRIORITY, k] - h.least_rank) / float64(h.most_rank - h.least_rank)
    mine = int64(0)
    for j in range(h.running):
        mine += sight.n[TENANT, j] == sight.n[TENANT, k]
    x[27] = mine / max(1.0, float64(h.running))
    x[30] = min(1.0, sight.n[PREEMPTIONS, k] / 8.0)
    choices.prefix[at] = _prefix(sight, choices, k)
    if choices.prefix[at] >= 0:
        p = choices.prefix_row[choices.prefix[at]]
        x[28] = p[0]
        x[29] = 1.0 if p[1] > 0 else 0.0
    _finish(choices, at)


@inlined
def name_of(sight: Sight, k: int) -> int:
    """What request k has in common with others: its program or session; -1 for neither."""
    if sight.n[PROGRAM, k] >= 0:
        return 2 * int64(sight.n[PROGRAM, k])
    return 2 * int64(sight.n[SESSION, k]) + 1 if sight.n[SESSION, k] >= 0 else int64(-1)


@inlined
def _prefix(sight: Sight, choices: Choices, k: int) -> int:
    """Place of request k's prefix, written when first met; -1 for none."""
    name = name_of(sight, k)
    if name < 0:
        return int64(-1)
    for p in range(choices.size[1]):
        if choices.key[p] == name:
            return int64(p)
    h = sight.head[0]
    at = choices.size[1]
    choices.size[1] += 1
    choices.key[at] = name
    waiting, running, cached = int64(0), int64(0), 0.0
    for j in range(h.running):
        running += name_of(sight, j) == name
    for i in range(h.listed):
        j = sight.listed[i]
        if j >= h.running and name_of(sight, j) == name:
            if sight.mark[j] == PICKED:
                running += 1
            else:
                waiting += 1
                cached = max(cached, sight.n[CACHED, j] / float64(known(sight, j)))
    choices.prefix_row[at, 0] = np.log1p(float64(waiting)) / 6.0
    choices.prefix_row[at, 1] = np.log1p(float64(running)) / 6.0
    choices.prefix_row[at, 2] = cached
    return at


@compiled
def write_engine(choices: Choices, kind: int) -> None:
    at = choices.size[0]
    choices.size[0] += 1
    choices.kind[at], choices.who[at], choices.tokens[at] = kind, NO_REQUEST, 0
    choices.row[at, :] = 0
    choices.row[at, kind] = 1
    choices.prefix[at] = -1
    _finish(choices, at)


@inlined
def _finish(choices: Choices, at: int) -> None:
    x, w = choices.row[at], choices.weights[choices.kind[at]]
    for c in range(NUM_ENGINE):
        x[FIRST_ENGINE + c] = choices.engine[c]
    merit = 0.0
    for c in range(MERIT):
        merit += w[c] * x[c]
    x[MERIT] = merit
