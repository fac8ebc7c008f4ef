"""The plan of a step as it grows: how it begins, and what taking a choice does."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.backlog import order_backlog
from dispatchgym.envs.llm.choices import best_choice, fits, list_choices, need
from dispatchgym.envs.llm.columns import Choices
from dispatchgym.envs.llm.graph import ADMIT, COLUMNS, MERIT, PREEMPT, RUN, WAIT
from dispatchgym.envs.llm.outlook import find_overdue, until_late
from dispatchgym.envs.llm.shortlist import shortlist
from dispatchgym.envs.llm.sight import (
    ARRIVAL,
    BLOCKS,
    COMPUTED,
    FREE,
    GENERATED,
    PICKED,
    PRIORITY,
    TAKEN,
    TPOT,
    TTFT,
    Sight,
    add_up,
    blocks_of,
    decoding,
    expect,
    floor_s,
    insert,
    known,
    rank,
    seconds,
    shortest_s,
    start_of,
)
from dispatchgym.envs.llm.state import F64, float64, int64

SLOTS = 4
"""Choices that a request has at most, see `slot_of`."""

IS_BRIEF, STRETCHES = COLUMNS["brief"], COLUMNS["stretch"]

POLL, UNTIL_EVENT = 8, 1 << 30
"""Steps that only decode are made so many at a time: while somebody pauses, or waits that there is a place for; and
else, which is until a request comes or ends."""


@compiled
def look(sight: Sight) -> None:
    """Begin a plan: everyone who decodes goes on, and nobody else has been chosen."""
    h = sight.head[0]
    n = h.running + h.waiting
    h.budget, h.all_places = h.token_budget, h.places + h.running
    h.decodes = h.context = h.prefills = h.prefill_tokens = h.grants = h.preempted = h.late = 0
    h.pairs = 0.0
    h.limit_s = h.due_s = np.inf
    h.unit_s, h.floor_s = shortest_s(sight), floor_s(sight)
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
            slack = until_late(sight, k)
            if slack < alone:
                h.late += 1
            else:
                h.limit_s = min(h.limit_s, slack)
    h.least_rank, h.most_rank = int64(2**40), int64(-(2**40))
    for k in range(n):
        h.least_rank = min(h.least_rank, int64(sight.n[PRIORITY, k]))
        h.most_rank = max(h.most_rank, int64(sight.n[PRIORITY, k]))
    h.overdue = find_overdue(sight)
    shortlist(sight)
    order_backlog(sight)


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
        if not fits(sight, k):
            return int64(-1)
        h.places -= 1
        h.free -= need(sight, k)
        insert(sight, h.ranked, float64(known(sight, k)), sight.rest[k])
        h.ranked += 1
        add_up(sight)
    h.passed = int64(0) if k == h.overdue else h.passed + 1
    sight.mark[k] = PICKED
    sight.grant[h.grants], sight.tokens[h.grants] = sight.id[k], tokens
    h.grants += 1
    h.prefills += 1
    h.prefill_tokens += tokens
    h.pairs += float64(tokens) * start + 0.5 * float64(tokens) * (tokens + 1)
    h.context += start
    h.budget -= tokens
    if sight.n[GENERATED, k] == 0 and start + tokens == known(sight, k):
        due_s = sight.f[ARRIVAL, k] + sight.f[TTFT, k] - h.now
        if seconds(sight, int64(0), int64(0)) <= due_s:
            h.due_s = min(h.due_s, due_s)
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


@compiled
def hold_of_plan(sight: Sight) -> int:
    """Times that the step as planned is to be made if it only decodes."""
    return hold_of(sight)


@compiled
def step_of_plan(sight: Sight) -> float:
    """Seconds that the step as planned is expected to take."""
    return seconds(sight, int64(0), int64(0))


@compiled
def plan_by_scores(sight: Sight, choices: Choices, weight: float, added: F64, of_engine: F64) -> int:
    """Go on with a plan, a list of choices at hand; returns as `plan_by_merit`.

    A choice is worth `weight` times its merit and what was added to it when all were scored; where its piece has
    another length by now, what was added to the last of that request.

    Args:
        added: shape (room, SLOTS + 1), the last column that of the last; nan where nothing was scored.
        of_engine: of RUN and WAIT.
    """
    while True:
        best, most = int64(-1), -np.inf
        for at in range(choices.size[0]):
            kind, k = choices.kind[at], choices.who[at]
            worth = weight * choices.row[at, MERIT]
            if kind in (RUN, WAIT):
                worth += of_engine[kind - RUN]
            else:
                own = added[k, slot_of(choices, at)]
                if np.isnan(own):
                    own = added[k, SLOTS]
                worth += 0.0 if np.isnan(own) else own
            if worth > most:
                best, most = int64(at), worth
        if best < 0:
            return int64(-1)
        kind = int64(take(sight, choices, best))
        if kind in (RUN, WAIT):
            return kind
        list_choices(sight, choices)


@compiled
def keep_scores(choices: Choices, logits: F64, weight: float, added: F64, of_engine: F64) -> None:
    """Write for `plan_by_scores` what scores of the listed choices are beyond the merit's part."""
    added[:] = np.nan
    of_engine[:] = 0.0
    for at in range(len(logits)):
        kind, k = choices.kind[at], choices.who[at]
        own = logits[at] - weight * choices.row[at, MERIT]
        if kind in (RUN, WAIT):
            of_engine[kind - RUN] = own
        else:
            added[k, slot_of(choices, at)] = own
            added[k, SLOTS] = own


@inlined
def slot_of(choices: Choices, at: int) -> int:
    """Which of a request's choices one is: three lengths of a piece, or losing its blocks."""
    if choices.kind[at] == PREEMPT:
        return int64(3)
    return int64(1) + int64(choices.row[at, IS_BRIEF]) - int64(choices.row[at, STRETCHES])
