"""The validator on schedules made by hand: legal ones, and ones broken in each way."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.envs.api import InvalidInstanceError, InvalidScheduleError, UnknownNameError, UsageError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario, no_shutdowns
from dispatchgym.envs.jobshop.schedule import LAST_TIME, Schedule, Variant, check_durations, validate


def schedule(start: list[int], end: list[int], leave: list[int]) -> Schedule:
    return Schedule(np.array(start, np.int64), np.array(end, np.int64), np.array(leave, np.int64))


# --- Two operations a job on two machines, every number by hand -----------------------------------

CROSS = Instance.from_routes("cross", [[(0, 3), (1, 2)], [(1, 3), (0, 2)]])
"""Job 0 goes from machine 0 to 1, job 1 the other way; both want to swap at time 3."""

SWAPPED = schedule([0, 3, 0, 3], [3, 5, 3, 5], [3, 5, 3, 5])

LATE = Instance.from_routes("late", [[(0, 3), (1, 2)], [(1, 3), (0, 2)]], release=[0, 2], arrival=[1, 0])

CHAIN = Instance.from_routes("chain", [[(0, 4), (1, 2)], [(1, 1), (2, 5)], [(2, 3)]])
"""Job 0 holds machine 0 until job 1 leaves machine 1, which waits for job 2 on machine 2."""

CHAINED = schedule([0, 4, 0, 3, 0], [4, 6, 1, 8, 3], [4, 6, 3, 8, 3])

STAY = Instance.from_routes("stay", [[(0, 3), (0, 2), (1, 1)], [(1, 2)]])
"""Job 0 has two operations in a row on machine 0."""


@pytest.mark.parametrize("variant", ["jssp", "bws", "isbjssp"])
def test_a_swap_is_legal_where_swaps_are(variant: Variant) -> None:
    validate(SWAPPED, CROSS, variant)


def test_without_swaps_two_jobs_cannot_change_places() -> None:
    with pytest.raises(InvalidScheduleError) as caught:
        validate(SWAPPED, CROSS, "bns")
    assert str(caught.value) == (
        "at time 3 the moves into (0, 1) from machine 0 to 1, (1, 1) from machine 1 to 0 each wait for the next "
        "one's machine; without swaps such a cycle cannot move"
    )


def test_without_swaps_a_cycle_of_three_jobs_is_refused_and_named() -> None:
    ring = Instance.from_routes("ring", [[(0, 1), (1, 1)], [(1, 1), (2, 1)], [(2, 1), (0, 1)]])
    turned = schedule([0, 1, 0, 1, 0, 1], [1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2])
    validate(turned, ring, "bws")
    with pytest.raises(InvalidScheduleError, match=r"at time 1 .*\(0, 1\) .*\(1, 1\) .*\(2, 1\)"):
        validate(turned, ring, "bns")


def test_without_swaps_a_chain_of_moves_at_one_instant_is_legal() -> None:
    # at time 4: job 2 is complete, job 1 moves to its machine, job 0 to job 1's
    all_at_once = schedule([0, 4, 0, 4, 1], [4, 6, 1, 9, 4], [4, 6, 4, 9, 4])
    validate(all_at_once, CHAIN, "bns")
    validate(CHAINED, CHAIN, "bns")


def test_without_swaps_a_chain_that_leads_into_a_cycle_is_refused() -> None:
    # jobs 0 and 1 swap machines 0 and 1 at time 2, job 2 leaves machine 2 for machine 0 only later
    instance = Instance.from_routes("tail", [[(0, 2), (1, 1)], [(1, 2), (0, 1)], [(2, 2), (0, 1)]])
    swapped = schedule([0, 2, 0, 2, 0, 3], [2, 3, 2, 3, 2, 4], [2, 3, 2, 3, 3, 4])
    validate(swapped, instance, "bws")
    with pytest.raises(InvalidScheduleError, match="at time 2"):
        validate(swapped, instance, "bns")


@pytest.mark.parametrize("variant", ["bws", "bns", "isbjssp"])
def test_a_job_may_stay_on_its_machine_for_the_next_operation(variant: Variant) -> None:
    validate(schedule([0, 3, 5, 0], [3, 5, 6, 2], [3, 5, 6, 2]), STAY, variant)
    validate(schedule([0, 4, 6, 0], [3, 6, 7, 2], [4, 6, 7, 2]), STAY, variant)  # and may take its time


def test_a_zero_duration_may_touch_but_not_interrupt_another_operation() -> None:
    instance = Instance.from_routes("zero", [[(0, 4)], [(0, 0)]])
    for instant in (0, 4, 9):
        validate(schedule([0, instant], [4, instant], [4, instant]), instance, "jssp")
    with pytest.raises(InvalidScheduleError, match=r"\(1, 0\) starts on machine 0 at 2, but operation \(0, 0\) has it"):
        validate(schedule([0, 2], [4, 2], [4, 2]), instance, "jssp")


BROKEN: list[tuple[str, Instance, Variant, Schedule, str]] = [
    (
        "started before its release",
        LATE,
        "jssp",
        schedule([1, 4, 1, 4], [4, 6, 4, 6], [4, 6, 4, 6]),
        "operation (1, 0) starts on machine 1 at 1, before the release of job 1 at 2",
    ),
    (
        "started before its arrival",
        LATE,
        "jssp",
        schedule([0, 3, 2, 5], [3, 5, 5, 7], [3, 5, 5, 7]),
        "operation (0, 0) starts on machine 0 at 0, before the arrival of job 0 at 1",
    ),
    (
        "out of route order",
        CROSS,
        "jssp",
        schedule([2, 0, 2, 5], [5, 2, 5, 7], [5, 2, 5, 7]),
        "operation (0, 1) starts on machine 1 at 0, before operation (0, 0) ends on machine 0 at 5",
    ),
    (
        "ended too soon",
        CROSS,
        "jssp",
        schedule([0, 3, 0, 3], [2, 5, 3, 5], [2, 5, 3, 5]),
        "operation (0, 0) ends on machine 0 at 2; started at 0, with a duration of 3, it ends at 3",
    ),
    (
        "two jobs on a machine",
        CROSS,
        "jssp",
        schedule([0, 3, 1, 4], [3, 5, 4, 6], [3, 5, 4, 6]),
        "operation (0, 1) starts on machine 1 at 3, but operation (1, 0) has it from 1 to 4",
    ),
    (
        "machine kept in the classic shop",
        CROSS,
        "jssp",
        schedule([0, 3, 0, 4], [3, 5, 3, 6], [3, 5, 4, 6]),
        "operation (1, 0) leaves machine 1 at 4; it leaves at its end, 3",
    ),
    (
        "left for nowhere in the blocking shop",
        CHAIN,
        "bws",
        schedule([0, 4, 0, 3, 0], [4, 6, 1, 8, 3], [4, 6, 1, 8, 3]),
        "operation (1, 0) leaves machine 1 at 1; it leaves at the start of operation (1, 1), 3",
    ),
    (
        "last operation kept its machine",
        CHAIN,
        "bws",
        schedule([0, 4, 0, 3, 0], [4, 6, 1, 8, 3], [4, 7, 3, 8, 3]),
        "operation (0, 1) leaves machine 1 at 7; it leaves at its end, 6",
    ),
    (
        "entered a blocked machine",
        CHAIN,
        "bws",
        schedule([0, 4, 0, 5, 0], [4, 6, 1, 10, 3], [4, 6, 5, 10, 3]),
        "operation (0, 1) starts on machine 1 at 4, but operation (1, 0) holds it from 0 to 5",
    ),
]


@pytest.mark.parametrize(
    ("instance", "variant", "broken", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_schedule_broken_by_hand_is_refused_by_name(
    instance: Instance, variant: Variant, broken: Schedule, message: str
) -> None:
    with pytest.raises(InvalidScheduleError) as caught:
        validate(broken, instance, variant)
    assert str(caught.value) == message


# --- Shutdowns by hand -----------------------------------------------------------------------------

LINE = Instance.from_routes("line", [[(0, 4), (1, 2)]], 2)


def down(*windows: tuple[int, int, int], on_interrupt: str = "resume") -> Scenario:
    rows = [dict(zip(("machine", "from", "to"), window, strict=True)) for window in windows]
    return Scenario.from_downtime(2, rows, on_interrupt)  # type: ignore[arg-type]


def test_an_interrupted_operation_resumes_after_every_repair() -> None:
    # 2 units, 3 down, 1 unit, 1 down, 1 unit
    validate(schedule([0, 8], [8, 10], [8, 10]), LINE, "isbjssp", down((0, 2, 5), (0, 6, 7)))


def test_an_interrupted_operation_restarts_after_every_repair() -> None:
    # anew at 5, interrupted at 6, anew at 7
    again = down((0, 2, 5), (0, 6, 7), on_interrupt="restart")
    validate(schedule([0, 11], [11, 13], [11, 13]), LINE, "isbjssp", again)


def test_a_shutdown_at_the_very_end_interrupts_nothing_but_keeps_the_job() -> None:
    windows = down((0, 4, 6))
    validate(schedule([0, 6], [4, 8], [6, 8]), LINE, "isbjssp", windows)
    with pytest.raises(InvalidScheduleError, match="leaves machine 0 at 4, while it is down from 4 to 6"):
        validate(schedule([0, 4], [4, 6], [4, 6]), LINE, "isbjssp", windows)


def test_the_last_operation_leaves_as_the_shutdown_begins() -> None:
    validate(schedule([0, 4], [4, 6], [4, 6]), LINE, "isbjssp", down((1, 6, 9)))


def test_a_swap_through_a_down_machine_waits_for_its_repair() -> None:
    windows = down((1, 3, 5))
    with pytest.raises(InvalidScheduleError, match="starts on machine 1 at 3, while it is down from 3 to 5"):
        validate(SWAPPED, CROSS, "isbjssp", windows)
    validate(schedule([0, 5, 0, 5], [3, 7, 3, 7], [5, 7, 5, 7]), CROSS, "isbjssp", windows)


def test_a_job_that_stays_cannot_begin_while_its_machine_is_down() -> None:
    windows = down((0, 3, 4))
    with pytest.raises(InvalidScheduleError, match=r"\(0, 1\) starts on machine 0 at 3, while it is down"):
        validate(schedule([0, 3, 5, 0], [3, 5, 6, 2], [3, 5, 6, 2]), STAY, "isbjssp", windows)
    validate(schedule([0, 4, 6, 0], [3, 6, 7, 2], [4, 6, 7, 2]), STAY, "isbjssp", windows)


def test_an_interruption_that_was_not_counted_is_refused_with_its_length() -> None:
    with pytest.raises(InvalidScheduleError) as caught:
        validate(schedule([0, 4], [4, 6], [4, 6]), LINE, "isbjssp", down((0, 2, 5)))
    assert str(caught.value) == (
        "operation (0, 0) ends on machine 0 at 4; "
        "started at 0, with a duration of 4 and 3 of interruptions, it ends at 7"
    )


# --- What is no schedule of this shop at all -----------------------------------------------------------


def test_arrays_of_the_wrong_shape_or_kind_are_refused() -> None:
    short = np.zeros(3, np.int64)
    with pytest.raises(InvalidScheduleError, match=r"end must be int64 of shape \(4,\), got int64 \(3,\)"):
        validate(replace(SWAPPED, end=short), CROSS, "jssp")
    with pytest.raises(InvalidScheduleError, match=r"start must be int64 of shape \(4,\), got float64"):
        validate(replace(SWAPPED, start=SWAPPED.start.astype(float)), CROSS, "jssp")
    with pytest.raises(InvalidScheduleError, match=r"leave must be int64 .* got list"):
        validate(replace(SWAPPED, leave=[3, 5, 3, 5]), CROSS, "jssp")  # type: ignore[arg-type]


@pytest.mark.parametrize("time", [-1, LAST_TIME + 1, np.iinfo(np.int64).max])
def test_times_that_cannot_be_are_refused(time: int) -> None:
    start = SWAPPED.start.copy()
    start[3] = time
    with pytest.raises(InvalidScheduleError, match=re.escape(f"operation (1, 1) has start {time}")):
        validate(replace(SWAPPED, start=start), CROSS, "jssp")


@pytest.mark.parametrize("variant", ["bws", "bns", "isbjssp"])
def test_blocking_shops_refuse_operations_without_duration(variant: Variant) -> None:
    instance = Instance.from_routes("zero", [[(0, 2), (1, 0)]])
    with pytest.raises(InvalidInstanceError, match=r"'zero': operation \(0, 1\) takes no time"):
        validate(schedule([0, 2], [2, 2], [2, 2]), instance, variant)
    check_durations(instance, "jssp")


def test_an_unknown_variant_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="'isbjsp' is not known; did you mean 'isbjssp'"):
        validate(SWAPPED, CROSS, "isbjsp")  # type: ignore[arg-type]


def test_a_scenario_of_another_shop_is_refused() -> None:
    with pytest.raises(UsageError, match="3 machines but instance 'cross' has 2"):
        validate(SWAPPED, CROSS, "isbjssp", no_shutdowns(3))
    with pytest.raises(UsageError, match="'bws' knows no shutdowns"):
        validate(SWAPPED, CROSS, "bws", down((0, 9, 10)))


# --- Rows of evidence ---------------------------------------------------------------------------------------


def test_operations_are_named_by_job_and_position() -> None:
    assert CHAINED.operations(CHAIN)[3] == {"job": 1, "op": 1, "machine": 2, "start": 3, "end": 8, "leave": 8}
    assert CHAINED.makespan == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": 7}, "row 3: job 7 is not one of 0 to 2"),
        ({"op": 2}, "row 3: job 1 has no operation 2; it has 2"),
        ({"op": -1}, "row 3: job 1 has no operation -1; it has 2"),
        ({"op": 0, "machine": 1}, "row 3: operation (1, 0) has a row already"),
        ({"machine": 0}, "row 3: operation (1, 1) is on machine 0; its route says machine 2"),
        ({"start": 2.5}, "row 3: start is 2.5; it must be a whole number"),
        ({"start": True}, "row 3: start is True; it must be a whole number"),
        ({"end": 2**63}, f"row 3: end is {2**63}; it must be a whole number"),
    ],
)
def test_rows_that_fit_no_operation_are_refused(changes: dict[str, object], message: str) -> None:
    rows: list[dict[str, object]] = [dict(row) for row in CHAINED.operations(CHAIN)]
    rows[3].update(changes)
    with pytest.raises(InvalidScheduleError) as caught:
        Schedule.from_operations(CHAIN, rows)
    assert str(caught.value) == message


def test_missing_rows_and_values_are_refused() -> None:
    rows: list[object] = list(CHAINED.operations(CHAIN))
    with pytest.raises(InvalidScheduleError, match=re.escape("operation (2, 0) has no row")):
        Schedule.from_operations(CHAIN, rows[:-1])
    with pytest.raises(InvalidScheduleError, match="row 0: leave is None"):
        Schedule.from_operations(CHAIN, [{"job": 0, "op": 0, "machine": 0, "start": 0, "end": 4}])
    with pytest.raises(InvalidScheduleError, match="row 0 is 'gone'; it needs job, op"):
        Schedule.from_operations(CHAIN, ["gone"])
