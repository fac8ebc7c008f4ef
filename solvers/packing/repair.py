"""repair: improve a placement within milliseconds by moving few pods.

Takes any placement, makes room for pending pods by local search (`local_search`), and gives back the best placement
it has met: pods placed by priority, compared from the highest on. It never ends worse than it began, and when every
pod is placed that is the proven optimum. It proves nothing else. Of placements that are as good, the one is kept that
disturbs the fewest running pods; once every pod is placed the search begins anew some times to find such a one.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.state import I64, Problem
from dispatchgym.solvers.packing.local_search import Board, search
from dispatchgym.solvers.packing.plan import Hosts, Plan, check_hosts, check_modelled, filters, placed_by_priority

LOOKS_A_DETERMINISTIC_SECOND = 20_000_000
"""Changes looked at in a deterministic second: about what a core does in a second."""

LOOKS_AT_ONCE = 10_000
"""Between two looks at the clock, about half a millisecond; so much is done whatever the clock says."""


RESTARTS = 16
"""Of a search that has placed everything: the best of so many moves about a fifth fewer pods than the first."""


@dataclass(frozen=True, slots=True)
class Repair:
    """The outcome of one repair.

    Args:
        placed: pods that run under the plan, one entry a priority, highest first.
        is_all_placed: nothing is pending, so the placement is optimal.
        moves, evictions: pods of the plan that change their node, and that run no more.
        rounds: that placed a pod, in all searches.
        wall_s: seconds from call to return. deterministic_s: by the work done, comparable between machines.
        plan: from the given placement to the best one; valid.
    """

    placed: tuple[int, ...]
    is_all_placed: bool
    moves: int
    evictions: int
    rounds: int
    wall_s: float
    deterministic_s: float
    plan: Plan


def repair(
    instance: PackingInstance,
    now: Hosts,
    *,
    time_limit: float | None = 0.05,
    deterministic_limit: float | None = None,
    seed: int = 0,
    gone: frozenset[int] = frozenset(),
) -> Repair:
    """Place more pods than `now` does, the urgent ones first.

    With only a deterministic limit the result depends on nothing but the arguments. Pods under anti-affinity, and those
    it keeps away, stay where they are.

    Args:
        now: pod -> node of all that runs. All other pods of the instance are pending.
        time_limit: wall seconds, everything included; None for no such limit. On a busy machine, where they can be over
            before the search begins, half a millisecond is searched all the same.
        deterministic_limit: in units of work, 1 is about a second; None for no such limit.
        gone: pods that are not there: departed, or not arrived.

    Raises:
        UsageError: GPUs or topology spread; a limit that cannot be, or none; a pod that runs and is gone.
        InvalidScheduleError: `now` breaks a capacity or a filter.
    """
    clock = time.perf_counter()
    limits = [limit for limit in (time_limit, deterministic_limit) if limit is not None]
    if not limits or any(not 0 <= limit < math.inf for limit in limits):
        raise UsageError(f"limits are {time_limit} and {deterministic_limit} s; give one of at least 0")
    check_modelled(instance)
    check_hosts(instance, now)
    if gone & now.keys():
        raise UsageError(f"pod {min(gone & now.keys())} runs and is said to be gone; leave it out of one of them")
    board = _board(instance, now, gone, seed)
    deadline = math.inf if time_limit is None else clock + time_limit
    most = math.inf if deterministic_limit is None else deterministic_limit * LOOKS_A_DETERMINISTIC_SECOND
    first = _Mark(board.host.copy(), board.free.copy(), board.room.copy(), board.placed.copy())
    best, value, disturbed, rounds, restarts = first.host, _value(board), 0, 0, 0
    while board.looks[0] < most and ((board.host < 0) & (board.movable == 1)).any():
        rounds += search(board, int(min(LOOKS_AT_ONCE, most - board.looks[0])))
        if _value(board) >= value:
            changed = int(((board.host != first.host) & (first.host >= 0)).sum())
            if _value(board) > value or changed < disturbed:
                best, value, disturbed = board.host.copy(), _value(board), changed
        if time.perf_counter() >= deadline:
            break
        if restarts < RESTARTS and not ((board.host < 0) & (board.movable == 1)).any():
            restarts += 1
            first.restore(board)
    plan = Plan(dict(now), {p: n for p, n in enumerate(best.tolist()) if n >= 0})
    return Repair(
        placed=placed_by_priority(instance, plan.then),
        is_all_placed=len(plan.then) + len(gone) == instance.num_pods,
        moves=len(plan.moved),
        evictions=len(plan.evicted),
        rounds=rounds,
        wall_s=time.perf_counter() - clock,
        deterministic_s=int(board.looks[0]) / LOOKS_A_DETERMINISTIC_SECOND,
        plan=plan,
    )


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a board stood."""

    host: I64
    free: I64
    room: I64
    placed: I64

    def restore(self, board: Board) -> None:
        board.host[:], board.free[:], board.room[:], board.placed[:] = self.host, self.free, self.room, self.placed
        board.failures[:] = 0.0


def _value(board: Board) -> tuple[int, ...]:
    """Placed pods, highest priority first."""
    return tuple(board.placed[::-1].tolist())


def _board(instance: PackingInstance, now: Hosts, gone: frozenset[int], seed: int) -> Board:
    pods, nodes, problem = instance.pods, instance.nodes, filters(instance)
    count, room = len(pods), nodes.max_pods.astype(np.int64)
    host = np.full(count, -1, np.int64)
    free = np.array(nodes.capacity, np.int64)
    for p, n in now.items():
        host[p] = n
        free[n] -= pods.request[p]
        room[n] -= 1
    movable = ~_under_anti_affinity(problem)[pods.workload]
    movable[list(gone)] = False
    tier = problem.pod["tier"][0, :count].astype(np.int64)
    scale = 1.0 / np.maximum(1.0, nodes.capacity.mean(axis=0))
    return Board(
        request=np.array(pods.request),  # read-only arrays are another type to the compiler
        scale=scale,
        size=pods.request @ scale,
        tier=tier,
        allowed=problem.allowed[0],
        workload=pods.workload.astype(np.int64),
        movable=movable.astype(np.uint8),
        host=host,
        free=free,
        room=room,
        placed=np.bincount(tier[host >= 0], minlength=len(instance.tiers)).astype(np.int64),
        failures=np.zeros(count),
        draws=np.array([seed], np.int64),
        nodes=np.zeros(len(nodes), np.int64),
        pool=np.zeros(count, np.int64),
        before=np.zeros(count, np.int64),
        tabu=np.zeros(count, np.int64),
        key=np.zeros(len(nodes)),
        looks=np.zeros(1, np.int64),
    )


def _under_anti_affinity(problem: Problem) -> np.ndarray:
    """Workloads that have an anti-affinity term or are kept away by one, bool (workloads,)."""
    terms = int(problem.size[0]["num_anti"])
    return np.asarray((problem.anti_owner[0, :terms] | problem.anti_match[0, :terms]).any(axis=0))
