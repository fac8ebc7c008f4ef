"""The validator on random schedules: it takes what a slow simulator produces and judges changes as brute force does."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatchgym.envs.api import InvalidScheduleError
from dispatchgym.envs.jobshop import library
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario, no_shutdowns
from dispatchgym.envs.jobshop.schedule import Schedule, Variant, validate
from tests.envs.jobshop.simulate import Choose, Deadlock, simulate, simulate_classic
from tests.envs.jobshop.strategies import instances, scenarios
from tests.envs.jobshop.test_schedule import CROSS, schedule


def random_choice(rng: np.random.Generator, wait: float = 0.2) -> Choose:
    return lambda candidates, time: None if rng.random() < wait else int(rng.choice(candidates))


def produce(instance: Instance, variant: Variant, seed: int, scenario: Scenario | None = None) -> Schedule:
    """A valid schedule by random dispatching; one job after another where random dispatching deadlocks."""
    rng = np.random.default_rng(seed)
    if variant == "jssp":
        return simulate_classic(instance, random_choice(rng, wait=0.0))
    try:
        return simulate(instance, variant, random_choice(rng), scenario)
    except Deadlock:
        return simulate_one_by_one(instance)


def simulate_one_by_one(instance: Instance) -> Schedule:
    start, leave, now = [], [], 0
    for j in range(instance.num_jobs):
        now = max(now, int(instance.earliest[j]))
        for op in range(instance.job_ptr[j], instance.job_ptr[j + 1]):
            start.append(now)
            now += int(instance.duration[op])
            leave.append(now)
    return schedule(start, leave, leave)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Instance, Variant, Scenario | None, Schedule]:
    """An instance in one of the variants, with a valid schedule by random dispatching."""
    variants: tuple[Variant, ...] = ("jssp", "bws", "bns", "isbjssp")
    variant = draw(st.sampled_from(variants))
    instance = draw(instances())
    scenario = draw(scenarios(instance.num_machines)) if variant == "isbjssp" else None
    return instance, variant, scenario, produce(instance, variant, draw(st.integers(0, 2**32)), scenario)


def processing_end(start: int, duration: int, windows: list[tuple[int, int]], restart: bool) -> int:
    """Unit by unit: when work that starts at `start` is complete."""
    time, work = start, duration
    while work:
        if not any(begin <= time < end for begin, end in windows):
            work -= 1
        elif restart:
            work = duration
        time += 1
    return time


def is_valid(candidate: Schedule, instance: Instance, variant: Variant, scenario: Scenario | None) -> bool:
    """Every constraint by brute force over time units and orders of moves; durations of at least 1."""
    scenario = scenario or no_shutdowns(instance.num_machines)
    windows = [scenario.windows(m) for m in range(instance.num_machines)]
    rows = candidate.operations(instance)
    follower = {(r["job"], r["op"]): r for r in rows}
    for r in rows:
        after = follower.get((r["job"], r["op"] + 1))
        mine = windows[r["machine"]]
        if r["op"] == 0 and r["start"] < max(instance.release[r["job"]], instance.arrival[r["job"]]):
            return False
        if r["start"] < 0 or any(begin <= r["start"] < end for begin, end in mine):
            return False
        duration = int(instance.duration[instance.job_ptr[r["job"]] + r["op"]])
        if r["end"] != processing_end(r["start"], duration, mine, scenario.on_interrupt == "restart"):
            return False
        if after is not None and after["start"] < r["end"]:
            return False
        if r["leave"] != (after["start"] if after is not None and variant != "jssp" else r["end"]):
            return False
        if after is not None and variant != "jssp" and any(begin <= r["leave"] < end for begin, end in mine):
            return False
    for time in range(candidate.makespan):
        used = [r["machine"] for r in rows if r["start"] <= time < r["leave"]]
        if len(used) != len(set(used)):
            return False
    return variant != "bns" or all(moves_have_an_order(rows, time) for time in {r["start"] for r in rows})


def moves_have_an_order(rows: list[dict[str, int]], time: int) -> bool:
    """Try every order of the moves at `time`: each must find its machine free or held by itself."""
    entering = [r for r in rows if r["start"] == time]
    gone = {r["job"] for r in rows if r["end"] == time == r["leave"]} - {r["job"] for r in entering}
    held = {r["machine"]: r["job"] for r in rows if r["start"] < time <= r["leave"] and r["job"] not in gone}
    for order in permutations(entering):
        now = dict(held)
        for move in order:
            if now.get(move["machine"], move["job"]) != move["job"]:
                break
            now = {m: j for m, j in now.items() if j != move["job"]} | {move["machine"]: move["job"]}
        else:
            return True
    return False


def accepts(candidate: Schedule, instance: Instance, variant: Variant, scenario: Scenario | None) -> bool:
    try:
        validate(candidate, instance, variant, scenario)
    except InvalidScheduleError:
        return False
    return True


@given(problem=problems())
def test_what_the_simulator_produces_is_accepted(problem: tuple[Instance, Variant, Scenario | None, Schedule]) -> None:
    instance, variant, scenario, produced = problem
    assert is_valid(produced, instance, variant, scenario)  # the slow verdict itself is sound
    validate(produced, instance, variant, scenario)


@given(problem=problems(), which=st.integers(0, 2), op=st.integers(0, 15), shift=st.sampled_from([-3, -1, 1, 2, 5]))
def test_one_changed_time_is_judged_as_by_brute_force(
    problem: tuple[Instance, Variant, Scenario | None, Schedule], which: int, op: int, shift: int
) -> None:
    instance, variant, scenario, produced = problem
    times = [produced.start.copy(), produced.end.copy(), produced.leave.copy()]
    times[which][op % instance.num_ops] += shift
    changed = Schedule(*times)
    assert accepts(changed, instance, variant, scenario) == is_valid(changed, instance, variant, scenario)


@given(problem=problems(), op=st.integers(0, 15), shift=st.integers(-4, 4))
def test_one_shifted_operation_is_judged_as_by_brute_force(
    problem: tuple[Instance, Variant, Scenario | None, Schedule], op: int, shift: int
) -> None:
    """End and leave follow the moved start, so that precedence, capacity, downtime and swaps decide."""
    instance, variant, scenario, produced = problem
    op %= instance.num_ops
    start, end, leave = produced.start.copy(), produced.end.copy(), produced.leave.copy()
    start[op] = max(0, start[op] + shift)
    mine = scenario.windows(int(instance.machine[op])) if scenario else []
    restart = scenario is not None and scenario.on_interrupt == "restart"
    end[op] = processing_end(int(start[op]), int(instance.duration[op]), mine, restart)
    for k in (op - 1, op):
        if k >= 0:
            is_last = k + 1 in instance.job_ptr
            leave[k] = end[k] if is_last or variant == "jssp" else start[k + 1]
    shifted = Schedule(start, end, leave)
    assert accepts(shifted, instance, variant, scenario) == is_valid(shifted, instance, variant, scenario)


@given(instance=instances(max_duration=2), seed=st.integers(0, 2**32))
@example(instance=CROSS, seed=0)
def test_a_schedule_with_swaps_is_judged_without_them_as_by_brute_force(instance: Instance, seed: int) -> None:
    produced = simulate(instance, "bws", random_choice(np.random.default_rng(seed), wait=0.0))
    assert accepts(produced, instance, "bns", None) == is_valid(produced, instance, "bns", None)


def delay_all(produced: Schedule, start: int, end: int, leave: int) -> Schedule:
    return Schedule(produced.start + start, produced.end + end, produced.leave + leave)


BREAKS: dict[str, tuple[Callable[[Schedule], Schedule], str]] = {
    "every end early": (lambda s: delay_all(s, 0, -1, 0), "ends on machine|has end|starts on machine"),
    "every end late": (lambda s: delay_all(s, 0, 1, 0), "ends on machine|before operation"),
    "every leave late": (lambda s: delay_all(s, 0, 0, 1), "leaves machine"),
    "every start late": (lambda s: delay_all(s, 1, 0, 0), "ends on machine|before operation|while it is down"),
}


@pytest.mark.parametrize("name", BREAKS)
@given(problem=problems())
@settings(max_examples=30)
def test_a_schedule_broken_as_a_whole_is_refused(
    name: str, problem: tuple[Instance, Variant, Scenario | None, Schedule]
) -> None:
    instance, variant, scenario, produced = problem
    change, message = BREAKS[name]
    with pytest.raises(InvalidScheduleError, match=message):
        validate(change(produced), instance, variant, scenario)


@given(problem=problems(), seed=st.integers(0, 2**32))
def test_rows_in_any_order_give_the_schedule_back(
    problem: tuple[Instance, Variant, Scenario | None, Schedule], seed: int
) -> None:
    instance, _, _, produced = problem
    rows = produced.operations(instance)
    np.random.default_rng(seed).shuffle(rows)
    back = Schedule.from_operations(instance, rows)
    for key in ("start", "end", "leave"):
        np.testing.assert_array_equal(getattr(back, key), getattr(produced, key))


def test_the_largest_published_size_is_judged_whole() -> None:
    """100x20: one wrong time among 2,000 operations is found and named."""
    instance = library.load("ta71")
    rng = np.random.default_rng(0)
    produced = simulate_classic(instance, random_choice(rng, wait=0.0))
    validate(produced, instance, "jssp")
    order = np.flatnonzero(instance.machine == 7)
    first, second = order[np.argsort(produced.start[order])][:2]
    start = produced.start.copy()
    start[second] = produced.end[first] - 1
    end = start + instance.duration
    with pytest.raises(InvalidScheduleError, match=re.escape(instance.op_name(int(second)))):
        validate(Schedule(start, end, end), instance, "jssp")
