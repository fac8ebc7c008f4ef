"""The pilot method: what would become of the shop if this candidate went next and a rule played on from there?

Every candidate is tried in a copy of the shop and a few dispatch rules play each copy to its end. The makespans
are columns of the graph `pilot`, and what the `pilot` policies choose by. The copy knows what a dispatcher knows:
jobs that have not arrived do not exist in it, no machine that runs will break, and a broken one is taken to be
repaired after one more mean duration.

Source: Duin and Voss, The pilot method, Networks 34 (1999); as the rollout algorithm: Bertsekas, Tsitsiklis and
Wu, Rollout algorithms for combinatorial optimization, Journal of Heuristics 3 (1997).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dispatchgym.envs.api import Feature
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.jobshop.kernel import is_down, is_over, step
from dispatchgym.envs.jobshop.priority import FDD_MWKR, LRPT, MWKR, SPT, choose
from dispatchgym.envs.jobshop.state import F32, F64, I32, I64, U64, Capacity, Mode, Problem, Shop, new_shop

COUNT = 3
"""Rules that play on in the graph `pilot`."""

CLASSIC = ((LRPT, None), (FDD_MWKR, None), (MWKR, None))
"""They, as (rule, cap), in the classic shop."""

BLOCKING = ((LRPT, 0.55), (LRPT, 0.8), (SPT, 0.7))
"""The same in the blocking shops."""

MOST_CLASSIC = 8_000
"""Operations played for one observation, candidates x rules x operations left: about 2 ms of one core. Larger shops
are not looked ahead in until they have shrunk."""

MOST_BLOCKING = 100_000
"""The same in blocking shops, where nothing else shows that the shop is about to jam."""

_MEAN = "mean durations"
_EACH = "lrpt, fdd/mwkr, mwkr; in blocking shops lrpt+cap0.55, lrpt+cap0.8, spt+cap0.7"
JOB_COLUMNS = (
    Feature("pilot", _MEAN, 0, 1e6, "best makespan of the rules that play on, minus the lower bound now"),
    Feature("behind", _MEAN, 0, 1e6, "the same minus that of the best candidate"),
    *(
        Feature(f"behind_{k + 1}", _MEAN, 0, 1e6, f"that of rule {k + 1} minus the best of all; {_EACH}")
        for k in range(COUNT)
    ),
)
"""Of a candidate's node; 0 for other jobs, where there is only one candidate, and where trying would take too long."""

SHOP_COLUMNS = (
    Feature("pilot", _MEAN, 0, 1e6, "best makespan of all candidates and rules, minus the lower bound now"),
    Feature("wait_lead", _MEAN, -1e6, 1e6, "best makespan without WAIT minus that with it; 0 if WAIT is not legal"),
    *(
        Feature(f"wait_behind_{k + 1}", _MEAN, 0, 1e6, f"that of rule {k + 1} after WAIT minus the best; {_EACH}")
        for k in range(COUNT)
    ),
)


class Pilots(NamedTuple):
    """Who plays on, and room for it."""

    rule: I32  # (rules,)
    cap: F64  # (rules,): share of the machines, 0 for none
    copy: Shop  # one environment
    found: I64  # (jobs + 1, rules): makespan after each action
    stream: U64  # (1,): of `choose`, never drawn from
    priority: F64  # (jobs,): of `choose`


def pilots_of(rules: Sequence[tuple[int, float | None]], room: Capacity) -> Pilots:
    """`rules` as (code, cap), with room for the largest instance."""
    copy = new_shop(1, room)._replace(
        down_from=np.zeros((1, room.machines), np.int64), down_to=np.zeros((1, room.machines), np.int64)
    )
    return Pilots(
        rule=np.array([code for code, _ in rules], np.int32),
        cap=np.array([cap or 0.0 for _, cap in rules], np.float64),
        copy=copy,
        found=np.zeros((room.jobs + 1, len(rules)), np.int64),
        stream=np.zeros(1, np.uint64),
        priority=np.zeros(room.jobs, np.float64),
    )


@inlined
def copy_known(problem: Problem, shop: Shop, i: int, copy: Shop) -> None:
    """Put what is known of environment i into environment 0 of `copy`."""
    k = shop.slot[i]
    now = shop.now[i]
    copy.slot[0] = k
    copy.now[0] = now
    copy.bound[0] = shop.bound[i]
    copy.ops_left[0] = shop.ops_left[i]
    copy.jobs_left[0] = shop.jobs_left[i] - shop.hidden[i]
    copy.in_shop[0] = shop.in_shop[i]
    copy.hidden[0] = 0
    copy.dead[0] = 0
    for j in range(problem.num_jobs[k]):
        unknown = shop.seen[i, j] == 0
        copy.seen[0, j] = 1
        copy.next_op[0, j] = problem.job_ptr[k, j + 1] if unknown else shop.next_op[i, j]
        copy.ready[0, j] = now if unknown else shop.ready[i, j]
        copy.holds[0, j] = shop.holds[i, j]
    windows = 0
    for m in range(problem.num_machines[k]):
        copy.free[0, m] = shop.free[i, m]
        copy.holder[0, m] = shop.holder[i, m]
        copy.load[0, m] = shop.load[i, m]
        copy.pending[0, m] = shop.pending[i, m]
        copy.queued[0, m] = shop.queued[i, m]
        copy.queued_work[0, m] = shop.queued_work[i, m]
        copy.down_ptr[0, m] = copy.down_at[0, m] = windows
        if is_down(shop, i, m):
            repaired = now + max(int(problem.scale[k]), 1)
            copy.down_from[0, windows] = now
            copy.down_to[0, windows] = repaired
            windows += 1
            j = shop.holder[i, m]
            if j >= 0 and shop.ready[i, j] > now:
                copy.ready[0, j] += repaired - shop.down_to[i, shop.down_at[i, m]]
    for m in range(problem.num_machines[k], copy.free.shape[1] + 1):
        copy.down_ptr[0, m] = windows


