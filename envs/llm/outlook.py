"""What becomes of a request if the engine goes on: how much of its time is left, and whether it can still be in time.

Also who has waited so long that it must not wait on.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.sight import (
    ARRIVAL,
    FIRST_TOKEN,
    GENERATED,
    GROUP,
    LAST_TOKEN,
    TPOT,
    TTFT,
    Sight,
    decoding,
    known,
    shortest_s,
    start_of,
)
from dispatchgym.envs.llm.state import BASE_S, F64, HOST_S, I64, PAIR_S, TOKEN_S, WEIGHTS_S, float64, int64

PATIENCE, PATIENCE_STEPS = 20.0, 10_000.0
"""Who has waited for so many times its bound, and for so many of the shortest steps, is overdue."""

TURNS = 16
"""While somebody is overdue, one in so many pieces is of the first to come of these, whatever anyone thinks of it."""


@inlined
def until_late(sight: Sight, k: int) -> float:
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
    work = steps * c[BASE_S] + max(steps * c[WEIGHTS_S], c[TOKEN_S] * left) + c[PAIR_S] * pairs
    return max(work, steps * c[HOST_S])


@inlined
def slack_s(sight: Sight, k: int) -> float:
    """Time left until the first token of request k is due, once its prompt is read; inf without a bound."""
    if sight.n[GENERATED, k] > 0:
        return np.inf
    return sight.f[ARRIVAL, k] + sight.f[TTFT, k] - sight.head[0].now - work_s(sight, k)


@inlined
def is_doomed(sight: Sight, k: int) -> bool:
    """Request k, with tokens out, has missed one of its bounds or is going to."""
    h = sight.head[0]
    if sight.f[FIRST_TOKEN, k] - sight.f[ARRIVAL, k] > sight.f[TTFT, k]:
        return True
    if sight.f[TPOT, k] == np.inf:
        return False
    until = until_late(sight, k)
    if h.mean_slo == 1:
        return until + sight.f[TPOT, k] * (sight.rest[k] - 1.0) < sight.rest[k] * h.unit_s
    return until < 0.0


@compiled
def find_overdue(sight: Sight) -> int:
    """The first to come of those that are overdue and not decoding; -1 if nobody is."""
    h = sight.head[0]
    first, earliest_s = int64(-1), np.inf
    for k in range(h.running + h.waiting):
        came_s = sight.f[ARRIVAL, k]
        patience_s = PATIENCE_STEPS * h.unit_s
        if sight.f[TTFT, k] < np.inf:
            patience_s = max(patience_s, PATIENCE * sight.f[TTFT, k])
        if came_s < earliest_s and h.now - came_s > patience_s and (k >= h.running or not decoding(sight, k)):
            first, earliest_s = int64(k), came_s
    return first


@inlined
def has_turn(sight: Sight) -> bool:
    """It is the turn of who is overdue."""
    h = sight.head[0]
    return h.overdue >= 0 and h.passed >= TURNS - 1


@compiled
def made_late(sight: Sight, group: int, rest_s: float, margin: float, found: I64) -> int:
    """How many outside a group could still be in time, but not behind `rest_s` and `margin` of the shortest steps, and
    may go first: nobody in the group who would be in time if it went on is late then. Their ids begin `found`."""
    h = sight.head[0]
    n = 0
    wait_s, room_s = rest_s + margin * shortest_s(sight), np.inf
    for k in range(h.running):
        if sight.n[GROUP, k] == group and sight.n[GENERATED, k] == 0:
            left_s = sight.f[ARRIVAL, k] + sight.f[TTFT, k] - h.now - rest_s
            if left_s >= 0.0:
                room_s = min(room_s, left_s)
    for k in range(h.running + h.waiting):
        if k < h.running and sight.n[GROUP, k] == group:
            continue
        if 0.0 <= slack_s(sight, k) < wait_s and work_s(sight, k) <= room_s:
            found[n] = sight.id[k]
            n += 1
    return n


@compiled
def note_newcomers(sight: Sight, since_s: float, spare_s: F64, count: int) -> int:
    """Write the spare time that those had who came after `since_s` and wait for their first token, into a ring, shape
    (n,): their bound less the time to read their prompt, below 0 for the hopeless. Returns how many came so far."""
    h = sight.head[0]
    for k in range(h.running, h.running + h.waiting):
        if sight.f[ARRIVAL, k] > since_s and sight.n[GENERATED, k] == 0:
            spare_s[count % len(spare_s)] = sight.f[TTFT, k] - work_s(sight, k)
            count += 1
    return count


@compiled
def chance_of_danger(sight: Sight, spare_s: F64, rest_s: float, margin: float) -> float:
    """That the next to come would be late behind `rest_s` and `margin` of the shortest steps, though not otherwise,
    judging by those who came with this spare time: Laplace's rule of succession."""
    wait_s, n = rest_s + margin * shortest_s(sight), 0
    for spare in spare_s:
        n += 1 if 0.0 <= spare < wait_s else 0
    return (n + 1) / (len(spare_s) + 2)
