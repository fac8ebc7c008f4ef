"""The choices of a step: which additions to the plan there are as things stand, at most `most`."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.columns import Choices, brief_s, name_of, write_engine, write_request
from dispatchgym.envs.llm.graph import ADMIT, MERIT, PREEMPT, READ, RUN, WAIT
from dispatchgym.envs.llm.outlook import has_turn, slack_s
from dispatchgym.envs.llm.sight import (
    CACHED,
    FREE,
    Sight,
    blocks_of,
    decoding,
    fitting,
    known,
    seconds,
    spare_s,
    start_of,
)
from dispatchgym.envs.llm.state import float64, int64

LEAST_PIECE = 16
"""Smaller pieces are not offered, unless they end a prompt."""


@compiled
def list_choices(sight: Sight, choices: Choices) -> None:
    """Write the choices that the plan so far leaves; none if nothing can be added and nothing is planned."""
    h = sight.head[0]
    choices.size[:] = 0
    now_s = seconds(sight, int64(0), int64(0))
    kv = h.kv_blocks * h.block_tokens
    e = choices.engine
    e[0] = np.log1p(float64(h.decodes)) / 6.0
    e[1] = 1.0 - h.budget / float64(h.token_budget)
    e[2] = np.log1p(now_s / (h.floor_s if h.prefills > 0 else h.unit_s))
    e[3] = min(1.0, now_s / h.limit_s)
    e[4] = h.late / max(1.0, float64(h.decodes))
    e[5] = 1.0 - max(int64(0), int64(h.free)) / float64(h.kv_blocks)
    e[6] = min(4.0, sight.before[h.ranked] / kv)
    e[7] = np.log1p(float64(h.waiting)) / 6.0
    e[8] = h.places / float64(max(h.all_places, int64(1)))
    e[9] = e[2] if h.decodes == 0 else 0.0
    e[10] = h.hopeful
    e[11] = h.dropping
    e[12] = min(1.0, spare_s(sight, now_s) / now_s)
    e[13] = np.log1p(h.floor_s / h.unit_s)
    _find_next_late(sight, now_s)
    turn = has_turn(sight)
    if turn and _list_overdue(sight, choices, now_s):
        return
    room = int64(len(choices.kind)) - 2
    blocked = h.waiting > 0
    for length in range(3):  # brief pieces, then those that keep everyone in time, then the longest
        for i in range(h.listed):
            k = sight.listed[i]
            waits = k >= h.running
            if sight.mark[k] != FREE or choices.size[0] >= room or (not waits and decoding(sight, k)):
                continue
            if h.budget <= 0 or (waits and (turn or not fits(sight, k))):
                continue
            start = start_of(sight, k)
            most = min(known(sight, k) - start, int64(h.budget))
            least = min(most, int64(LEAST_PIECE))
            fit = min(most, fitting(sight, start, h.limit_s))
            brief = min(fit, fitting(sight, start, brief_s(sight)))
            tokens = brief if length == 0 else (fit if length == 1 else most)
            shorter = int64(0) if length == 0 else (brief if length == 1 else fit)
            if tokens >= least and (tokens > shorter or shorter < least):
                write_request(sight, choices, int64(ADMIT if waits else READ), k, tokens, now_s)
            if waits:
                blocked = False
    if blocked or h.free < 0:
        for i in range(h.listed):
            k = sight.listed[i]
            if k < h.running and sight.mark[k] == FREE and decoding(sight, k) and choices.size[0] < room:
                write_request(sight, choices, int64(PREEMPT), k, int64(0), now_s)
    if h.grants > 0:
        write_engine(choices, int64(RUN))
    elif h.running == 0 and h.waiting > 0 and choices.size[0] > 0:
        write_engine(choices, int64(WAIT))


@inlined
def _find_next_late(sight: Sight, now_s: float) -> None:
    """Of those not in the plan that are in time if it runs as it is, in how long the first and the second are not."""
    h = sight.head[0]
    h.late_who, h.late_s, h.later_s = int64(-1), np.inf, np.inf
    for i in range(h.listed):
        k = sight.listed[i]
        if sight.mark[k] != FREE:
            continue
        slack = slack_s(sight, k)
        if slack < now_s:
            continue
        if slack < h.late_s:
            h.late_who, h.later_s, h.late_s = int64(k), h.late_s, slack
        elif slack < h.later_s:
            h.later_s = slack


@inlined
def _list_overdue(sight: Sight, choices: Choices, now_s: float) -> bool:
    """List a piece of who is overdue as the only choice, if it can have one now."""
    h = sight.head[0]
    k = h.overdue
    waits = k >= h.running
    if sight.mark[k] != FREE or h.budget <= 0 or (waits and not fits(sight, k)):
        return False
    start = start_of(sight, k)
    most = min(known(sight, k) - start, int64(h.budget))
    fit = min(most, fitting(sight, start, h.limit_s))
    tokens = fit if fit >= min(most, int64(LEAST_PIECE)) else most
    write_request(sight, choices, int64(ADMIT if waits else READ), int64(k), tokens, now_s)
    return True


@inlined
def fits(sight: Sight, k: int) -> bool:
    """There are a place and blocks for waiting request k."""
    h = sight.head[0]
    return h.places > 0 and need(sight, k) <= h.free


@inlined
def need(sight: Sight, k: int) -> int:
    """Blocks that waiting request k takes. Cached ones count as free ones, unless somebody may hold them."""
    whole = blocks_of(sight, known(sight, k))
    if sight.n[CACHED, k] > 0 and somebody_reads(sight, k):
        return whole - sight.n[CACHED, k] // sight.head[0].block_tokens
    return whole


@inlined
def somebody_reads(sight: Sight, k: int) -> bool:
    """Somebody who shares its program or session runs."""
    name = name_of(sight, k)
    if name >= 0:
        for j in range(sight.head[0].running):
            if name_of(sight, j) == name:
                return True
    return False


@compiled
def also_run(choices: Choices) -> None:
    """List RUN behind the others, which is no choice while nothing is planned, for who scores all at once."""
    write_engine(choices, int64(RUN))


@compiled
def best_choice(choices: Choices) -> int:
    """The choice of the highest merit, the first among equals."""
    best = int64(0)
    for at in range(1, choices.size[0]):
        if choices.row[at, MERIT] > choices.row[best, MERIT]:
            best = int64(at)
    return best
