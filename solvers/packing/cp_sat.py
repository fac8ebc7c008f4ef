"""cp-sat: the best placement of all pods at once, by priority, with proof, within limits.

Two methods. "tiers" is the one of 'Priority Matters' (Christensen, Giallorenzo, Mauro, arXiv 2511.08373): from the
highest priority down, place as many pods of this priority and above as possible, then disturb those that run as
little as possible, and keep both. A stop in an early tier may leave it with less than there was before.

"anytime" never ends worse than it began. It first takes the tiers with floors, so that no tier together with those
above it loses a pod; that is quick and moves few. Then it drops the floors, maximises one weighted sum over all
priorities less a little for disruption, takes the tiers again for proof, and disturbs least; what the floors have
settled for good is left out. A stage starts from the best placement so far, and its answer is kept only if it is
better. Here placing comes before moving in all tiers, so its proof is about the placed pods alone: it may move a pod
for one of lower priority, which "tiers" does not.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, get_args

import numpy as np
from ortools.sat.python import cp_model

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.packing.model import build_model
from dispatchgym.solvers.packing.plan import Hosts, Plan, check_hosts, check_modelled, placed_by_priority

Method = Literal["anytime", "tiers"]
Status = Literal["optimal", "feasible", "unknown"]
"""Every stage proven; a placement but some stage without proof; no stage came to any answer."""

LARGEST_SEED = 2**31 - 1
FLOORS_SHARE = 0.7
"""Of the limit, what the tiers with floors of "anytime" may use: with half, 256 pods in 1 s gain less than by tiers."""
PLACING_SHARE = 0.8
"""Of a tier's limit in there, for placing: a large model needs most of 1 s to begin with."""
HALF = 0.5
"""Of the rest, for the weighted sum; of a tier's limit elsewhere, for placing."""
SURE_SHARE = 0.6
"""Of the limit, what is divided among the tiers; earlier tiers may use up the rest (the paper's choice)."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The outcome of one solve. Reaching a limit is a status, not an error.

    Args:
        status: see `Status`.
        placed: pods that run under the plan, one entry a priority, highest first.
        bound: for each priority, highest first, most pods of it and above that can run, among all placements that
            are as good in what was settled before (with "tiers" that includes the disruption of higher tiers).
        moves, evictions: pods of the plan that change their node, and that run no more.
        wall_s: seconds from call to return, building the model included.
        cpu_s: processor seconds of this process in that time, all threads.
        deterministic_s: the solver's own count of work done, comparable between machines.
        plan: from the given placement to the best one; valid.
        method, workers, seed: as asked for.
        version: of the solver, as 'ortools 9.15.6755'.
    """

    status: Status
    placed: tuple[int, ...]
    bound: tuple[int, ...]
    moves: int
    evictions: int
    wall_s: float
    cpu_s: float
    deterministic_s: float
    plan: Plan
    method: Method
    workers: int
    seed: int
    version: str

    @property
    def is_placing_proven(self) -> bool:
        """In every tier as many pods run as its bound allows."""
        return tuple(np.cumsum(self.placed).tolist()) == self.bound

    @property
    def proves_default_optimal(self) -> bool:
        """The placement that was given is already the best: proven, and nothing need change."""
        return self.is_placing_proven and self.plan.now == self.plan.then


def solve(
    instance: PackingInstance,
    now: Hosts,
    *,
    method: Method = "anytime",
    time_limit: float | None = 10.0,
    deterministic_limit: float | None = None,
    workers: int = 1,
    seed: int = 0,
    hint: Hosts | None = None,
    gone: frozenset[int] = frozenset(),
) -> Solution:
    """The best placement found from the one that runs now.

    With one worker and only a deterministic limit the result depends on nothing but the arguments.

    Args:
        now: pod -> node of all that runs. All other pods of the instance are pending.
        time_limit: wall seconds, building the model included; None for no such limit.
        deterministic_limit: the solver's own seconds of work; None for no such limit.
        workers: search threads.
        hint: a placement to begin with instead of `now`, if it places more; moves are still counted from `now`.
        gone: pods that are not there: departed, or not arrived.

    Raises:
        UnknownNameError, UsageError: an impossible method, limit, worker count or seed; GPUs or topology spread.
        InvalidScheduleError: `now` or the hint breaks a capacity or a filter.
        KeyboardInterrupt: when the stage at hand ends.
    """
    clock, cpu = time.perf_counter(), time.process_time()
    if method not in get_args(Method):
        raise unknown_name("method", method, get_args(Method))
    _check_limits(time_limit, deterministic_limit, workers, seed)
    check_modelled(instance)
    check_hosts(instance, now)
    if gone & now.keys():
        raise UsageError(f"pod {min(gone & now.keys())} runs and is said to be gone; leave it out of one of them")
    deadline = math.inf if time_limit is None else clock + time_limit
    search = _Search(instance, now, gone, deadline, workers, seed)
    if hint is not None:
        check_hosts(instance, hint)
        if gone & hint.keys():
            raise UsageError(f"pod {min(gone & hint.keys())} is in the hint and is said to be gone")
        if placed_by_priority(instance, hint) > placed_by_priority(instance, now):
            search.best = dict(sorted(hint.items()))
    wall = max(0.0, deadline - time.perf_counter())
    limits = _Limits(wall, math.inf if deterministic_limit is None else deterministic_limit)
    if method == "tiers":
        _by_tiers(search, limits)
    else:
        _anytime(search, limits)
    check_hosts(instance, search.best)
    plan = Plan(dict(now), search.best)
    return Solution(
        status="optimal" if all(search.proven) else "feasible" if search.answered else "unknown",
        placed=placed_by_priority(instance, search.best),
        bound=tuple(search.bound),
        moves=len(plan.moved),
        evictions=len(plan.evicted),
        wall_s=time.perf_counter() - clock,
        cpu_s=time.process_time() - cpu,
        deterministic_s=search.deterministic_s,
        plan=plan,
        method=method,
        workers=workers,
        seed=seed,
        version=f"ortools {metadata.version('ortools')}",
    )


