"""The choices of a step: which additions to the plan are worth considering, their columns, and what taking one does.

At most `most` choices are listed. Where more requests are there, the queue's head, the most urgent, the shortest and
those with most in the prefix cache stand for the others.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.graph import (
    ADMIT,
    FIRST_ENGINE,
    KINDS,
    MERIT,
    NUM_COLUMNS,
    NUM_ENGINE,
    PREEMPT,
    READ,
    RUN,
    WAIT,
)
from dispatchgym.envs.llm.sight import (
    ARRIVAL,
    BLOCKS,
    CACHED,
    COMPUTED,
    FIRST_TOKEN,
    FREE,
    GENERATED,
    LAST_TOKEN,
    MAX_NEW,
    PICKED,
    PREEMPTIONS,
    PRIORITY,
    PROGRAM,
    SESSION,
    TAKEN,
    TENANT,
    TPOT,
    TTFT,
    Sight,
    add_up,
    blocks_of,
    decoding,
    expect,
    fitting,
    insert,
    known,
    peak_with,
    rank,
    seconds,
    start_of,
)
from dispatchgym.envs.llm.state import BASE_S, F32, F64, I32, I64, PAIR_S, TOKEN_S, WEIGHTS_S, float64, int64

LEAST_PIECE = 16
"""Smaller pieces are not offered, unless they end a prompt."""

BRIEF = 4.0
"""Shortest steps that a step with a brief piece takes at most."""

NO_REQUEST = -1

POLL, UNTIL_EVENT = 8, 1 << 30
"""Steps that only decode are made so many at a time: while somebody pauses, or waits that there is a place for; and
else, which is until a request comes or ends."""


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


# --- the start of a step ---


@compiled
def look(sight: Sight) -> None:
    """Begin a plan: everyone who decodes goes on, and nobody else has been chosen."""
    h, c = sight.head[0], sight.cost
    n = h.running + h.waiting
    h.budget, h.all_places = h.token_budget, h.places + h.running
    h.decodes = h.context = h.prefills = h.prefill_tokens = h.grants = h.preempted = h.late = 0
    h.pairs = 0.0
    h.limit_s = np.inf
    h.unit_s = c[BASE_S] + max(c[WEIGHTS_S], c[TOKEN_S])
    expect(sight)
    for k in range(n):
        sight.mark[k] = FREE
    rank(sight)
    for k in range(h.running):
        if decoding(sight, k):
            if h.budget > 0:
                h.budget -= 1
                h.decodes += 1
                h.context += sight.n[COMPUTED, k] + 1
                sight.grant[h.grants], sight.tokens[h.grants] = sight.id[k], 1
                h.grants += 1
                h.free -= max(blocks_of(sight, int64(sight.n[COMPUTED, k]) + 1) - sight.n[BLOCKS, k], int64(0))
        else:
            h.free -= max(blocks_of(sight, known(sight, k)) - sight.n[BLOCKS, k], int64(0))
    alone = seconds(sight, int64(0), int64(0))
    for k in range(h.running):
        if decoding(sight, k) and sight.f[TPOT, k] < np.inf:
            slack = _until_late(sight, k)
            if slack < alone:
                h.late += 1
            else:
                h.limit_s = min(h.limit_s, slack)
    h.least_rank, h.most_rank = int64(2**40), int64(-(2**40))
    for k in range(n):
        h.least_rank = min(h.least_rank, int64(sight.n[PRIORITY, k]))
        h.most_rank = max(h.most_rank, int64(sight.n[PRIORITY, k]))
    _shortlist(sight)


@inlined
def _until_late(sight: Sight, k: int) -> float:
    """Seconds in which the next token of a request that decodes is due; those saved before count where means do."""
    h = sight.head[0]
    if h.mean_slo == 1:
        return sight.f[FIRST_TOKEN, k] + sight.f[TPOT, k] * sight.n[GENERATED, k] - h.now
    return sight.f[LAST_TOKEN, k] + sight.f[TPOT, k] - h.now


@inlined
def work_s(sight: Sight, k: int) -> float:
    """Time to read the rest of request k's prompt, in steps of the engine's full size."""
    h = sight.head[0]
    start = start_of(sight, k)
    left = known(sight, k) - start
    steps = (left + h.token_budget - 1) // h.token_budget
    c = sight.cost
    pairs = float64(left) * start + 0.5 * float64(left) * (left + 1)
    return steps * c[BASE_S] + max(steps * c[WEIGHTS_S], c[TOKEN_S] * left) + c[PAIR_S] * pairs


@inlined
def _slack_s(sight: Sight, k: int) -> float:
    """Time left until the first token of request k is due, once its prompt is read; inf without a bound."""
    if sight.n[GENERATED, k] > 0:
        return np.inf
    return sight.f[ARRIVAL, k] + sight.f[TTFT, k] - sight.head[0].now - work_s(sight, k)


@inlined
def _is_doomed(sight: Sight, k: int) -> bool:
    """Request k, with tokens out, has missed one of its bounds or is going to."""
    h = sight.head[0]
    if sight.f[FIRST_TOKEN, k] - sight.f[ARRIVAL, k] > sight.f[TTFT, k]:
        return True
    if sight.f[TPOT, k] == np.inf:
        return False
    until = _until_late(sight, k)
    if h.mean_slo == 1:
        return until + sight.f[TPOT, k] * (sight.rest[k] - 1.0) < sight.rest[k] * h.unit_s
    return until < 0.0


@inlined
def _list(sight: Sight, k: int) -> None:
    h = sight.head[0]
    sight.listed[h.listed] = k
    h.listed += 1
    sight.mark[k] = PICKED  # for now: listed


@compiled
def _shortlist(sight: Sight) -> None:
    """Choose whom the choices of this step are about; see the top of the file."""
    h = sight.head[0]
    most = int64(len(sight.listed)) - 2
    h.listed = 0
    hopeful, waiting = int64(0), int64(0)
    reads = most // 4
    for k in range(h.running):
        if not decoding(sight, k) and reads > 0:
            _list(sight, k)
            reads -= 1
    spare = int64(4)  # those who may lose their place
    if h.waiting <= most - h.listed - spare:
        for k in range(h.running, h.running + h.waiting):
            _list(sight, k)
    else:
        share = (most - h.listed - spare) // 8
        for key in range(5):
            count = share if key > 0 else most - h.listed - spare - 7 * share
            if key == 1:
                count = 3 * share
            elif key == 2:
                count = 2 * share
            for _ in range(count):
                best, least = int64(-1), np.inf
                for k in range(h.running, h.running + h.waiting):
                    if sight.mark[k] != FREE:
                        continue
                    x = _key(sight, k, key)
                    if best < 0 or x < least:
                        best, least = k, x
                if best >= 0:
                    _list(sight, best)
    for i in range(h.listed):
        k = sight.listed[i]
        sight.mark[k] = FREE
        if k >= h.running:
            waiting += 1
            if _slack_s(sight, k) >= 0.0 or (sight.n[GENERATED, k] > 0 and not _is_doomed(sight, k)):
                hopeful += 1
    h.hopeful = hopeful / float64(waiting) if waiting > 0 else 0.0
    # who has the least to lose: those that are late, then the last admitted
    for turn in range(2):
        for k in range(h.running - 1, -1, -1):
            may = decoding(sight, k) and sight.n[PREEMPTIONS, k] < h.max_preemptions and h.running > 1
            if spare > 0 and may and (turn == 0) == _is_doomed(sight, k):
                sight.listed[h.listed] = k
                h.listed += 1
                spare -= 1


@inlined
def _key(sight: Sight, k: int, key: int) -> float:
    """The smaller, the more worth listing: place in the queue, slack, work (the hopeless last in both), cache, rank."""
    if key == 0:
        return float64(k)
    if key == 3:
        return -float64(sight.n[CACHED, k]) / known(sight, k)
    if key == 4:
        return float64(sight.n[PRIORITY, k])
    slack = _slack_s(sight, k)
    x = slack if key == 1 else work_s(sight, k)
    if slack < 0.0:
        x += 1e9
    return min(x, 1e12) + 1e-6 * (k - sight.head[0].running)


# --- the choices as things stand ---


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
    e[2] = np.log1p(now_s / h.unit_s)
    e[3] = min(1.0, now_s / h.limit_s)
    e[4] = h.late / max(1.0, float64(h.decodes))
    e[5] = 1.0 - max(int64(0), int64(h.free)) / float64(h.kv_blocks)
    e[6] = min(4.0, sight.before[h.ranked] / kv)
    e[7] = np.log1p(float64(h.waiting)) / 6.0
    e[8] = h.places / float64(max(h.all_places, int64(1)))
    e[9] = e[2] if h.decodes == 0 else 0.0
    e[10] = h.hopeful
    room = int64(len(choices.kind)) - 2
    blocked = h.waiting > 0
    for length in range(3):  # brief pieces, then those that keep everyone in time, then the longest
        for i in range(h.listed):
            k = sight.listed[i]
            waits = k >= h.running
            if sight.mark[k] != FREE or choices.size[0] >= room or (not waits and decoding(sight, k)):
                continue
            if h.budget <= 0 or (waits and (h.places <= 0 or _need(sight, k) > h.free)):
                continue
            start = start_of(sight, k)
            most = min(known(sight, k) - start, int64(h.budget))
            least = min(most, int64(LEAST_PIECE))
            fit = min(most, fitting(sight, start, h.limit_s))
            brief = min(fit, fitting(sight, start, BRIEF * h.unit_s))
            tokens = brief if length == 0 else (fit if length == 1 else most)
            shorter = int64(0) if length == 0 else (brief if length == 1 else fit)
            if tokens >= least and (tokens > shorter or shorter < least):
                _write_request(sight, choices, int64(ADMIT if waits else READ), k, tokens, now_s)
            if waits:
                blocked = False
    if blocked or h.free < 0:
        for i in range(h.listed):
            k = sight.listed[i]
            if k < h.running and sight.mark[k] == FREE and decoding(sight, k) and choices.size[0] < room:
                _write_request(sight, choices, int64(PREEMPT), k, int64(0), now_s)
    if h.grants > 0:
        _write_engine(choices, int64(RUN))
    elif h.running == 0 and h.waiting > 0 and choices.size[0] > 0:
        _write_engine(choices, int64(WAIT))


@inlined
def _need(sight: Sight, k: int) -> int:
    """Blocks that waiting request k takes. Cached ones count as free ones, unless somebody may hold them."""
    whole = blocks_of(sight, known(sight, k))
    if sight.n[CACHED, k] > 0 and _reads(sight, k):
        return whole - sight.n[CACHED, k] // sight.head[0].block_tokens
    return whole


@inlined
def _name(sight: Sight, k: int) -> int:
    """What request k has in common with others: its program or session; -1 for neither."""
    if sight.n[PROGRAM, k] >= 0:
        return 2 * int64(sight.n[PROGRAM, k])
    return 2 * int64(sight.n[SESSION, k]) + 1 if sight.n[SESSION, k] >= 0 else int64(-1)


@inlined
def _reads(sight: Sight, k: int) -> bool:
    """Somebody who shares its program or session runs."""
    name = _name(sight, k)
    if name >= 0:
        for j in range(sight.head[0].running):
            if _name(sight, j) == name:
                return True
    return False


@compiled
def _write_request(sight: Sight, choices: Choices, kind: int, k: int, tokens: int, now_s: float) -> None:
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
        x[6] = 1.0 if then_s <= BRIEF * unit * (1 + 1e-9) else 0.0
        x[7] = 1.0 if tokens == left else 0.0
        x[8] = tokens / float64(h.token_budget)
        x[9] = np.log1p(max(0.0, then_s - now_s) / unit)
        x[10] = np.log1p(work / unit)
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
    else:
        x[12] = 1.0 if _is_doomed(sight, k) else 0.0
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
def _prefix(sight: Sight, choices: Choices, k: int) -> int:
    """Place of request k's prefix, written when first met; -1 for none."""
    name = _name(sight, k)
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
        running += _name(sight, j) == name
    for i in range(h.listed):
        j = sight.listed[i]
        if j >= h.running and _name(sight, j) == name:
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
def _write_engine(choices: Choices, kind: int) -> None:
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


