"""The rolling re-solver: plans kept where nothing happens, no look into the future, every run valid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop import library, scenario
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario, no_shutdowns
from dispatchgym.envs.jobshop.schedule import validate
from dispatchgym.solvers.jobshop.cp_sat import solve
from dispatchgym.solvers.jobshop.rolling import rolling
from tests.envs.jobshop.strategies import instances, scenarios


def test_without_shutdowns_one_plan_is_made_and_followed() -> None:
    instance = library.load("ft06")
    run = rolling(instance, no_shutdowns(6), deterministic_limit=20)
    assert [(each.time, each.status, each.makespan) for each in run.solves] == [(0, "optimal", 63)]  # optimum of bws
    assert run.schedule.makespan == 63


@settings(max_examples=60)
@given(data=st.data(), instance=instances())
def test_every_run_ends_with_a_valid_schedule(data: st.DataObject, instance: Instance) -> None:
    downtime = data.draw(scenarios(instance.num_machines))
    run = rolling(instance, downtime, deterministic_limit=0.1)
    validate(run.schedule, instance, "isbjssp", downtime)
    clairvoyant = solve(instance, variant="isbjssp", scenario=downtime)
    assert clairvoyant.objective is not None
    assert run.schedule.makespan >= clairvoyant.objective
    assert all(each.makespan <= each.old_makespan for each in run.solves)


@pytest.mark.parametrize("mode", ["resume", "restart"])
def test_what_is_still_to_come_changes_nothing_before_it(mode: OnInterrupt) -> None:
    instance = library.load("la01")
    rows = scenario.draw(instance, 0.1, 1, mode).downtime()
    cut = sorted(row["from"] for row in rows)[4]
    known = [row for row in rows if row["from"] < cut]
    longer = [{**row, "to": row["to"] + 30} if row["to"] > cut else row for row in known]
    assert longer != known or any(row["from"] >= cut for row in rows)
    runs = [
        rolling(instance, Scenario.from_downtime(5, windows, mode), deterministic_limit=0.02).schedule
        for windows in (rows, known, longer)
    ]
    before = [np.where(run.start < cut, run.start, -1).tolist() for run in runs]
    assert before[0] == before[1] == before[2]
    assert len({tuple(run.start.tolist()) for run in runs}) > 1  # and it does change what comes after


def test_a_job_that_arrives_later_is_planned_for_only_then() -> None:
    routes = [[(0, 4), (1, 4)], [(1, 4), (0, 4)], [(0, 1), (1, 9)]]
    late = Instance.from_routes("late", routes, arrival=[0, 0, 3])
    run = rolling(late, no_shutdowns(2), deterministic_limit=5)
    assert [each.time for each in run.solves] == [0, 4]  # at 3 nobody can move, so its arrival is planned for at 4
    assert run.solves[0].makespan == 8  # of the two known jobs, which swap at 4
    assert run.schedule.start.tolist()[:4] == [0, 4, 0, 4]
    # Both machines are held until 8: the newcomer has 8-9 and 9-18.
    assert run.schedule.makespan == 18


def test_a_machine_that_is_down_is_expected_back_after_its_mean_residual_time() -> None:
    # Mean duration 10, so down-times are 1 .. 20. Machine 0 fails at 4 for far longer than that. Jobs 1 and 2 are
    # events of their own: what is left of the shutdown is planned anew when they arrive.
    instance = Instance.from_routes("one", [[(0, 10)], [(1, 10)], [(1, 10)]], num_machines=2, arrival=[0, 14, 60])
    downtime = Scenario.from_downtime(2, [{"machine": 0, "from": 4, "to": 90}])
    run = rolling(instance, downtime, deterministic_limit=1)
    # At 14 it has lasted for 10: 1 .. 10 are left, 6 in the mean (rounded up), then 6 of the operation: 26.
    # At 60 the law has no more to say: back at the next moment, done at 67; job 2 takes until 70.
    assert [(each.time, each.makespan) for each in run.solves] == [(0, 10), (14, 26), (60, 70)]
    assert run.schedule.makespan == 96


@pytest.mark.parametrize("seed", range(6))
def test_arrivals_and_shutdowns_together_end_well(seed: int) -> None:
    rng = np.random.default_rng(seed)
    instance = random_instance(rng, 6, 3, durations=(1, 9), operations=(1, 5), reentrant=True, load=0.9)
    mode: OnInterrupt = "restart" if seed % 2 else "resume"
    downtime = scenario.draw(instance, 0.2, seed, mode)
    run = rolling(instance, downtime, deterministic_limit=0.05, seed=seed)
    validate(run.schedule, instance, "isbjssp", downtime)
    assert len(run.solves) > 3


def test_a_limit_is_needed() -> None:
    with pytest.raises(UsageError, match="limit_s or deterministic_limit"):
        rolling(library.load("ft06"), no_shutdowns(6))


def test_with_no_time_to_plan_the_rule_s_order_is_kept() -> None:
    instance = library.load("la01")
    run = rolling(instance, scenario.draw(instance, 0.1, 1), deterministic_limit=0)
    assert len(run.solves) > 3
    assert all(each.keeps_order for each in run.solves)
