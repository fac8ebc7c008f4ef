"""What a policy that chooses piece by piece knows of an engine at a step boundary, and the plan as it grows.

Filled from an engine's arrays or from a policy's view of them: the same numbers either way, and no output length.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.apply import FLOATS, INTS, gather, queue
from dispatchgym.envs.llm.policy import EngineSpec, EngineView
from dispatchgym.envs.llm.state import (
    BASE_S,
    CAPTURED,
    CAPTURED_TOKENS,
    CHUNK_S,
    CONTEXT_S,
    COST_TERMS,
    DECODE_BASE_S,
    DECODE_CONTEXT_S,
    DECODE_ROW_S,
    DECODE_SPREAD_S,
    DECODE_TOKEN_S,
    DECODE_WEIGHTS_S,
    F64,
    HOST_MIXED_S,
    HOST_S,
    I32,
    I64,
    MIXED_S,
    PAIR_S,
    REBUILD_S,
    ROW_S,
    SIZES,
    TOKEN_S,
    WEIGHTS_S,
    State,
    float64,
    int64,
)
from dispatchgym.envs.llm.step_time import emptied, filled, lead_s, pass_at

PAST = 128
"""Newest output lengths that expectations are made of."""

ARRIVAL, TTFT, TPOT, LAST_TOKEN, FIRST_TOKEN = range(5)  # rows of Sight.f
PROMPT, MAX_NEW, PRIORITY, TENANT, SESSION, PROGRAM, COMPUTED, GENERATED, BLOCKS, HOST, CACHED, PREEMPTIONS, GROUP = (
    range(13)
)
FREE, PICKED, TAKEN = range(3)  # of Sight.mark: nothing said, granted a piece, to be preempted

HEAD = np.dtype(
    [
        ("now", np.float64),
        ("kv_blocks", np.int64),
        ("block_tokens", np.int64),
        ("token_budget", np.int64),
        ("max_preemptions", np.int64),
        ("mean_slo", np.int64),  # 1: bounds on tokens after the first are means
        ("running", np.int64),
        ("waiting", np.int64),
        ("past", np.int64),
        ("plain_s", np.float64),  # what the step before covers of the host's work, see Profile
        # as planned
        ("free", np.int64),  # blocks, less what those who run and are planned will need to read their prompts
        ("places", np.int64),
        ("all_places", np.int64),
        ("budget", np.int64),
        ("decodes", np.int64),
        ("context", np.int64),
        ("prefills", np.int64),
        ("prefill_tokens", np.int64),
        ("pairs", np.float64),
        ("grants", np.int64),
        ("preempted", np.int64),
        ("ranked", np.int64),
        ("late_who", np.int64),  # see `choices._find_next_late`
        ("late_s", np.float64),
        ("later_s", np.float64),
        ("due_s", np.float64),  # until the first of the planned first tokens that are in time is due; inf without
        # as found
        ("unit_s", np.float64),  # the shortest step
        ("floor_s", np.float64),  # the shortest with a piece of a prompt
        ("limit_s", np.float64),  # until the first decoding request is late; inf without
        ("late", np.int64),
        ("hopeful", np.float64),
        ("dropping", np.float64),  # see `backlog`
        ("least_rank", np.int64),
        ("most_rank", np.int64),
        ("listed", np.int64),
        ("overdue", np.int64),  # whose turn comes, see `outlook`; -1 for nobody
        ("passed", np.int64),  # pieces of others since its last turn; goes on from step to step
    ]
)


class Sight(NamedTuple):
    """First the running requests in order of admission, then the queue; `room` of them."""

    head: Any  # (1,) of HEAD
    id: I64  # (room,)
    f: F64  # (FLOATS, room), rows as `gather` writes them
    n: I64  # (INTS, room)
    mark: I64  # (room,)
    rest: F64  # (room,) expected output still to come
    past: F64  # (PAST,) newest output lengths, sorted
    tail: F64  # (PAST + 1,) sums of those from each on
    held: F64  # (room,) known tokens of who runs or is let in, by `left`, the most first
    left: F64  # (room,)
    before: F64  # (room + 1,) largest total up to each, see `rank`
    behind: F64  # (room + 1,)
    total: F64  # (room + 1,) sums of `held`
    listed: I64  # (most,) whom the choices are about
    ahead: F64  # (room,) see `backlog`
    dropped: I64  # (room,)
    by_due: I64  # (most,)
    cost: F64  # (COST_TERMS,)
    pad: I32  # (room + 1,) rows that a decode step of so many runs
    grant: I32  # (room,) request numbers of the plan, in order
    tokens: I64  # (room,)
    out: I32  # (room,) to be preempted


def new_sight(room: int, most: int) -> Sight:
    """Empty arrays for up to `room` requests at a time."""
    return Sight(
        np.zeros(1, HEAD), np.zeros(room, np.int64), np.zeros((FLOATS, room)), np.zeros((INTS, room), np.int64),
        np.zeros(room, np.int64), np.zeros(room), np.zeros(PAST), np.zeros(PAST + 1), np.zeros(room + 1),
        np.zeros(room + 1), np.zeros(room + 2), np.zeros(room + 2), np.zeros(room + 2), np.zeros(most, np.int64),
        np.zeros(room), np.zeros(room, np.int64), np.zeros(most, np.int64),
        np.zeros(COST_TERMS), np.arange(room + 1, dtype=np.int32), np.zeros(room, np.int32), np.zeros(room, np.int64),
        np.zeros(room, np.int32),
    )  # fmt: skip


def see(sight: Sight, view: EngineView, spec: EngineSpec) -> Sight:
    """The same arrays, or larger ones, with what the view shows."""
    running, waiting = len(view.running), len(view.waiting)
    if running + waiting > len(sight.id):
        sight = new_sight(2 * (running + waiting), len(sight.listed))
    at = 0
    for table in (view.running, view.waiting):
        part = slice(at, at + len(table))
        sight.id[part] = table[0]
        sight.f[:, part] = table[1 : 1 + FLOATS]
        sight.n[:, part] = table[1 + FLOATS :]
        at += len(table)
    newest = view.history[-PAST:]
    sight.past[: len(newest)] = newest
    sight.cost[:] = spec.cost
    sight.pad[:] = spec.profile.padding(len(sight.pad) - 1)
    h: Any = sight.head[0]
    h["now"], h["kv_blocks"], h["block_tokens"] = view.now_s, view.kv_blocks, view.block_tokens
    h["token_budget"], h["max_preemptions"] = view.token_budget, view.max_preemptions
    h["mean_slo"], h["running"], h["waiting"] = spec.slo_kind == "mean", running, waiting
    h["past"], h["free"], h["places"] = len(newest), view.free_blocks, view.free_seqs
    h["plain_s"] = view.plain_s
    return sight


@compiled
def see_state(sight: Sight, s: State, mean_slo: bool) -> None:
    """As `see`, of an engine's own arrays."""
    e, h = s.eng[0], sight.head[0]
    for k in range(e.running):
        sight.id[k] = s.run[k]
    queue(s, sight.id[e.running : e.running + e.waiting])
    gather(s, sight.id[: e.running + e.waiting], sight.n, sight.f)
    newest = min(int64(e.finished), int64(len(s.history)), int64(PAST))
    for j in range(newest):
        sight.past[j] = s.history[(e.finished - newest + j) % len(s.history)]
    for c in range(len(s.cost)):
        sight.cost[c] = s.cost[c]
    for rows in range(e.running + 1):
        sight.pad[rows] = s.pad[rows]
    h.now, h.kv_blocks, h.block_tokens = e.now, e.kv_blocks, e.block_tokens
    h.token_budget, h.max_preemptions = e.token_budget, e.max_preemptions
    h.mean_slo, h.running, h.waiting = 1 if mean_slo else 0, e.running, e.waiting
    h.past, h.free, h.places, h.plain_s = newest, e.free, e.slots, e.plain_s