def _by_tiers(search: _Search, limits: _Limits, placing: float = HALF) -> _Limits:
    """Place, then disturb least, tier by tier; returns what is left of the limits."""
    purse = limits.purse(len(search.tiers))
    for t in range(len(search.tiers)):
        purse.open()
        purse.spend(search.place(t, purse.part(placing)))
        purse.spend(search.settle(t, purse.part(1.0)))
    return purse.left


def _anytime(search: _Search, limits: _Limits) -> None:
    """Tier by tier with floors; then, without them, all at once, tier by tier for proof, disturb least."""
    search.keeps_best = True
    search.add_floors()
    left = _by_tiers(search, limits.times(FLOORS_SHARE), PLACING_SHARE).plus(limits.times(1.0 - FLOORS_SHARE))
    if search.is_all_placed and all(search.proven):
        return
    search.start_again()
    if not search.is_all_placed:
        left = left.less(search.place_all(left.times(HALF)))
    tiers = len(search.tiers)
    purse = left.purse(tiers + 1)
    for t in range(tiers):
        purse.open()
        purse.spend(search.place(t, purse.part(HALF)))
    purse.open()
    for t in range(tiers):
        purse.spend(search.settle(t, purse.part(HALF if t + 1 < tiers else 1.0)))


@dataclass(frozen=True, slots=True)
class _Limits:
    """Wall seconds and the solver's own seconds; infinite for no limit."""

    wall: float
    deterministic: float

    def times(self, share: float) -> _Limits:
        return _Limits(self.wall * share, self.deterministic * share)

    def less(self, spent: _Limits) -> _Limits:
        return _Limits(max(0.0, self.wall - spent.wall), max(0.0, self.deterministic - spent.deterministic))

    def plus(self, more: _Limits) -> _Limits:
        return _Limits(self.wall + more.wall, self.deterministic + more.deterministic)

    def purse(self, parts: int) -> _Purse:
        return _Purse(self.times(SURE_SHARE / parts), self.times(1.0 - SURE_SHARE))


class _Purse:
    """The limits divided: a sure share for every tier, and a pool that holds what is left over."""

    def __init__(self, sure: _Limits, pool: _Limits) -> None:
        self.sure = sure
        self.left = pool

    def open(self) -> None:
        """The next tier: its share and what is left of the pool and of the tiers before."""
        self.left = self.left.plus(self.sure)

    def part(self, share: float) -> _Limits:
        return self.left.times(share)

    def spend(self, spent: _Limits) -> None:
        self.left = self.left.less(spent)


_NOTHING = _Limits(0.0, 0.0)


