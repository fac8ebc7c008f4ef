"""Packing policies by name: canonical, refused with a way out, and doing what they say."""

from __future__ import annotations

import pytest

from dispatchgym.agents.evaluation.packing.policies import FORMS, POLICIES, parse_policy
from dispatchgym.agents.evaluation.packing.problem import PackingProblem, Start
from dispatchgym.agents.evaluation.work import WorkItem, check_policies, execute
from dispatchgym.envs.api import DispatchGymError, UnknownNameError, UsageError
from dispatchgym.envs.packing import twin
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import kube_scheduler, rules
from dispatchgym.solvers.packing.hard_seeds import hard_instances
from tests.agents.evaluation.packing.examples import problem


def hard(seed: int = 0) -> PackingProblem:
    return problem(hard_instances(8, 4, 2, 0.95, 1, seed)[0])


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("FGD", "fgd"),
        ("kube-scheduler", "kube-scheduler"),
        ("most-allocated+change", "most-allocated+change"),
        ("cp-sat@10S", "cp-sat@10s"),
        ("cp-sat@0.5d+tiers", "cp-sat@0.5d+tiers"),
        ("cp-sat@1s+workers:2+tiers", "cp-sat@1s+tiers+workers:2"),
        ("cp-sat@1s+anytime", "cp-sat@1s"),
        ("cp-sat@1s+hint:best-fit+repair50ms", "cp-sat@1s+hint:best-fit+repair50ms"),
        ("kube-scheduler+repair0.05s", "kube-scheduler+repair50ms"),
        ("ffd+repair1s", "ffd+repair1s"),
        ("ffd+repair0.1d", "ffd+repair0.1d"),
        ("cp-sat@1s+tiers+repair50ms", "cp-sat@1s+tiers+repair50ms"),
    ],
)
def test_every_form_has_one_name(written: str, name: str) -> None:
    assert parse_policy(written).name == name
    assert parse_policy(name).name == name


@pytest.mark.parametrize(
    ("written", "error", "said"),
    [
        ("fdg", UnknownNameError, "did you mean 'fgd'"),
        ("kube-schedular", UnknownNameError, "did you mean 'kube-scheduler'"),
        ("fgd+cap0.7", UsageError, "has no options"),
        ("kube-scheduler+first", UsageError, "kube-scheduler\\+change"),
        ("cp-sat", UsageError, "needs a limit above 0"),
        ("cp-sat@0s", UsageError, "needs a limit above 0"),
        ("cp-sat@1s+fast", UsageError, "'fast' is not an option of cp-sat"),
        ("ffd+repair", UsageError, "needs a limit above 0"),
        ("ffd+repair50", UsageError, "such as 50ms"),
        ("cp-sat@1s+hint:fdg", UnknownNameError, "did you mean 'fgd'"),
    ],
)
def test_what_cannot_be_is_refused(written: str, error: type[DispatchGymError], said: str) -> None:
    with pytest.raises(error, match=said):
        parse_policy(written)


def test_every_name_is_listed() -> None:
    listed = " ".join(form for form, _ in FORMS)
    assert all(name in listed for name in POLICIES)


def test_the_default_is_the_run_that_must_be_improved() -> None:
    one = hard()
    start = one.scenario(3)
    assert isinstance(start, Start)
    answer = parse_policy("kube-scheduler").prepare(one)(start, 99)
    assert answer.events == start.events
    result = execute(WorkItem(one, parse_policy("kube-scheduler"), 3))
    assert (result.value, result.metrics["placed"]) == (0.0, list(start.placed))


def test_seeds_are_other_runs_of_the_default() -> None:
    one = problem(hard_instances(16, 4, 2, 0.95, 1)[0])
    assert one.scenario(0).events == one.scenario(0).events  # type: ignore[union-attr]
    assert one.scenario(0).events != one.scenario(1).events  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["best-fit", "random", "most-allocated", "fgd"])
def test_rules_play_the_instance(name: str) -> None:
    one = hard()
    answer = parse_policy(name).prepare(one)(one.scenario(0), 7)
    if name == "most-allocated":
        expected = kube_scheduler.rollout(one.instance, kube_scheduler.MOST_ALLOCATED, seed=7)
    else:
        expected = rules.rollout(one.instance, name, one.config, seed=7)
    assert answer.events == expected.log.events()
    assert answer.decisions == expected.decisions


def test_repair_begins_where_the_policy_ends_and_is_never_worse() -> None:
    for seed in range(4):
        one = hard(10 * seed)
        for name in ("kube-scheduler", "worst-fit", "ffd"):
            plain, repaired = (
                execute(WorkItem(one, parse_policy(policy), 0)) for policy in (name, f"{name}+repair0.005d")
            )
            assert repaired.events == plain.events
            assert repaired.metrics["placed"] >= plain.metrics["placed"]
            assert repaired.notes["repair_deterministic_s"] <= 0.006
    assert repaired.metrics["outcome"] == "B*"


def test_a_hint_is_where_cp_sat_begins() -> None:
    one = problem(hard_instances(16, 8, 2, 0.95, 1)[0])
    alone = execute(WorkItem(one, parse_policy("cp-sat@0.0001d"), 0))
    hinted = execute(WorkItem(one, parse_policy("cp-sat@0.0001d+hint:kube-scheduler+repair0.01d"), 0))
    assert hinted.metrics["pending"] == 0 < alone.metrics["pending"]
    assert hinted.metrics["outcome"] == "B*"
    start = one.scenario(0)
    assert start is not None
    assert hinted.events == alone.events
    assert validate(start.events, one.instance) == start.hosts


def test_solvers_and_repair_are_for_pods_only() -> None:
    gpus = problem(twin.load(0, scale=0.01), "gpus")
    for name in ("cp-sat@1s", "fgd+repair50ms"):
        with pytest.raises(UsageError, match="cannot run in gpus; it is for pods"):
            check_policies([gpus], [parse_policy(name)])
    assert check_policies([gpus], [parse_policy("fgd")]) == []