@inlined
def known(sight: Sight, k: int) -> int:
    """Tokens of request k whose text is known."""
    return int64(sight.n[PROMPT, k]) + sight.n[GENERATED, k]


@inlined
def start_of(sight: Sight, k: int) -> int:
    """Tokens of request k that need not be run: their KV is held, or can be found."""
    return max(sight.n[COMPUTED, k], sight.n[CACHED, k])


@inlined
def decoding(sight: Sight, k: int) -> bool:
    """Running request k goes on with its output."""
    return sight.n[GENERATED, k] > 0 and known(sight, k) - sight.n[COMPUTED, k] == 1


@inlined
def blocks_of(sight: Sight, tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return (tokens + sight.head[0].block_tokens - 1) // sight.head[0].block_tokens


@inlined
def seconds(sight: Sight, tokens: int, start: int) -> float:
    """Expected time of the step as planned, with a further piece of so many tokens behind `start`; 0 for none."""
    h, c = sight.head[0], sight.cost
    if h.prefills == 0 and tokens == 0:
        t = c[DECODE_BASE_S] + max(c[DECODE_WEIGHTS_S], c[DECODE_TOKEN_S] * sight.pad[h.decodes])
        t += c[DECODE_ROW_S] * h.decodes + c[DECODE_CONTEXT_S] * h.context
        return t + c[DECODE_SPREAD_S] * np.sqrt(float64(h.context)) + c[REBUILD_S]
    at = pass_at(c, float64(h.decodes + h.prefill_tokens + tokens))
    t = _work_s(sight, tokens, start, at)
    return (t if at == CAPTURED else max(t, host_s(sight))) + c[REBUILD_S]


@inlined
def shortest_s(sight: Sight) -> float:
    """The shortest step that the engine can make."""
    c = sight.cost
    return min(c[DECODE_BASE_S] + max(c[DECODE_WEIGHTS_S], c[DECODE_TOKEN_S]), floor_s(sight))


@inlined
def floor_s(sight: Sight) -> float:
    """The shortest step with a piece of a prompt in it."""
    c = sight.cost
    if pass_at(c, 1.0) == CAPTURED:
        return c[CAPTURED + BASE_S] + max(c[CAPTURED + WEIGHTS_S], c[CAPTURED + TOKEN_S] * c[SIZES])
    return max(c[BASE_S] + max(c[WEIGHTS_S], c[TOKEN_S]), c[HOST_S])


@inlined
def alone_s(sight: Sight, tokens: int, start: int) -> float:
    """Expected time of a step with nothing but such a piece."""
    c = sight.cost
    at = pass_at(c, float64(tokens))
    t = c[at + BASE_S] + _tokens_s(sight, float64(tokens), at) + c[at + ROW_S] + c[at + CONTEXT_S] * start
    t += c[at + CHUNK_S] + c[at + PAIR_S] * (float64(tokens) * start + 0.5 * float64(tokens) * (tokens + 1))
    return (t if at == CAPTURED else max(t, c[HOST_S])) + c[REBUILD_S]


@inlined
def spare_s(sight: Sight, now_s: float) -> float:
    """Of the time of the step as planned, `now_s`, what further tokens would not add to; 0 if it reads no prompt."""
    h, c = sight.head[0], sight.cost
    if h.prefills == 0:
        return 0.0
    at = pass_at(c, float64(h.decodes + h.prefill_tokens))
    t = c[at + BASE_S] + c[at + TOKEN_S] * (h.decodes + h.prefill_tokens) + c[at + ROW_S] * (h.decodes + h.prefills)
    t += c[at + PAIR_S] * h.pairs + c[at + CONTEXT_S] * h.context + c[at + CHUNK_S] * h.prefills
    t += (c[at + MIXED_S] if h.decodes > 0 else 0.0) - min(lead_s(c, at), h.plain_s)
    return max(0.0, now_s - c[REBUILD_S] - t)


@inlined
def host_s(sight: Sight) -> float:
    """Least time of the step as planned with prompt pieces in it that is not captured, by what the host does."""
    h, c = sight.head[0], sight.cost
    return c[HOST_S] + (c[HOST_MIXED_S] if h.decodes > 0 else 0.0) - h.plain_s


@inlined
def _tokens_s(sight: Sight, tokens: float, at: int) -> float:
    """Time that matrix products take a step of so many tokens, by the terms at `at`."""
    c = sight.cost
    return max(c[at + WEIGHTS_S], c[at + TOKEN_S] * (filled(c, tokens) if at == CAPTURED else tokens))


@inlined
def _work_s(sight: Sight, tokens: int, start: int, at: int) -> float:
    """Time that the device needs for the step as planned, with such a further piece, by the terms at `at`."""
    h, c = sight.head[0], sight.cost
    more = 1 if tokens > 0 else 0
    prefills = h.prefills + more
    pairs = h.pairs + float64(tokens) * start + 0.5 * float64(tokens) * (tokens + 1)
    t = c[at + BASE_S] + _tokens_s(sight, float64(h.decodes + h.prefill_tokens + tokens), at)
    t += (
        c[at + ROW_S] * (h.decodes + prefills) + c[at + PAIR_S] * pairs + c[at + CONTEXT_S] * (h.context + more * start)
    )
    t += c[at + CHUNK_S] * prefills
    if prefills > 0 and h.decodes > 0:
        t += c[at + MIXED_S]
    return t - min(lead_s(c, at), h.plain_s)  # what the host does while the step before runs


@inlined
def fitting(sight: Sight, start: int, limit_s: float) -> int:
    """Tokens of a further piece behind `start` with which the step takes at most `limit_s`."""
    h, c = sight.head[0], sight.cost
    if limit_s == np.inf:
        return int64(h.token_budget)
    others = float64(h.decodes + h.prefill_tokens)
    n = np.floor(_fitting(sight, start, limit_s, 0)) if host_s(sight) + c[REBUILD_S] <= limit_s else 0.0
    if others < c[CAPTURED_TOKENS] and others + n <= c[CAPTURED_TOKENS]:
        n = min(np.floor(_fitting(sight, start, limit_s, CAPTURED)), c[CAPTURED_TOKENS] - others)
        full = filled(c, others + n)
        spare = limit_s - _fixed_s(sight, start, CAPTURED) - _tokens_s(sight, full, CAPTURED)
        if spare < c[CAPTURED + PAIR_S] * n * (start + 0.5 + 0.5 * n):  # the next smaller size, then
            n = max(0.0, emptied(c, full) - others)
    return int64(min(n, float64(h.token_budget)))


@inlined
def _fixed_s(sight: Sight, start: int, at: int) -> float:
    """Time of the step as planned, with a further piece behind `start`, but for its pairs and all tokens."""
    h, c = sight.head[0], sight.cost
    a, b = 0.5 * c[at + PAIR_S], c[at + PAIR_S] * (start + 0.5)
    fixed = _work_s(sight, 1, start, at) + c[REBUILD_S]
    return fixed - (a + b + _tokens_s(sight, float64(h.decodes + h.prefill_tokens + 1), at))


@inlined
def _fitting(sight: Sight, start: int, limit_s: float, at: int) -> float:
    """As `fitting`, for the device, by the terms at `at`, if nothing is filled up."""
    h, c = sight.head[0], sight.cost
    a, b = 0.5 * c[at + PAIR_S], c[at + PAIR_S] * (start + 0.5)
    left = limit_s - _fixed_s(sight, start, at)
    spare = left - c[at + WEIGHTS_S]
    if spare <= 0.0:
        return 0.0
    n = _root(a, b, spare)
    spare = left - c[at + TOKEN_S] * (h.decodes + h.prefill_tokens)
    if spare <= 0.0:
        return 0.0
    return min(n, _root(a, b + c[at + TOKEN_S], spare))


@inlined
def _root(a: float, b: float, c: float) -> float:
    """The positive x with a x x + b x = c, 1e18 where all are small enough."""
    if a > 0.0:
        return (np.sqrt(b * b + 4.0 * a * c) - b) / (2.0 * a)
    return c / b if b > 0.0 else 1e18


@compiled
def expect(sight: Sight) -> None:
    """Expected rest of every output: the mean of the past lengths above what is out, cut to what is allowed.

    Two draws from the middle of what is allowed are added to the past, which may be empty.
    """
    h = sight.head[0]
    count = h.past
    for j in range(1, count):  # insertion sort of what is mostly new in the last places
        x = sight.past[j]
        i = j
        while i > 0 and sight.past[i - 1] > x:
            sight.past[i] = sight.past[i - 1]
            i -= 1
        sight.past[i] = x
    sight.tail[count] = 0.0
    for j in range(count - 1, -1, -1):
        sight.tail[j] = sight.tail[j + 1] + sight.past[j]
    for k in range(h.running + h.waiting):
        out, most = float64(sight.n[GENERATED, k]), float64(sight.n[MAX_NEW, k])
        low = _above(sight.past, count, out)
        high = _above(sight.past, count, most)
        total = sight.tail[low] - sight.tail[high] + most * (count - high) - out * (count - low)
        sight.rest[k] = max(1.0, (total + max(most - out, 1.0)) / (count - low + 2))


@inlined
def _above(values: F64, count: int, x: float) -> int:
    """Of the first `count` sorted values, the first above x."""
    low, high = int64(0), int64(count)
    while low < high:
        middle = (low + high) // 2
        if values[middle] > x:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def rank(sight: Sight) -> None:
    """Sort who runs, or is planned to, by expected rest, and prepare `peak_with`.

    When the request with the k-th most left ends, the k longest are alive and have each grown by its rest: the total
    then is `total[k] + k * left[k - 1]`. Source: Gong et al., ASPLOS 2025.
    """
    h = sight.head[0]
    n = int64(0)
    for k in range(h.running + h.waiting):
        if (k < h.running and sight.mark[k] != TAKEN) or (k >= h.running and sight.mark[k] == PICKED):
            insert(sight, n, float64(known(sight, k)), sight.rest[k])
            n += 1
    h.ranked = n
    add_up(sight)


@inlined
def insert(sight: Sight, n: int, held: float, left: float) -> None:
    """Put a request among the first n ranked."""
    i = int64(n)
    while i > 0 and sight.left[i - 1] < left:
        sight.left[i] = sight.left[i - 1]
        sight.held[i] = sight.held[i - 1]
        i -= 1
    sight.left[i] = left
    sight.held[i] = held


@compiled
def add_up(sight: Sight) -> None:
    """Sums and largest totals over the ranked."""
    n = sight.head[0].ranked
    sight.total[0] = sight.before[0] = 0.0
    for k in range(n):
        sight.total[k + 1] = sight.total[k] + sight.held[k]
        sight.before[k + 1] = max(sight.before[k], sight.total[k + 1] + (k + 1) * sight.left[k])
    sight.behind[n] = 0.0
    for k in range(n - 1, -1, -1):  # with one more that lives at least as long
        sight.behind[k] = max(sight.behind[k + 1], sight.total[k + 1] + (k + 2) * sight.left[k])


@inlined
def peak_with(sight: Sight, held: float, left: float) -> float:
    """Largest expected total of tokens if a request with these is let in."""
    n = sight.head[0].ranked
    low, high = int64(0), int64(n)
    while low < high:  # first with less left
        middle = (low + high) // 2
        if sight.left[middle] < left:
            high = middle
        else:
            low = middle + 1
    own = sight.total[low] + held + (low + 1) * left
    later = sight.behind[low] + held if low < n else 0.0
    return max(sight.before[low], max(own, later))