@compiled
def also_run(choices: Choices) -> None:
    """List RUN behind the others, which is no choice while nothing is planned, for who scores all at once."""
    _write_engine(choices, int64(RUN))


@compiled
def best_choice(choices: Choices) -> int:
    """The choice of the highest merit, the first among equals."""
    best = int64(0)
    for at in range(1, choices.size[0]):
        if choices.row[at, MERIT] > choices.row[best, MERIT]:
            best = int64(at)
    return best


# --- the plan ---


@compiled
def take(sight: Sight, choices: Choices, at: int) -> int:
    """Add a listed choice to the plan, with as much of its piece as is left now; returns its kind, -1 if it is void."""
    h = sight.head[0]
    kind, k, tokens = choices.kind[at], choices.who[at], choices.tokens[at]
    if kind in (RUN, WAIT):
        return kind
    if sight.mark[k] != FREE:
        return int64(-1)
    if kind == PREEMPT:
        return _take_away(sight, k)
    start = start_of(sight, k)
    tokens = min(tokens, int64(h.budget))
    if tokens <= 0:
        return int64(-1)
    if kind == ADMIT:
        need = _need(sight, k)
        if h.places <= 0 or need > h.free:
            return int64(-1)
        h.places -= 1
        h.free -= need
        insert(sight, h.ranked, float64(known(sight, k)), sight.rest[k])
        h.ranked += 1
        add_up(sight)
    sight.mark[k] = PICKED
    sight.grant[h.grants], sight.tokens[h.grants] = sight.id[k], tokens
    h.grants += 1
    h.prefills += 1
    h.prefill_tokens += tokens
    h.pairs += float64(tokens) * start + 0.5 * float64(tokens) * (tokens + 1)
    h.context += start
    h.budget -= tokens
    return kind


