"""A unit of work is timed and judged, and nothing that goes wrong in it goes unnoticed or further."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.agents.evaluation.policies import Answer, parse_policies
from dispatchgym.agents.evaluation.work import WorkItem, check_policies, execute, plan
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule
from tests.agents.evaluation.examples import FixedPolicy, best_schedule, item, problem


def test_a_valid_schedule_is_kept_with_its_makespan() -> None:
    result = execute(item(lambda scenario, seed: Answer(best_schedule(), "optimal", 4, bound=7)))
    assert (result.status, result.value, result.decisions, result.bound) == ("optimal", 7, 4, 7)
    assert result.schedule is not None
    assert result.schedule.operations(problem().instance) == best_schedule().operations(problem().instance)
    assert result.versions["fixed"] == 1
    assert result.wall_s > 0


def test_a_broken_schedule_is_a_failed_result_with_the_reason() -> None:
    right, sooner = best_schedule(), np.array([0, 0, 0, 2])
    overlap = Schedule(right.start - sooner, right.end - sooner, right.end - sooner)
    result = execute(item(lambda scenario, seed: Answer(overlap)))
    assert (result.status, result.value, result.operations) == ("invalid", None, ())
    assert "machine 0" in result.message


def test_a_bound_above_the_makespan_is_not_believed() -> None:
    result = execute(item(lambda scenario, seed: Answer(best_schedule(), "feasible", bound=8)))
    assert (result.status, result.value) == ("invalid", None)
    assert "below the claimed bound 8" in result.message


def test_success_without_a_schedule_is_a_failure() -> None:
    assert execute(item(lambda scenario, seed: Answer(None, "ok"))).status == "invalid"


def test_a_solver_that_found_nothing_is_no_failure() -> None:
    result = execute(item(lambda scenario, seed: Answer(None, "unknown", bound=5)))
    assert (result.status, result.value, result.bound) == ("unknown", None, 5)


@pytest.mark.parametrize("error", [UsageError("the run ended in a deadlock"), ZeroDivisionError("division by zero")])
def test_an_exception_becomes_a_failed_result(error: Exception) -> None:
    def break_off(scenario: Scenario | None, seed: int) -> Answer:
        raise error

    result = execute(item(break_off))
    assert result.status == "failed"
    assert str(error) in result.message


def test_a_policy_gets_seeds_made_of_names_and_one_untimed_warm_up() -> None:
    seen: list[int] = []

    def remember(scenario: Scenario | None, seed: int) -> Answer:
        seen.append(seed)
        return Answer(best_schedule())

    for seed in (1, 1, 2):
        execute(WorkItem(problem(), FixedPolicy(remember, "remembers"), seed))
    warm_up, first, again, other = seen
    assert warm_up == 0
    assert first == again != other


def test_seeds_are_planned_only_where_they_can_matter() -> None:
    policies = parse_policies("mwkr,random")
    calm, stormy = problem(variant="isbjssp"), problem(variant="isbjssp", shutdown_probability=0.1)
    planned = [(i.problem is stormy, i.policy.name, i.seed) for i in plan([calm, stormy], policies, 2)]
    assert planned == [
        (False, "mwkr", 0),
        (False, "random", 0),
        (False, "random", 1),
        (True, "mwkr", 0),
        (True, "mwkr", 1),
        (True, "random", 0),
        (True, "random", 1),
    ]


def test_every_item_has_a_name_of_its_own() -> None:
    shops = [problem(), problem(variant="bws")]
    shops += [
        problem(variant="isbjssp", shutdown_probability=p, on_interrupt=o)
        for p in (0, 0.1)
        for o in ("resume", "restart")
    ]
    shops += [problem(Instance.from_routes("two-jobs", [[(0, 3), (1, 2)], [(1, 2), (0, 5)]]))]
    items = plan(shops, parse_policies("mwkr,spt,random"), 3)
    assert len({each.key for each in items}) == len(items)


def test_a_policy_that_fits_some_of_the_shops_is_noted_and_one_that_fits_none_is_refused() -> None:
    classic = FixedPolicy(lambda scenario, seed: Answer(None), "classic-only", variants=frozenset(("jssp",)))
    shops = [problem(), problem(), problem(variant="bws")]
    assert check_policies(shops, [classic]) == ["classic-only runs in jssp only: 2 of 3 problems"]
    assert [i.problem.variant for i in plan(shops, [classic], 1)] == ["jssp", "jssp"]
    with pytest.raises(UsageError, match="classic-only cannot run in bws; it is for jssp"):
        check_policies(shops[2:], [classic])
