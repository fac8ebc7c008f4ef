"""The rolling re-solver of the interrupting shop: plan, follow the plan, plan anew whenever something happens.

It knows what a dispatch rule knows: the jobs that have arrived, the shutdowns so far, which machines are
down now and by which law machines are repaired; never a shutdown to come or the length of one under way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, validate
from dispatchgym.solvers.jobshop import rules
from dispatchgym.solvers.jobshop.cp_sat import solve
from dispatchgym.solvers.jobshop.outlook import Outlook, Progress, complete
from dispatchgym.solvers.jobshop.solution import Status


@dataclass(frozen=True, slots=True)
class Resolve:
    """One planning within a run.

    Args:
        time: when it happened, instance time units.
        status: of the plan, under the assumption that nothing but the expected repairs will happen.
        old_makespan: of going on in the old order (at the start: of the hint rule).
        makespan: of the new plan.
        wall_s: seconds it took.
        cpu_s: processor seconds it took.
    """

    time: int
    status: Status
    old_makespan: int
    makespan: int
    wall_s: float
    cpu_s: float

    @property
    def keeps_order(self) -> bool:
        """Nothing better than the old order was found, and the old one was not proven best either."""
        return self.makespan == self.old_makespan and self.status != "optimal"


@dataclass(frozen=True, slots=True)
class RollingResult:
    """A run to its end.

    Args:
        schedule: what happened; valid under the scenario.
        decisions: moves and waits made.
        solves: every planning, in time order.
        wall_s: seconds of the whole run.
        cpu_s: processor seconds of the whole run.
    """

    schedule: Schedule
    decisions: int
    solves: tuple[Resolve, ...]
    wall_s: float
    cpu_s: float


def rolling(
    instance: Instance,
    scenario: Scenario,
    *,
    limit_s: float | None = None,
    deterministic_limit: float | None = None,
    workers: int = 1,
    seed: int = 0,
    hint_rule: str = "mwkr",
) -> RollingResult:
    """Run the interrupting shop under plans that CP-SAT makes at the start and after every event.

    An event is a shutdown, a repair or an arrival. A plan keeps what has begun and takes for granted that
    a machine that is down comes back after its expected time and that no other goes down. Between
    events each machine takes its operations in the plan's order, each as soon as its turn comes. Events
    at which no job could move anyway are planned for together, when one can.

    Args:
        scenario: what will happen; looked at only as it happens.
        limit_s: wall seconds for each planning.
        deterministic_limit: solver's seconds of work for each planning; at least one of the two is needed.
        hint_rule: dispatch rule that the first plan starts from.

    Raises:
        UnknownNameError, InvalidInstanceError, UsageError: as `solve`, or no limit at all.

    Source: re-optimising at every disturbance, the costly way that dispatchers for this shop (Wong et al.,
    arXiv 2302.02506) are meant to spare. The assumptions are ours.
    """
    if limit_s is None and deterministic_limit is None:
        raise UsageError("rolling needs limit_s or deterministic_limit: what each planning may take")
    clock, cpu = time.perf_counter(), time.process_time()
    config = ShopConfig(variant="isbjssp", on_interrupt=scenario.on_interrupt)
    floor = ShopBatch.of([instance], config, scenarios=[scenario])
    order: list[list[int]] | None = None
    planned_for: tuple[int, ...] | None = None
    solves: list[Resolve] = []
    while not floor.over[0]:
        state = _events_so_far(floor)
        if order is None or state != planned_for:
            began = time.perf_counter(), time.process_time()
            problem = _Present.of(floor, instance, scenario)
            if order is None:
                hint = rules.rollout(problem.part, hint_rule, config, scenario=problem.assumed).schedule
            else:
                hint = problem.going_on(order)
            solution = solve(
                problem.part,
                variant="isbjssp",
                scenario=problem.assumed,
                time_limit=limit_s,
                deterministic_limit=deterministic_limit,
                workers=workers,
                seed=seed,
                hint=hint,
                progress=problem.progress,
            )
            assert solution.schedule is not None  # the hint at worst
            order, planned_for = problem.order_of(solution.schedule), state
            solves.append(
                Resolve(
                    problem.progress.now,
                    solution.status,
                    hint.makespan,
                    solution.schedule.makespan,
                    wall_s=time.perf_counter() - began[0],
                    cpu_s=time.process_time() - began[1],
                )
            )
        floor.step([_next_action(floor, instance, order)])
    schedule = floor.schedule(0)
    validate(schedule, instance, "isbjssp", scenario)
    return RollingResult(
        schedule,
        int(floor.shop.decisions[0]),
        tuple(solves),
        time.perf_counter() - clock,
        time.process_time() - cpu,
    )


@dataclass(frozen=True, slots=True)
class _Present:
    """What is known at a moment of the run, as a problem of its own.

    Args:
        part: the jobs that have arrived.
        ops: where its operations are in the whole instance.
        assumed: shutdowns so far, and expected repairs.
        progress: what has begun.
    """

    part: Instance
    ops: npt.NDArray[np.intp]
    assumed: Scenario
    progress: Progress

    @classmethod
    def of(cls, floor: ShopBatch, instance: Instance, scenario: Scenario) -> _Present:
        jobs = np.flatnonzero(floor.shop.seen[0, : instance.num_jobs])
        ops = np.flatnonzero(np.isin(instance.op_job(), jobs))
        part = Instance(
            instance.name,
            np.concatenate(([0], np.cumsum(np.diff(instance.job_ptr)[jobs]))),
            instance.machine[ops],
            instance.duration[ops],
            instance.num_machines,
            instance.release[jobs],
            instance.arrival[jobs],
        )
        progress = Progress(int(floor.shop.now[0]), floor.partial_schedule(0).start[ops])
        return cls(part, ops, _assumed(floor, instance, scenario), progress)

    def order_of(self, schedule: Schedule) -> list[list[int]]:
        """The operations of each machine as the schedule takes them, numbered as in the whole instance."""
        order: list[list[int]] = [[] for _ in range(self.part.num_machines)]
        for op in np.argsort(schedule.start, kind="stable").tolist():
            order[self.part.machine[op]].append(int(self.ops[op]))
        return order

    def going_on(self, order: Sequence[Sequence[int]]) -> Schedule:
        """The schedule in which each machine goes on in this order, as early as can be; new jobs come last.

        Starts are raised until each one comes after what it waits for. That ends, since an order that was
        possible before an interruption still is after it, only later.
        """
        shop = Outlook.of(self.part, "isbjssp", self.assumed, self.progress)
        here = {op: k for k, op in enumerate(self.ops.tolist())}
        ahead = [-1] * self.part.num_ops  # the operation before on the machine
        for m, old in enumerate(order):
            placed = [here[op] for op in old]
            new = [k for k in range(self.part.num_ops) if shop.machine[k] == m and self.ops[k] not in old]
            for a, b in pairwise(placed + new):
                ahead[b] = a
        start = list(shop.head)
        raised = True
        while raised:
            raised = False
            for op, when in enumerate(start):
                if shop.began[op] >= 0:
                    continue
                if not shop.is_first[op]:
                    when = max(when, shop.end(op - 1, start[op - 1]))
                a = ahead[op]
                if a >= 0:
                    when = max(when, shop.end(a, start[a]) if shop.is_last[a] else start[a + 1])
                when = shop.opening(op, when)
                if when > start[op]:
                    start[op], raised = when, True
        return complete(self.part, "isbjssp", self.assumed, np.array(start, np.int64))


def _events_so_far(floor: ShopBatch) -> tuple[int, ...]:
    """Shutdowns and repairs of each machine and arrivals so far: another value means that something happened."""
    shop = floor.shop
    gone = 2 * (shop.down_at[0] - shop.down_ptr[0, :-1])
    return (*(int(count) + is_down for count, is_down in zip(gone, _down(floor), strict=True)), int(shop.hidden[0]))


def _down(floor: ShopBatch) -> list[bool]:
    """Which machines are down now."""
    shop = floor.shop
    return [
        bool(w < after and shop.down_from[0, w] <= shop.now[0])
        for w, after in zip(shop.down_at[0].tolist(), shop.down_ptr[0, 1:].tolist(), strict=True)
    ]


def _assumed(floor: ShopBatch, instance: Instance, scenario: Scenario) -> Scenario:
    """The windows that are over, and the one under way of each machine that is down with its expected repair.

    A down-time is uniform on 1 .. twice the mean duration; what is left of one that has lasted for a while
    is uniform on what remains of that. A machine that is down for longer than the law allows is
    expected back at the next moment.
    """
    now, longest = int(floor.shop.now[0]), round(2.0 * instance.mean_duration)
    rows: list[dict[str, int]] = []
    for m, is_down in enumerate(_down(floor)):
        so_far = [window for window in scenario.windows(m) if window[0] <= now]
        if is_down:
            down, _ = so_far.pop()
            left = max(1, (longest - (now - down) + 2) // 2)  # mean of 1 .. longest - elapsed, rounded up
            so_far.append((down, now + left))
        rows += [{"machine": m, "from": down, "to": up} for down, up in so_far]
    return Scenario.from_downtime(instance.num_machines, rows, scenario.on_interrupt)


def _next_action(floor: ShopBatch, instance: Instance, order: Sequence[Sequence[int]]) -> int:
    """The first legal move that takes every machine it touches in the plan's order, else WAIT."""
    shop = floor.shop
    begun = floor.partial_schedule(0).start >= 0
    turn = [next((op for op in of_machine if not begun[op]), -1) for of_machine in order]
    for j in np.flatnonzero(shop.mask[0, : instance.num_jobs]).tolist():
        mover = j
        while True:
            op = int(shop.next_op[0, mover])
            if turn[instance.machine[op]] != op:
                break
            mover = int(shop.holder[0, instance.machine[op]])
            if mover in (-1, j):
                return j
    return floor.wait_action
