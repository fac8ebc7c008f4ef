"""What is known of a shop before any search: earliest starts, work to come, bounds from both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidScheduleError, UsageError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant, check_durations
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.jobshop.downtime import Window, end_of_processing, next_up

Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """A run that has come to time `now`: what has started stays, the rest starts now or later.

    `start` holds the start of every operation that has begun and -1 for the others, shape (ops,).
    """

    now: int
    start: Times

    def check(self, schedule: Schedule, instance: Instance) -> None:
        """Refuse a schedule that does not go on from here.

        Raises:
            InvalidScheduleError: naming the operation.
        """
        wrong = np.where(self.start >= 0, schedule.start != self.start, schedule.start < self.now)
        if wrong.any():
            op = int(np.argmax(wrong))
            began = f"began at {self.start[op]}" if self.start[op] >= 0 else f"had not begun by {self.now}"
            raise InvalidScheduleError(
                f"operation {instance.op_name(op)} starts at {schedule.start[op]}, but {began} in the run so far"
            )


@dataclass(frozen=True, slots=True)
class Outlook:
    """A problem in plain numbers, one entry an operation unless said otherwise. Times in instance time units.

    Args:
        windows: shutdowns of each machine.
        began: start, -1 for an operation to come.
        now: nothing more starts before.
        head: start if it has begun; else the earliest one, the job having the shop to itself.
        tail: work of the job after the operation.
    """

    machine: list[int]
    duration: list[int]
    is_first: list[bool]
    is_last: list[bool]
    windows: list[list[Window]]
    on_interrupt: OnInterrupt
    began: list[int]
    now: int
    head: list[int]
    tail: list[int]

    @classmethod
    def of(
        cls, instance: Instance, variant: Variant, scenario: Scenario | None = None, progress: Progress | None = None
    ) -> Outlook:
        """Read a problem.

        Raises:
            UnknownNameError: no such variant.
            InvalidInstanceError: a zero duration in a blocking shop.
            UsageError: a scenario that does not belong to the variant or the shop.
        """
        windows, on_interrupt = _downtime(instance, variant, scenario)
        check_durations(instance, variant)
        ops = instance.num_ops
        first, last = np.zeros(ops, bool), np.zeros(ops, bool)
        first[instance.job_ptr[:-1]] = last[instance.job_ptr[1:] - 1] = True
        outlook = cls(
            instance.machine.tolist(),
            instance.duration.tolist(),
            first.tolist(),
            last.tolist(),
            windows,
            on_interrupt,
            progress.start.tolist() if progress else [-1] * ops,
            progress.now if progress else 0,
            head=[0] * ops,
            tail=[0] * ops,
        )
        earliest, job = instance.earliest.tolist(), instance.op_job().tolist()
        for op in range(ops):
            ready = earliest[job[op]] if outlook.is_first[op] else outlook.end(op - 1, outlook.head[op - 1])
            later = max(ready, outlook.now)
            outlook.head[op] = outlook.began[op] if outlook.began[op] >= 0 else outlook.opening(op, later)
        for op in reversed(range(ops)):
            outlook.tail[op] = 0 if outlook.is_last[op] else outlook.tail[op + 1] + outlook.duration[op + 1]
        return outlook

    def end(self, op: int, start: int) -> int:
        """When operation `op`, started at `start`, is complete."""
        return end_of_processing(start, self.duration[op], self.windows[self.machine[op]], self.on_interrupt)

    def opening(self, op: int, time: int) -> int:
        """The first moment from `time` on at which operation `op` may start: both machines of the move are up."""
        target = self.windows[self.machine[op]]
        source = [] if self.is_first[op] else self.windows[self.machine[op - 1]]
        while (later := next_up(next_up(time, target), source)) > time:
            time = later
        return time

    def bound(self) -> int:
        """No makespan is smaller: the longest job; on each machine first arrival, work to come and shortest rest."""
        bound = max(self.end(op, head) + self.tail[op] for op, head in enumerate(self.head))
        for m in range(len(self.windows)):
            coming = [op for op, machine in enumerate(self.machine) if machine == m and self.began[op] < 0]
            if coming:
                first, load = min(self.head[op] for op in coming), sum(self.duration[op] for op in coming)
                done = end_of_processing(first, load, self.windows[m], "resume")  # whatever an interruption costs
                bound = max(bound, done + min(self.tail[op] for op in coming))
        return bound

    def serial_makespan(self) -> int:
        """Makespan of one operation at a time, once every job is there.

        In the middle of a run jobs stand in each other's way and not every order is possible; but with
        swaps some job can always go on, so after the last repair one operation at a time will do.
        """
        coming = [op for op, start in enumerate(self.began) if start < 0]
        time = max([self.now, *(self.head[op] for op in coming if self.is_first[op])])
        begun = [(op, start) for op, start in enumerate(self.began) if start >= 0]
        if begun:
            repairs = [up for of_machine in self.windows for _, up in of_machine]
            time = max([time, *(self.end(op, start) for op, start in begun), *repairs])
        for op in coming:
            time = self.end(op, self.opening(op, time))
        return time


def complete(instance: Instance, variant: Variant, scenario: Scenario | None, start: Times) -> Schedule:
    """The schedule with these starts: operations end when their work is done, jobs leave when they may."""
    outlook = Outlook.of(instance, variant, scenario)
    end = np.array([outlook.end(op, s) for op, s in enumerate(start.tolist())], np.int64)
    leave = end.copy()
    if variant != "jssp":
        goes_on = np.flatnonzero(~np.array(outlook.is_last))
        leave[goes_on] = start[goes_on + 1]
    return Schedule(start, end, leave)


def _downtime(
    instance: Instance, variant: Variant, scenario: Scenario | None
) -> tuple[list[list[Window]], OnInterrupt]:
    """The windows of every machine, and what an interruption does."""
    if variant not in get_args(Variant):
        raise unknown_name("variant", variant, get_args(Variant))
    if scenario is None:
        return [[] for _ in range(instance.num_machines)], "resume"
    if scenario.num_machines != instance.num_machines:
        raise UsageError(
            f"the scenario has {scenario.num_machines} machines but instance {instance.name!r} has "
            f"{instance.num_machines}; use the scenario that was drawn for it"
        )
    if variant != "isbjssp" and len(scenario.down_from):
        raise UsageError(f"variant {variant!r} knows no shutdowns; solve 'isbjssp', or leave the scenario out")
    return [scenario.windows(m) for m in range(instance.num_machines)], scenario.on_interrupt