class _Search:
    """One model and its stages: each starts from the best placement so far and narrows the model for the next."""

    def __init__(
        self, instance: PackingInstance, now: Hosts, gone: frozenset[int], deadline: float, workers: int, seed: int
    ) -> None:
        self.instance = instance
        self.now = now
        self.best = dict(now)
        self.pods = [p for p in range(instance.num_pods) if p not in gone]
        priority = instance.pods.priority
        self.tiers = [[p for p in self.pods if priority[p] >= tier] for tier in instance.tiers]
        self.answered = False
        self.keeps_best = False
        self.deterministic_s = 0.0
        self._deadline = deadline
        self._workers = workers
        self._seed = seed
        self.start_again()

    def start_again(self) -> None:
        """Forget what stages have kept and proven, but not the best placement."""
        self.bound = [len(tier) for tier in self.tiers]
        self.proven: list[bool] = []
        self._model = build_model(self.instance, self.pods)

    @property
    def is_all_placed(self) -> bool:
        return len(self.best) == len(self.pods)

    def add_floors(self) -> None:
        """No tier, together with those above it, may lose a pod. Proofs then hold only among such placements."""
        for t, tier in enumerate(self.tiers):
            self._model.cp.add(self._model.running(tier) >= self._count(t))

    def place_all(self, limits: _Limits) -> _Limits:
        """Maximise placed pods weighted by tier, as far as numbers allow so that tiers come in order; stay if equal."""
        tiers, most = len(self.tiers), len(self.pods)
        room = 2.0**60 / (tiers * 2 * most * (2 * most + 1))  # the sum stays within int64
        base = min(most + 1, max(1, int(room ** (1 / max(1, tiers - 1)))))
        weight = [(2 * most + 1) * base ** (tiers - 1 - t) for t in range(tiers)]
        placed = [w * self._model.running(tier) for w, tier in zip(weight, self.tiers, strict=True)]
        self._model.cp.maximize(sum(placed) - self._model.disruption(self.pods, self.now))
        return self._solve(limits)[0]

    def place(self, t: int, limits: _Limits) -> _Limits:
        """Maximise the placed pods of tier t and above, and keep their number."""
        running = self._model.running(self.tiers[t])
        spent, has = _NOTHING, self._count(t)
        if has < len(self.tiers[t]):
            if self.keeps_best:
                self._model.cp.add(running >= has)
            self._model.cp.maximize(running)
            spent, bound = self._solve(limits)
            if bound is not None:
                self.bound[t] = min(self.bound[t], math.floor(bound + 1e-6))
            has = self._count(t)
        self._keep(running, has, has == self.bound[t], upward=True)
        return spent

    def settle(self, t: int, limits: _Limits) -> _Limits:
        """Disturb the running pods of tier t and above as little as possible, and keep it so."""
        disruption = self._model.disruption(self.tiers[t], self.now)
        spent, least = _NOTHING, -sum(p in self.now for p in self.tiers[t])
        if self._disruption(self.best, t) > least:
            self._model.cp.minimize(disruption)
            spent, bound = self._solve(limits)
            if bound is not None:
                least = max(least, math.ceil(bound - 1e-6))
        has = self._disruption(self.best, t)
        self._keep(disruption, has, has == least, upward=False)
        return spent

    def _count(self, t: int) -> int:
        return sum(p in self.best for p in self.tiers[t])

    def _disruption(self, hosts: Hosts, t: int) -> int:
        return sum(-1 if hosts[p] == self.now[p] else 1 for p in self.tiers[t] if p in hosts and p in self.now)

    def _rank(self, hosts: Hosts) -> tuple[tuple[int, ...], list[int]]:
        """The higher the better: placed pods, then undisturbed ones, the upper tiers first."""
        return placed_by_priority(self.instance, hosts), [-self._disruption(hosts, t) for t in range(len(self.tiers))]

    def _keep(self, expression: cp_model.LinearExprT, value: int, proven: bool, *, upward: bool) -> None:
        """The next stages reach this value or, without proof, at least this value."""
        cp = self._model.cp
        if proven:
            cp.add(expression == value)
        else:
            cp.add(expression >= value if upward else expression <= value)
        self.proven.append(proven)
        self.answered |= proven

    def _solve(self, limits: _Limits) -> tuple[_Limits, float | None]:
        """Search; returns what it took and the bound on the objective, None if there was no answer."""
        clock, cp = time.perf_counter(), self._model.cp
        self._model.hint(self.best)
        wall = min(limits.wall, self._deadline - clock)
        if min(wall, limits.deterministic) <= 0.0:
            return _NOTHING, None
        solver = cp_model.CpSolver()
        parameters = solver.parameters
        parameters.num_workers = self._workers
        parameters.random_seed = self._seed
        # Else Ctrl-C would end one stage and not the program.
        parameters.catch_sigint_signal = False
        # There is little to simplify, and it costs most of 1 s: 16 x 8 pods of one priority are proven in 0.2 s
        # instead of 0.9 s without, and 32 x 8 pods are searched at all.
        parameters.cp_model_presolve = False
        parameters.max_time_in_seconds = wall
        parameters.max_deterministic_time = limits.deterministic
        status = solver.solve(cp)
        assert status != cp_model.MODEL_INVALID, f"CP-SAT refuses the model: {cp.validate()}"
        assert status != cp_model.INFEASIBLE, "the placement that a stage starts from is a solution"
        bound = None
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            self.answered, bound = True, solver.best_objective_bound
            found = {p: n for (p, n), var in self._model.on.items() if solver.boolean_value(var)}
            if not self.keeps_best or self._rank(found) > self._rank(self.best):
                self.best = dict(sorted(found.items()))
        self.deterministic_s += solver.deterministic_time
        return _Limits(time.perf_counter() - clock, solver.deterministic_time), bound


def _check_limits(time_limit: float | None, deterministic_limit: float | None, workers: int, seed: int) -> None:
    for name, limit in (("time limit", time_limit), ("deterministic limit", deterministic_limit)):
        if limit is not None and not 0 <= limit < math.inf:
            raise UsageError(f"{name} is {limit}; it must be at least 0 seconds, or None for no limit")
    if workers < 1:
        raise UsageError(f"workers is {workers}; at least 1 is needed")
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed is {seed}; CP-SAT takes 0 to {LARGEST_SEED}")