@inlined
def _take_away(sight: Sight, k: int) -> int:
    """Plan the preemption of request k, which decodes."""
    h = sight.head[0]
    sight.mark[k] = TAKEN
    sight.out[h.preempted] = sight.id[k]
    h.preempted += 1
    at = int64(0)
    while at < h.grants and sight.grant[at] != sight.id[k]:
        at += 1
    if at < h.grants:
        for j in range(at, h.grants - 1):
            sight.grant[j], sight.tokens[j] = sight.grant[j + 1], sight.tokens[j + 1]
        h.grants -= 1
        h.decodes -= 1
        h.budget += 1
        h.context -= sight.n[COMPUTED, k] + 1
        h.free += max(blocks_of(sight, int64(sight.n[COMPUTED, k]) + 1) - sight.n[BLOCKS, k], int64(0))
    h.free += sight.n[BLOCKS, k]
    h.places += 1
    rank(sight)
    return int64(PREEMPT)


@inlined
def hold_of(sight: Sight) -> int:
    """Times that a step which only decodes is to be made."""
    h = sight.head[0]
    paused = h.running - h.preempted - h.decodes
    return POLL if paused > 0 or (h.waiting + h.preempted > 0 and h.places > 0) else UNTIL_EVENT


@compiled
def plan_by_merit(sight: Sight, choices: Choices) -> int:
    """Add to the plan what the merit says; returns RUN, WAIT or -1 if there is nothing to plan."""
    look(sight)
    while True:
        list_choices(sight, choices)
        if choices.size[0] == 0:
            return int64(-1)
        kind = int64(take(sight, choices, best_choice(choices)))
        if kind in (RUN, WAIT):
            return kind
