"""A schedule and the one validator that judges every schedule of every env, rule and solver.

Nothing here is shared with the kernels or the exact models, so that an error in one of them cannot
hide: the validator reads the finished times and asks of each constraint whether it holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError, InvalidScheduleError, UsageError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario
from dispatchgym.envs.registry import unknown_name

Variant = Literal["jssp", "bws", "bns", "isbjssp"]
"""Classic; blocking with swap; blocking, no swap; interrupting swap-allowed blocking job shop."""

LAST_TIME = 2**50
"""Times beyond this are refused before any arithmetic, so that no sum can wrap around."""

Window = tuple[int, int]
"""Shutdown and repair time of a machine."""

ROW_KEYS = ("job", "op", "machine", "start", "end", "leave")


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Times of every operation, flat in the instance's operation order.

    `start`: the job enters the machine and processing begins; `end`: processing is complete;
    `leave`: the machine is free again (classic shop: `end`; blocking: the start of the job's next
    operation, and `end` for its last). int64, shape (ops,), instance time units.
    """

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    leave: npt.NDArray[np.int64]

    @property
    def makespan(self) -> int:
        """The moment the last operation is complete, instance time units."""
        return int(self.end.max())

    def operations(self, instance: Instance) -> list[dict[str, int]]:
        """One row {job, op, machine, start, end, leave} an operation, by job and position `op` in its route."""
        job = instance.op_job()
        op = np.arange(instance.num_ops) - instance.job_ptr[job]
        columns = [c.tolist() for c in (job, op, instance.machine, self.start, self.end, self.leave)]
        return [dict(zip(ROW_KEYS, row, strict=True)) for row in zip(*columns, strict=True)]

    @classmethod
    def from_operations(cls, instance: Instance, rows: Iterable[object]) -> Schedule:
        """The schedule of {job, op, machine, start, end, leave} rows, in any order; the inverse of `operations`.

        Raises:
            InvalidScheduleError: a row that lacks a value, names no operation of the instance or the wrong
                machine for it, or an operation with no row or two. The times are judged by `validate`.
        """
        times = np.zeros((3, instance.num_ops), np.int64)
        seen = np.zeros(instance.num_ops, bool)
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise InvalidScheduleError(f"row {number} is {row!r:.80}; it needs {', '.join(ROW_KEYS)}")
            value: dict[str, int] = {}
            for key in ROW_KEYS:
                entry = row.get(key)
                if type(entry) is not int or abs(entry) > LAST_TIME:
                    raise InvalidScheduleError(f"row {number}: {key} is {entry!r:.80}; it must be a whole number")
                value[key] = entry
            job, position = value["job"], value["op"]
            if not 0 <= job < instance.num_jobs:
                raise InvalidScheduleError(f"row {number}: job {job} is not one of 0 to {instance.num_jobs - 1}")
            op = int(instance.job_ptr[job]) + position
            if position < 0 or op >= instance.job_ptr[job + 1]:
                length = int(instance.job_ptr[job + 1] - instance.job_ptr[job])
                raise InvalidScheduleError(f"row {number}: job {job} has no operation {position}; it has {length}")
            if value["machine"] != instance.machine[op]:
                raise InvalidScheduleError(
                    f"row {number}: operation {instance.op_name(op)} is on machine {value['machine']}; "
                    f"its route says machine {instance.machine[op]}"
                )
            if seen[op]:
                raise InvalidScheduleError(f"row {number}: operation {instance.op_name(op)} has a row already")
            seen[op] = True
            times[:, op] = value["start"], value["end"], value["leave"]
        if not seen.all():
            raise InvalidScheduleError(f"operation {instance.op_name(int(np.argmin(seen)))} has no row")
        return cls(times[0], times[1], times[2])


def check_durations(instance: Instance, variant: Variant) -> None:
    """Refuse an instance with a zero duration in a blocking shop, where a move must take effect before the next.

    Raises:
        InvalidInstanceError: naming the operation.
    """
    if variant != "jssp" and (instance.duration < 1).any():
        op = int(np.argmin(instance.duration))
        raise InvalidInstanceError(
            f"instance {instance.name!r}: operation {instance.op_name(op)} takes no time; "
            "a blocking shop needs durations of at least 1"
        )


