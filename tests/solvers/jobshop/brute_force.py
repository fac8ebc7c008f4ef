"""The least makespan of a tiny shop by trying every order on every machine, in the most obvious way.

Given an order, each operation starts as early as it can. That is best for the order: starting earlier
never makes an operation end, or its machine free, later, shutdowns or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, permutations, product
from math import factorial, prod

import numpy as np

from dispatchgym.envs.api import InvalidScheduleError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario, no_shutdowns
from dispatchgym.envs.jobshop.schedule import Schedule, Variant, validate


def num_orders(instance: Instance) -> int:
    """How many combinations of machine orders there are."""
    counts = [np.bincount(instance.op_job()[instance.machine == m]) for m in range(instance.num_machines)]
    return prod(factorial(int(c.sum())) // prod(factorial(int(n)) for n in c) for c in counts)


def least_makespan(instance: Instance, variant: Variant, scenario: Scenario | None = None) -> int:
    """Smallest makespan of any valid schedule."""
    best = None
    for order in product(*(_orders(instance, m) for m in range(instance.num_machines))):
        schedule = earliest(instance, variant, order, scenario or no_shutdowns(instance.num_machines))
        if schedule is None or (best is not None and schedule.makespan >= best):
            continue
        try:
            validate(schedule, instance, variant, scenario)
        except InvalidScheduleError:
            assert variant == "bns"  # a cycle of moves that all must happen at one moment
            continue
        best = schedule.makespan
    assert best is not None
    return best


def _orders(instance: Instance, machine: int) -> Iterator[tuple[int, ...]]:
    """Every order of the operations of a machine in which those of one job come as in its route."""
    ops = [op for op in range(instance.num_ops) if instance.machine[op] == machine]
    jobs = [int(instance.op_job()[op]) for op in ops]
    for order in sorted(set(permutations(jobs))):
        queue = {job: iter([op for op, j in zip(ops, jobs, strict=True) if j == job]) for job in jobs}
        yield tuple(next(queue[job]) for job in order)


def end_by_ticks(start: int, duration: int, windows: list[tuple[int, int]], on_interrupt: str) -> int:
    """When an operation that starts at `start` is complete, one time unit after another."""
    time, left = start, duration
    while left > 0:
        if any(down <= time < up for down, up in windows):
            left = duration if on_interrupt == "restart" else left
        else:
            left -= 1
        time += 1
    return time


def earliest(
    instance: Instance, variant: Variant, order: tuple[tuple[int, ...], ...], scenario: Scenario
) -> Schedule | None:
    """The schedule in which each machine takes its operations in this order, as early as can be; None if impossible."""
    machine, duration = instance.machine.tolist(), instance.duration.tolist()
    first, last = set(instance.job_ptr[:-1].tolist()), set((instance.job_ptr[1:] - 1).tolist())
    windows = [scenario.windows(m) for m in range(instance.num_machines)]
    ahead = {op: before for of_machine in order for before, op in pairwise(of_machine)}
    repairs = [up for of_machine in windows for _, up in of_machine]
    latest = max([*repairs, int(instance.earliest.max())]) + sum(duration)  # by then one at a time would be done

    start = [int(instance.earliest[job]) for job in instance.op_job()]

    def end(op: int) -> int:
        return end_by_ticks(start[op], duration[op], windows[machine[op]], scenario.on_interrupt)

    def leave(op: int) -> int:
        return end(op) if variant == "jssp" or op in last else start[op + 1]

    def is_closed(op: int, time: int) -> bool:
        passed = windows[machine[op]] + ([] if op in first else windows[machine[op - 1]])
        return any(down <= time < up for down, up in passed)

    settled = False
    while not settled:
        settled = True
        for op in range(instance.num_ops):
            too_early = (
                (op not in first and start[op] < end(op - 1))
                or (op in ahead and start[op] < leave(ahead[op]))
                or is_closed(op, start[op])
            )
            if too_early:
                start[op] += 1
                settled = False
            if start[op] > latest:
                return None
    ops = range(instance.num_ops)
    return Schedule(*(np.array(times, np.int64) for times in (start, [end(o) for o in ops], [leave(o) for o in ops])))
