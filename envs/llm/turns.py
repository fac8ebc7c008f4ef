"""Engines played choice by choice: plans grow in a `Sight`, are carried out by the engine's own functions, and pay.

What the engine does with a plan is `apply`, for a policy in a simulation as for an action here.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.apply import apply
from dispatchgym.envs.llm.arrivals import arrive, begin, next_epoch
from dispatchgym.envs.llm.choices import best_choice, list_choices
from dispatchgym.envs.llm.columns import Choices
from dispatchgym.envs.llm.grants import NO_ORDER
from dispatchgym.envs.llm.graph import RUN, WAIT
from dispatchgym.envs.llm.jumps import hold_on
from dispatchgym.envs.llm.planning import hold_of, look, take
from dispatchgym.envs.llm.record import FINISHED
from dispatchgym.envs.llm.sight import Sight, see_state
from dispatchgym.envs.llm.state import DONE, ENDED, F64, I32, I64, WAITING, State, int64
from dispatchgym.envs.llm.step_time import step_seconds
from dispatchgym.envs.llm.steps import emit, finish_step

_DONE, _ENDED, _WAITING, _FINISHED = DONE, ENDED, WAITING, FINISHED

BOOK = -3
_NOTHING = -2

WAIT_STEPS = 2.0
"""WAIT lets so many of the shortest steps pass, or the time until a request comes."""

EPISODE = np.dtype(
    [
        ("over", np.int64),
        ("fresh", np.int64),  # 1: a new step begins
        ("mean_slo", np.int64),
        ("decisions", np.int64),
        ("met", np.int64),  # requests that met all their bounds
        ("recomputed", np.int64),
        ("elapsed_s", np.float64),  # between the last two decisions
        ("max_wait_s", np.float64),
        ("elsewhere", np.int64),  # 1: an executor of its own runs the steps
        ("pending", np.int64),  # 1: it is to run the step at hand
        ("duration_s", np.float64),  # that it took
        # what is paid
        ("credit", np.float64),
        ("crowd", np.float64),
        ("recompute", np.float64),
        ("lasting", np.float64),
    ]
)


class Turns(NamedTuple):
    """N engines: the arrays of `State`, `Sight` and `Choices`, each with the engine in front."""

    state: State
    sight: Sight
    choices: Choices
    episode: Any  # (N,) of EPISODE
    default: Any  # (1,) of RULE: what fills a step of which nothing could be made
    counts: I64  # (N, repairs)
    first: I64  # (3,)
    how: I32  # (room,) zeros: preempted requests are computed anew


@inlined
def state_of(t: State, i: int) -> State:
    """The arrays of engine i."""
    return State(
        t.eng[i], t.req[i], t.hashes[i], t.block[i], t.map_key[i], t.map_block[i], t.table[i], t.slot[i], t.run[i],
        t.batch[i], t.group[i], t.swap_out[i], t.swap_in[i], t.history[i], t.cost[i], t.pad[i], t.crossing[i],
        t.log[i], t.gaps[i], t.token_request[i], t.token_s[i],
    )  # fmt: skip


@inlined
def sight_of(t: Sight, i: int) -> Sight:
    """The arrays of engine i."""
    return Sight(
        t.head[i], t.id[i], t.f[i], t.n[i], t.mark[i], t.rest[i], t.past[i], t.tail[i], t.held[i], t.left[i],
        t.before[i], t.behind[i], t.total[i], t.listed[i],
        t.ahead[i], t.dropped[i], t.by_due[i], t.cost[i], t.pad[i], t.grant[i], t.tokens[i], t.out[i],
    )  # fmt: skip


@inlined
def choices_of(t: Choices, i: int) -> Choices:
    """The arrays of engine i."""
    return Choices(
        t.size[i], t.kind[i], t.who[i], t.tokens[i], t.row[i], t.prefix[i], t.key[i], t.prefix_row[i], t.engine[i],
        t.weights[i],
    )  # fmt: skip


@compiled
def play(turns: Turns, actions: I64, reward: F64, to_end: bool) -> None:
    """Carry out `actions` (-1: none) in every engine that is not over, then all that is without alternative.

    Rewards are written. `to_end`: all further choices are those of the highest merit, until every engine is over.
    An engine whose steps run elsewhere stops with `pending`; action BOOK goes on once `duration_s` is there and the
    rows of its batch say what came out.
    """
    for i in range(len(actions)):
        reward[i] = 0.0
        episode = turns.episode[i]
        if episode.over == 1:
            episode.elapsed_s = 0.0
            continue
        s, sight, choices = state_of(turns.state, i), sight_of(turns.sight, i), choices_of(turns.choices, i)
        before_s = s.eng[0].now
        action = int64(actions[i])
        if action != BOOK:
            episode.elapsed_s = 0.0
        while True:
            is_step = action == _NOTHING
            if action >= 0:
                kind = take(sight, choices, action)
                if kind == WAIT:
                    crowd, since_s = s.eng[0].waiting, s.eng[0].now
                    is_step = not _pass_time(s, sight, episode)
                    reward[i] -= episode.crowd * crowd * (s.eng[0].now - since_s)
                elif kind == RUN:
                    is_step = True
            if is_step:
                _fill(s, sight, turns.default, turns.how, turns.counts[i], turns.first)
                episode.fresh = 1
                if episode.elsewhere == 1:
                    episode.pending = 1
                    break
            if is_step or action == BOOK:
                reward[i] += _book(s, sight, episode)
            if episode.fresh == 1:
                known = s.eng[0].next
                if next_epoch(s) == _DONE:
                    episode.over = 1
                    break
                reward[i] -= episode.crowd * _late_arrivals(s, known)
                see_state(sight, s, episode.mean_slo == 1)
                look(sight)
                episode.fresh = 0
            list_choices(sight, choices)
            if choices.size[0] == 0:
                action = int64(_NOTHING)
            elif choices.size[0] == 1 or to_end:
                action = best_choice(choices)
            else:
                episode.decisions += 1
                break
        episode.elapsed_s += s.eng[0].now - before_s
        reward[i] -= episode.lasting * (s.eng[0].now - before_s)


@inlined
def _late_arrivals(s: State, known: int) -> float:
    """Seconds that the requests from `known` on have been there."""
    total = 0.0
    for r in range(known, s.eng[0].next):
        if s.req[r].state == _WAITING:
            total += s.eng[0].now - s.req[r].arrival_s
    return total


@compiled
def _fill(s: State, sight: Sight, default: Any, how: I32, counts: I64, first: I64) -> None:
    """Fill the step by the plan."""
    h = sight.head[0]
    begin(s)
    apply(
        s, NO_ORDER, sight.out[: h.preempted], how[: h.preempted], sight.grant[: h.grants],
        sight.tokens[: h.grants], NO_ORDER, False, default, counts, first,
    )  # fmt: skip


@compiled
def _book(s: State, sight: Sight, episode: Any) -> float:
    """Make the step at hand, or book the one that was made elsewhere; returns what it pays."""
    e = s.eng[0]
    rows, before_s, crowd = e.batch, e.now, e.running + e.waiting
    recomputed = int64(0)
    for k in range(rows):
        recomputed -= s.req[s.batch[k].request].recomputed
    if episode.elsewhere == 1:
        episode.pending = 0
        finish_step(s, episode.duration_s)
    elif e.prefills == 0:
        hold_on(s, hold_of(sight), False, False)
    else:
        emit(s)
        finish_step(s, step_seconds(s))
    credit = 0.0
    for k in range(rows):
        q = s.req[s.batch[k].request]
        recomputed += q.recomputed
        in_time = q.generated > 0 and q.first_token_s - q.arrival_s <= q.ttft_slo_s * (1 + 1e-9)
        if in_time and q.first_token_s == e.now:
            credit += 0.5
        if q.state == _ENDED and q.status == _FINISHED and in_time:
            gap = q.max_gap_s
            if episode.mean_slo == 1:
                gap = (q.last_token_s - q.first_token_s) / max(1, q.generated - 1)
            met = q.generated < 2 or gap <= q.tpot_slo_s * (1 + 1e-9)
            credit += 0.5 if met else -0.5
            episode.met += met
    episode.recomputed += recomputed
    crowded = episode.crowd * crowd * (e.now - before_s)
    return episode.credit * credit - crowded - episode.recompute * recomputed


@compiled
def _pass_time(s: State, sight: Sight, episode: Any) -> bool:
    """Let time pass until a request comes or the wait is over; False if the engine has waited long enough."""
    e, h = s.eng[0], sight.head[0]
    until = min(e.now + WAIT_STEPS * h.unit_s, e.now + episode.max_wait_s - e.waited_s)
    if not until > e.now:
        return False
    if e.next < e.num:
        until = min(until, s.req[e.next].arrival_s)
    e.waited_s += until - e.now
    e.now, e.plain_s = until, 0.0
    arrive(s)
    episode.fresh = 1
    return True