def validate(schedule: Schedule, instance: Instance, variant: Variant, scenario: Scenario | None = None) -> None:
    """Return if `schedule` meets every constraint of the variant, raise at the first one it breaks.

    Args:
        scenario: the shutdowns of the run, for `isbjssp` only; None means that there were none.

    Raises:
        InvalidScheduleError: a broken constraint, naming the operations, the machine and the times.
            Operations are named (job, position in the route), both from 0.
        InvalidInstanceError: the instance cannot be run in this variant at all.
        UnknownNameError: no such variant.
        UsageError: a scenario that does not belong to this variant or shop.
    """
    if variant not in get_args(Variant):
        raise unknown_name("variant", variant, get_args(Variant))
    windows, on_interrupt = _downtime(instance, variant, scenario)
    check_durations(instance, variant)
    _check_arrays(schedule, instance)
    _check_first_starts(schedule, instance)
    _check_route_order(schedule, instance)
    if variant == "isbjssp":
        _check_starts_while_up(schedule, instance, windows)
    _check_ends(schedule, instance, windows, on_interrupt)
    _check_leaves(schedule, instance, variant)
    if variant == "isbjssp":
        _check_leaves_while_up(schedule, instance, windows)
    order = _check_capacity(schedule, instance, variant)
    if variant == "bns":
        _check_no_swap(schedule, instance, order)


def _downtime(
    instance: Instance, variant: Variant, scenario: Scenario | None
) -> tuple[list[list[Window]], OnInterrupt]:
    """The windows of every machine, and what an interruption does; refuses another shop's scenario."""
    if scenario is None:
        return [[] for _ in range(instance.num_machines)], "resume"
    if scenario.num_machines != instance.num_machines:
        raise UsageError(
            f"the scenario has {scenario.num_machines} machines but instance {instance.name!r} has "
            f"{instance.num_machines}; use the scenario that was drawn for it"
        )
    if variant != "isbjssp" and len(scenario.down_from):
        raise UsageError(f"variant {variant!r} knows no shutdowns; validate against 'isbjssp' or without a scenario")
    return [scenario.windows(m) for m in range(instance.num_machines)], scenario.on_interrupt


def _check_arrays(schedule: Schedule, instance: Instance) -> None:
    for key in ("start", "end", "leave"):
        times = getattr(schedule, key)
        if not isinstance(times, np.ndarray) or times.dtype != np.int64 or times.shape != (instance.num_ops,):
            got = f"{times.dtype} {times.shape}" if isinstance(times, np.ndarray) else type(times).__name__
            raise InvalidScheduleError(f"{key} must be int64 of shape ({instance.num_ops},), got {got}")
        outside = (times < 0) | (times > LAST_TIME)
        if outside.any():
            op = int(np.argmax(outside))
            raise InvalidScheduleError(
                f"operation {instance.op_name(op)} has {key} {times[op]}; times are 0 to {LAST_TIME}"
            )


def _check_first_starts(schedule: Schedule, instance: Instance) -> None:
    """No job starts before its release or before it has arrived."""
    first = instance.job_ptr[:-1]
    for key, allowed in (("release", instance.release), ("arrival", instance.arrival)):
        early = schedule.start[first] < allowed
        if early.any():
            job = int(np.argmax(early))
            op = int(first[job])
            raise InvalidScheduleError(
                f"operation {instance.op_name(op)} starts on machine {instance.machine[op]} at {schedule.start[op]}, "
                f"before the {key} of job {job} at {allowed[job]}"
            )


def _check_route_order(schedule: Schedule, instance: Instance) -> None:
    """No operation starts before the one before it in its job's route is complete."""
    op = _followed(instance)
    early = schedule.start[op + 1] < schedule.end[op]
    if early.any():
        k = int(op[np.argmax(early)])
        raise InvalidScheduleError(
            f"operation {instance.op_name(k + 1)} starts on machine {instance.machine[k + 1]} at "
            f"{schedule.start[k + 1]}, before operation {instance.op_name(k)} ends on machine {instance.machine[k]} "
            f"at {schedule.end[k]}"
        )


def _check_starts_while_up(schedule: Schedule, instance: Instance, windows: list[list[Window]]) -> None:
    """No operation starts on a machine that is down."""
    for op, (machine, start) in enumerate(zip(instance.machine.tolist(), schedule.start.tolist(), strict=True)):
        window = _window_around(windows[machine], start)
        if window:
            raise InvalidScheduleError(
                f"operation {instance.op_name(op)} starts on machine {machine} at {start}, "
                f"while it is down from {window[0]} to {window[1]}"
            )


def _check_ends(schedule: Schedule, instance: Instance, windows: list[list[Window]], on_interrupt: OnInterrupt) -> None:
    """Every operation ends when its processing is complete, interruptions counted."""
    columns = (instance.machine.tolist(), schedule.start.tolist(), instance.duration.tolist(), schedule.end.tolist())
    for op, (machine, start, duration, end) in enumerate(zip(*columns, strict=True)):
        right = _end_of_processing(start, duration, windows[machine], on_interrupt)
        if end != right:
            extra = f" and {right - start - duration} of interruptions" if right > start + duration else ""
            raise InvalidScheduleError(
                f"operation {instance.op_name(op)} ends on machine {machine} at {end}; "
                f"started at {start}, with a duration of {duration}{extra}, it ends at {right}"
            )


