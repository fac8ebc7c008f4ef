"""cp-sat against every placement of tiny clusters, and its promises under tiny limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.envs.api import InvalidScheduleError, UnknownNameError, UsageError
from dispatchgym.envs.packing import generate
from dispatchgym.envs.packing.instance import AntiAffinity, Nodes, PackingInstance, Pods, Spread, Workload
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import cp_sat, kube_scheduler, rules
from dispatchgym.solvers.packing.hard_seeds import hard_instances
from dispatchgym.solvers.packing.plan import check_hosts, placed_by_priority


def default_hosts(instance: PackingInstance) -> dict[int, int]:
    """What the default scheduler leaves running."""
    return validate(kube_scheduler.rollout(instance).log.events(), instance)


def every_placement(instance: PackingInstance, hosts: dict[int, int] | None = None) -> Iterator[dict[int, int]]:
    """All that the validator allows; to take pods away from a placement never breaks a rule."""
    hosts = hosts or {}
    yield hosts
    for pod in range(max(hosts, default=-1) + 1, instance.num_pods):
        for node in range(instance.num_nodes):
            more = {**hosts, pod: node}
            try:
                check_hosts(instance, more)
            except InvalidScheduleError:
                continue
            yield from every_placement(instance, more)


def objectives(instance: PackingInstance, now: dict[int, int], then: dict[int, int]) -> tuple[list[int], list[int]]:
    """Pods placed of each priority and above; of those that ran, who stayed less who moved."""
    placed, calm = [], []
    for tier in instance.tiers:
        pods = [p for p in then if instance.pods.priority[p] >= tier]
        placed.append(len(pods))
        calm.append(sum(1 if now[p] == then[p] else -1 for p in pods if p in now))
    return placed, calm


def tiny(seed: int) -> PackingInstance:
    """2 or 3 nodes, 6 pods, 1 to 3 priorities, tight; every third with all kinds of filters."""
    if seed % 3:
        nodes = 2 + seed % 2
        return generate.priority_matters(nodes, 6 // nodes, 1 + seed % 4 % 3, 0.95, seed)
    instance = generate.random_cluster(np.random.default_rng(seed), 3, 6)
    nodes = replace(instance.nodes, capacity=instance.nodes.capacity // 2)
    workloads = tuple(replace(w, spread=()) for w in instance.workloads)
    return PackingInstance(instance.name, nodes, instance.pods, workloads, instance.resources)


SEEDS = range(45)


def test_both_methods_reach_the_best_of_all_placements() -> None:
    already_best = 0
    for seed in SEEDS:
        instance = tiny(seed)
        now = validate(rules.rollout(instance, "random", seed=seed).log.events(), instance)
        scores = [objectives(instance, now, then) for then in every_placement(instance)]

        tiers = cp_sat.solve(instance, now, method="tiers", time_limit=None)
        check_hosts(instance, dict(tiers.plan.then))
        best = max(tuple(zip(*score, strict=True)) for score in scores)
        assert tiers.status == "optimal"
        assert tuple(zip(*objectives(instance, now, dict(tiers.plan.then)), strict=True)) == best, seed
        assert tiers.bound == tuple(placed for placed, _ in best)

        anytime = cp_sat.solve(instance, now, time_limit=None)
        check_hosts(instance, dict(anytime.plan.then))
        placed, calm = max(scores)
        assert anytime.status == "optimal"
        assert objectives(instance, now, dict(anytime.plan.then)) == (placed, calm), seed
        assert anytime.bound == tuple(placed)
        assert tuple(np.cumsum(anytime.placed)) == anytime.bound
        assert anytime.proves_default_optimal == (objectives(instance, now, now)[0] == placed)
        already_best += anytime.proves_default_optimal
    assert 10 < already_best < len(SEEDS) - 10


def test_only_anytime_moves_a_pod_for_one_of_lower_priority() -> None:
    instance = PackingInstance(
        "pair", Nodes(np.array([[10, 10]] * 2)), Pods(np.array([[5, 5], [5, 5], [9, 9]]), priority=np.array([2, 2, 1]))
    )
    now = {0: 0, 1: 1}
    tiers = cp_sat.solve(instance, now, method="tiers")
    assert (tiers.placed, tiers.bound, tiers.status) == ((2, 0), (2, 2), "optimal")
    assert tiers.proves_default_optimal
    anytime = cp_sat.solve(instance, now)
    assert (anytime.placed, anytime.moves, anytime.evictions, anytime.status) == ((2, 1), 1, 0, "optimal")
    assert anytime.plan.bound == (2,)
    assert anytime.plan.moved in {(0,), (1,)}


def test_a_lower_pod_gives_way() -> None:
    instance = PackingInstance(
        "one", Nodes(np.array([[10, 10]])), Pods(np.array([[6, 6], [3, 3], [7, 7]]), priority=np.array([1, 1, 2]))
    )
    for method in ("tiers", "anytime"):
        solution = cp_sat.solve(instance, {0: 0, 1: 0}, method=method)  # type: ignore[arg-type]
        assert (solution.placed, solution.plan.evicted, solution.plan.bound) == ((1, 1), (0,), (2,))
        assert (solution.moves, solution.evictions) == (0, 1)


@pytest.mark.parametrize("work", [0.0, 1e-4, 1e-3, 1e-2, 0.1])
def test_anytime_is_never_worse_than_what_runs(work: float) -> None:
    for instance in [*hard_instances(8, 4, 4, 0.95, 3), *hard_instances(16, 8, 4, 1.0, 1)]:
        now = default_hosts(instance)
        solution = cp_sat.solve(instance, now, time_limit=None, deterministic_limit=work)
        check_hosts(instance, dict(solution.plan.then))
        before = placed_by_priority(instance, now)
        assert solution.placed == placed_by_priority(instance, solution.plan.then)
        assert solution.placed >= before
        if solution.placed == before:
            assert solution.plan.then == now
        assert all(np.cumsum(solution.placed) <= solution.bound)


def test_without_time_both_methods_leave_things_alone_and_prove_nothing() -> None:
    instance = hard_instances(8, 4, 4, 0.95, 1)[0]
    now = default_hosts(instance)
    for method in ("tiers", "anytime"):
        solution = cp_sat.solve(instance, now, method=method, time_limit=0.0)  # type: ignore[arg-type]
        assert solution.plan.then == now
        assert solution.status != "optimal"
        assert not solution.proves_default_optimal


def test_the_same_work_gives_the_same_plan() -> None:
    instance = hard_instances(8, 4, 2, 1.0, 1)[0]
    now = default_hosts(instance)
    for method in ("tiers", "anytime"):
        first, second = (
            cp_sat.solve(instance, now, method=method, time_limit=None, deterministic_limit=0.2, seed=5)  # type: ignore[arg-type]
            for _ in range(2)
        )
        assert (first.plan, first.bound, first.status) == (second.plan, second.bound, second.status)
        assert first.deterministic_s == second.deterministic_s
        assert first.deterministic_s < 0.3
        assert first.version.startswith("ortools ")
        assert (first.method, first.seed, first.workers) == (method, 5, 1)


def test_pods_that_are_gone_are_not_placed() -> None:
    instance = PackingInstance("gone", Nodes(np.array([[10, 10]])), Pods(np.array([[4, 4]] * 3)))
    solution = cp_sat.solve(instance, {1: 0}, gone=frozenset({0}))
    assert solution.plan.then == {1: 0, 2: 0}
    assert (solution.bound, solution.status) == ((2,), "optimal")


def test_pods_that_fit_nowhere_or_are_all_gone_leave_nothing_to_do() -> None:
    instance = PackingInstance(
        "big", Nodes(np.array([[10, 10]])), Pods(np.array([[40, 4], [4, 40]]), priority=np.array([1, 2]))
    )
    for method in ("tiers", "anytime"):
        solution = cp_sat.solve(instance, {}, method=method)  # type: ignore[arg-type]
        assert (solution.placed, solution.bound, solution.status) == ((0, 0), (0, 0), "optimal")
        nobody = cp_sat.solve(instance, {}, method=method, gone=frozenset({0, 1}))  # type: ignore[arg-type]
        assert (nobody.bound, nobody.status) == ((0, 0), "optimal")


def test_weights_of_many_priorities_stay_within_range() -> None:
    number = 40
    pods = Pods(np.full((number, 2), 7), priority=np.arange(number))
    solution = cp_sat.solve(PackingInstance("many", Nodes(np.full((5, 2), 10)), pods), {0: 0, 1: 1})
    assert solution.placed == (1,) * 5 + (0,) * 35
    assert solution.evictions == 2


def test_anti_affinity_and_pod_counts_bind() -> None:
    app = (("app", "x"),)
    instance = PackingInstance(
        "rules",
        Nodes(
            np.array([[9, 9]] * 3), max_pods=np.array([9, 9, 1]), labels=({"zone": "a"}, {"zone": "a"}, {"zone": "b"})
        ),
        Pods(np.array([[1, 1]] * 5), workload=np.array([0, 0, 0, 1, 1])),
        (Workload("x", labels=app, anti_affinity=(AntiAffinity("zone", app),)), Workload("y")),
    )
    solution = cp_sat.solve(instance, {3: 2, 4: 0})
    # One x in each zone; for that in b the y there must move.
    assert (solution.placed, solution.moves, solution.plan.moved) == ((4,), 1, (3,))


def test_what_cannot_be_solved_is_refused() -> None:
    instance = PackingInstance("two", Nodes(np.array([[3, 3]])), Pods(np.array([[2, 2]] * 2)))
    with pytest.raises(InvalidScheduleError, match="would use 4 of 3 cpu"):
        cp_sat.solve(instance, {0: 0, 1: 0})
    with pytest.raises(UnknownNameError, match="anytime"):
        cp_sat.solve(instance, {}, method="anytim")  # type: ignore[arg-type]
    for limits, message in (
        ({"time_limit": -1.0}, "time limit is -1"),
        ({"deterministic_limit": float("nan")}, "deterministic limit is nan"),
        ({"workers": 0}, "workers is 0"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(UsageError, match=message):
            cp_sat.solve(instance, {}, **limits)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pod 0 runs and is said to be gone"):
        cp_sat.solve(instance, {0: 0}, gone=frozenset({0}))
    gpus = PackingInstance(
        "gpus", Nodes(np.array([[3, 3]]), gpus=np.array([1])), Pods(np.array([[2, 2]]), gpus=np.array([1]))
    )
    with pytest.raises(UsageError, match="pods with GPUs"):
        cp_sat.solve(gpus, {})
    spread = (Workload("s", spread=(Spread("zone", (("app", "x"),)),)),)
    with pytest.raises(UsageError, match="topology spread"):
        cp_sat.solve(PackingInstance("spread", instance.nodes, instance.pods, spread), {})


def test_a_hint_is_kept_if_it_is_better_and_moves_are_counted_from_what_runs() -> None:
    instance = PackingInstance(
        "pair", Nodes(np.array([[10, 10]] * 2)), Pods(np.array([[5, 5], [5, 5], [9, 9]]), priority=np.array([2, 2, 1]))
    )
    now, better = {0: 0, 1: 1}, {0: 1, 1: 1, 2: 0}
    for method in ("anytime", "tiers"):
        kept = cp_sat.solve(instance, now, method=method, hint=better, time_limit=0.0)  # type: ignore[arg-type]
        assert (kept.placed, kept.moves, kept.plan.now) == ((2, 1), 1, now)
    worse = cp_sat.solve(instance, now, hint={0: 0}, time_limit=0.0)
    assert worse.plan.then == now
    solved = cp_sat.solve(instance, now, hint=better)
    assert (solved.placed, solved.moves, solved.status) == ((2, 1), 1, "optimal")
    with pytest.raises(InvalidScheduleError):
        cp_sat.solve(instance, now, hint={0: 0, 2: 0})
    with pytest.raises(UsageError, match="pod 2 is in the hint"):
        cp_sat.solve(instance, now, hint=better, gone=frozenset((2,)))