@compiled
def play_on(
    problem: Problem, copy: Shop, mode: Mode, action: int, rule: int, cap: int, stream: U64, priority: F64
) -> None:
    """Carry out `action` in environment 0, then let the rule play to the end."""
    while True:
        step(problem, copy, mode, 0, action)
        if is_over(copy, 0):
            return
        action = choose(problem, copy, 0, rule, cap, 0.0, stream, priority)


@inlined
def try_actions(problem: Problem, shop: Shop, mode: Mode, i: int, pilots: Pilots) -> None:
    """Fill `found` for the legal actions of environment i, which stays as it is. Classic shops play on non-delay."""
    k = shop.slot[i]
    copy = pilots.copy
    mode = Mode(mode.blocking, mode.swap, mode.restart, 0.0, False)
    for action in range(shop.mask.shape[1]):
        if shop.mask[i, action] == 0:
            continue
        for r in range(len(pilots.rule)):
            cap = len(shop.next_op[i])
            if pilots.cap[r] > 0:
                cap = max(1, int(pilots.cap[r] * problem.num_machines[k] + 0.5))
            copy_known(problem, shop, i, copy)
            play_on(problem, copy, mode, action, pilots.rule[r], cap, pilots.stream, pilots.priority)
            pilots.found[action, r] = copy.bound[0]


@compiled
def write_pilots(
    problem: Problem, shop: Shop, mode: Mode, pilots: Pilots, most: int, ptr: I32, job: F32, context: F32
) -> None:
    """Write the columns of every environment behind those that the graph `jobs` has too.

    Args:
        most: where more operations than that would have to be played, nothing is tried and the columns are 0.
        ptr: first row of every environment in `job`, (envs + 1,).
        job, context: rows of the job nodes and of the context nodes.
    """
    rules = len(pilots.rule)
    first = job.shape[1] - 2 - rules
    first_context = context.shape[1] - 2 - rules
    wait = shop.mask.shape[1] - 1
    for i in range(len(shop.slot)):
        k = shop.slot[i]
        for c in range(first_context, context.shape[1]):
            context[i, c] = 0
        for row in range(ptr[i], ptr[i + 1]):
            for c in range(first, job.shape[1]):
                job[row, c] = 0
        legal = 0
        for action in range(wait + 1):
            legal += shop.mask[i, action]
        if legal < 2 or legal * rules * shop.ops_left[i] > most:
            continue
        try_actions(problem, shop, mode, i, pilots)
        inv = np.float32(1.0 / problem.scale[k])
        best_job = best_wait = np.iinfo(np.int64).max
        for action in range(wait + 1):
            if shop.mask[i, action] == 1:
                for r in range(rules):
                    if action == wait:
                        best_wait = min(best_wait, pilots.found[action, r])
                    else:
                        best_job = min(best_job, pilots.found[action, r])
        best = min(best_job, best_wait)
        context[i, first_context] = np.float32(best - shop.bound[i]) * inv
        if shop.mask[i, wait] == 1:
            context[i, first_context + 1] = np.float32(best_job - best_wait) * inv
            for r in range(rules):
                context[i, first_context + 2 + r] = np.float32(pilots.found[wait, r] - best) * inv
        row = ptr[i]
        for j in range(problem.num_jobs[k]):
            if shop.seen[i, j] == 0 or shop.next_op[i, j] >= problem.job_ptr[k, j + 1]:
                continue
            if shop.mask[i, j] == 1:
                own = pilots.found[j, 0]
                for r in range(rules):
                    own = min(own, pilots.found[j, r])
                    job[row, first + 2 + r] = np.float32(pilots.found[j, r] - best) * inv
                job[row, first] = np.float32(own - shop.bound[i]) * inv
                job[row, first + 1] = np.float32(own - best) * inv
            row += 1


@inlined
def best_action(shop: Shop, i: int, pilots: Pilots) -> int:
    """The legal action with the best makespan in `found`; ties go to the lowest number, so to WAIT last."""
    chosen = -1
    best = np.iinfo(np.int64).max
    for action in range(shop.mask.shape[1]):
        if shop.mask[i, action] == 1:
            for r in range(len(pilots.rule)):
                if pilots.found[action, r] < best:
                    best = pilots.found[action, r]
                    chosen = action
    return chosen


def rules_for(is_blocking: bool) -> tuple[tuple[int, float | None], ...]:
    """The rules that play on in the graph `pilot`."""
    return BLOCKING if is_blocking else CLASSIC