def _check_leaves(schedule: Schedule, instance: Instance, variant: Variant) -> None:
    """Classic: a machine is free at the operation's end. Blocking: only when the job goes on or is complete."""
    right = schedule.end.copy()
    if variant != "jssp":
        op = _followed(instance)
        right[op] = schedule.start[op + 1]
    wrong = schedule.leave != right
    if wrong.any():
        k = int(np.argmax(wrong))
        if variant == "jssp" or k + 1 in instance.job_ptr:
            why = "its end"
        else:
            why = f"the start of operation {instance.op_name(k + 1)}"
        raise InvalidScheduleError(
            f"operation {instance.op_name(k)} leaves machine {instance.machine[k]} at {schedule.leave[k]}; "
            f"it leaves at {why}, {right[k]}"
        )


def _check_leaves_while_up(schedule: Schedule, instance: Instance, windows: list[list[Window]]) -> None:
    """No job moves off a machine that is down."""
    for op in _followed(instance).tolist():
        machine, leave = int(instance.machine[op]), int(schedule.leave[op])
        window = _window_around(windows[machine], leave)
        if window:
            raise InvalidScheduleError(
                f"operation {instance.op_name(op)} leaves machine {machine} at {leave}, "
                f"while it is down from {window[0]} to {window[1]}"
            )


def _check_capacity(schedule: Schedule, instance: Instance, variant: Variant) -> npt.NDArray[np.intp]:
    """No machine has two jobs at once; returns the operations by machine and, on each, in time order.

    Of two operations on a machine one must leave before or when the other starts. That also keeps an
    operation of zero duration from falling strictly inside another.
    """
    order = np.lexsort((schedule.leave, schedule.start, instance.machine))
    a, b = order[:-1], order[1:]
    clash = (instance.machine[a] == instance.machine[b]) & (schedule.leave[a] > schedule.start[b])
    if clash.any():
        k = int(np.argmax(clash))
        first, second = int(a[k]), int(b[k])
        verb = "has" if variant == "jssp" else "holds"
        raise InvalidScheduleError(
            f"operation {instance.op_name(second)} starts on machine {instance.machine[first]} at "
            f"{schedule.start[second]}, but operation {instance.op_name(first)} {verb} it from "
            f"{schedule.start[first]} to {schedule.leave[first]}"
        )
    return order


def _check_no_swap(schedule: Schedule, instance: Instance, order: npt.NDArray[np.intp]) -> None:
    """The moves at one instant can be put in an order in which each target machine is already free.

    A move into operation k waits for the move, at the same instant, of the job that is on its machine
    until then. Each move waits for at most one other, so the moves have an order unless they close a
    cycle. Operations take time, so a job moves at most once at an instant.
    """
    followed = _followed(instance)
    is_move = np.zeros(instance.num_ops + 1, bool)  # operations entered from another machine; none after the last
    is_move[followed + 1] = instance.machine[followed] != instance.machine[followed + 1]

    before, after = order[:-1], order[1:]
    handed_over = (
        (instance.machine[before] == instance.machine[after])
        & (schedule.leave[before] == schedule.start[after])
        & is_move[before + 1]  # else the job before was complete, or stays and is the one after
    )
    waits_for = np.full(instance.num_ops, -1, np.int64)
    waits_for[after[handed_over]] = before[handed_over] + 1

    checked = np.zeros(instance.num_ops, bool)
    for origin in np.flatnonzero(waits_for >= 0).tolist():
        path: list[int] = []
        k = origin
        while k >= 0 and not checked[k]:
            checked[k] = True
            path.append(k)
            k = int(waits_for[k])
        if k in path:
            cycle = path[path.index(k) :]
            moves = ", ".join(
                f"{instance.op_name(k)} from machine {instance.machine[k - 1]} to {instance.machine[k]}" for k in cycle
            )
            raise InvalidScheduleError(
                f"at time {schedule.start[k]} the moves into {moves} each wait for the next one's machine; "
                "without swaps such a cycle cannot move"
            )


def _followed(instance: Instance) -> npt.NDArray[np.intp]:
    """The operations that are not the last of their job."""
    last = np.zeros(instance.num_ops, bool)
    last[instance.job_ptr[1:] - 1] = True
    return np.flatnonzero(~last)


def _window_around(windows: list[Window], time: int) -> Window | None:
    """The window with from <= time < to, if there is one."""
    k = bisect_right(windows, time, key=lambda window: window[0]) - 1
    return windows[k] if k >= 0 and time < windows[k][1] else None


def _end_of_processing(start: int, duration: int, windows: list[Window], on_interrupt: OnInterrupt) -> int:
    """When an operation that starts on a running machine at `start` is complete."""
    end = start + duration
    for down, up in windows[bisect_right(windows, start, key=lambda window: window[0]) :]:
        if down >= end:  # a shutdown at the very end does not interrupt
            break
        end = end + (up - down) if on_interrupt == "resume" else up + duration
    return end
