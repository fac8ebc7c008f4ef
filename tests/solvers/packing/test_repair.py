"""repair against every placement of tiny clusters, and its promises under any limit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dispatchgym.envs.api import InvalidScheduleError, UsageError
from dispatchgym.envs.packing import generate
from dispatchgym.envs.packing.instance import AntiAffinity, Nodes, PackingInstance, Pods, Workload
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import cp_sat, kube_scheduler, rules
from dispatchgym.solvers.packing.hard_seeds import hard_instances
from dispatchgym.solvers.packing.plan import check_hosts, placed_by_priority
from dispatchgym.solvers.packing.repair import repair
from tests.solvers.packing.test_cp_sat import tiny


def default_hosts(instance: PackingInstance, seed: int = 0) -> dict[int, int]:
    return validate(kube_scheduler.rollout(instance, seed=seed).log.events(), instance)


def hard_and_full() -> Iterator[tuple[PackingInstance, dict[int, int]]]:
    """Clusters with room for all and without, each with what the default scheduler leaves."""
    for cell in ((8, 4, 4, 0.95), (8, 8, 1, 1.05), (16, 4, 2, 1.0)):
        for instance in hard_instances(*cell, 2):
            yield instance, default_hosts(instance)


def test_tiny_clusters_end_as_well_as_cp_sat_proves_possible() -> None:
    reached = improved = 0
    for seed in range(60):
        if seed % 3 == 0:
            continue  # those have anti-affinity, whose pods stay where they are
        instance = tiny(seed)
        now = validate(rules.rollout(instance, "random", seed=seed).log.events(), instance)
        best = cp_sat.solve(instance, now, time_limit=None)
        assert best.is_placing_proven
        found = repair(instance, now, time_limit=None, deterministic_limit=0.02)
        check_hosts(instance, found.plan.then)
        assert placed_by_priority(instance, now) <= found.placed <= best.placed, seed
        reached += found.placed == best.placed
        improved += found.placed > placed_by_priority(instance, now)
    assert reached == 40
    assert improved > 5


@pytest.mark.parametrize("work", [0.0, 1e-5, 1e-3, 1e-2])
def test_it_is_never_worse_than_what_runs(work: float) -> None:
    for instance, now in hard_and_full():
        found = repair(instance, now, time_limit=None, deterministic_limit=work)
        check_hosts(instance, found.plan.then)
        assert found.placed == placed_by_priority(instance, found.plan.then)
        assert found.placed >= placed_by_priority(instance, now)
        assert (found.moves, found.evictions) == (len(found.plan.moved), len(found.plan.evicted))
        assert found.is_all_placed == (len(found.plan.then) == instance.num_pods)
        if work == 0.0:
            assert found.plan.then == now


def test_all_filters_hold_and_pods_under_anti_affinity_stay() -> None:
    improved = 0
    for seed in range(40):
        instance = generate.random_cluster(np.random.default_rng(seed), 4, 20, gpus=False)
        if any(w.spread for w in instance.workloads):
            continue
        now = validate(rules.rollout(instance, "worst-fit").log.events(), instance)
        found = repair(instance, now, time_limit=None, deterministic_limit=0.01, seed=seed)
        check_hosts(instance, found.plan.then)
        owners = [w for w in instance.workloads if w.anti_affinity]
        matches = [term.match for w in owners for term in w.anti_affinity]
        for pod in {*found.plan.moved, *found.plan.bound, *found.plan.evicted}:
            mine = instance.workloads[instance.pods.workload[pod]]
            assert not mine.anti_affinity
            assert not any(mine.has_labels(match) for match in matches)
        improved += found.placed > placed_by_priority(instance, now)
    assert improved > 0


def test_thirty_two_nodes_that_cp_sat_finds_hard_hold_everything() -> None:
    for instance in hard_instances(32, 8, 1, 0.95, 2):
        found = repair(instance, default_hosts(instance), time_limit=None, deterministic_limit=0.05)
        assert found.is_all_placed
        assert found.deterministic_s <= 0.051


def test_same_arguments_same_plan_and_another_seed_another_way() -> None:
    (instance,) = hard_instances(16, 8, 1, 1.0, 1)
    now = default_hosts(instance)
    plans = [repair(instance, now, time_limit=None, deterministic_limit=0.01, seed=s).plan.then for s in (3, 3, 4)]
    assert plans[0] == plans[1] != plans[2]


def test_pods_that_are_gone_are_left_out() -> None:
    instance = PackingInstance("one", Nodes(np.array([[10, 10]])), Pods(np.array([[6, 6], [7, 7], [3, 3]])))
    found = repair(instance, {0: 0}, time_limit=None, deterministic_limit=1e-3, gone=frozenset((2,)))
    assert found.plan.then == {0: 0}
    assert not found.is_all_placed
    with pytest.raises(UsageError, match="pod 0 runs and is said to be gone"):
        repair(instance, {0: 0}, gone=frozenset((0,)))


def test_an_urgent_pod_takes_the_place_of_another_and_a_small_one_that_of_a_large_one() -> None:
    sizes, one = np.array([[6, 6], [7, 7]]), Nodes(np.array([[10, 10]]))
    urgent = PackingInstance("urgent", one, Pods(sizes, priority=np.array([0, 1])))
    found = repair(urgent, {0: 0}, time_limit=None, deterministic_limit=1e-3)
    assert (found.plan.then, found.placed, found.evictions) == ({1: 0}, (1, 0), 1)
    small = PackingInstance("small", one, Pods(np.array([[9, 9], [5, 5], [4, 4]])))
    found = repair(small, {0: 0}, time_limit=None, deterministic_limit=1e-2)
    assert (found.plan.then, found.placed) == ({1: 0, 2: 0}, (2,))


def test_what_cannot_be_is_refused() -> None:
    instance = PackingInstance("one", Nodes(np.array([[10, 10]])), Pods(np.array([[6, 6], [7, 7]])))
    with pytest.raises(InvalidScheduleError):
        repair(instance, {0: 0, 1: 0})
    for limit in (-1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="limits are"):
            repair(instance, {}, time_limit=limit)
    with pytest.raises(UsageError, match="limits are"):
        repair(instance, {}, time_limit=None)
    gpu = PackingInstance(
        "gpu", Nodes(np.array([[9, 9]]), gpus=np.array([1])), Pods(np.array([[1, 1]]), gpus=np.array([1]))
    )
    with pytest.raises(UsageError, match="GPUs"):
        repair(gpu, {})
    web = Workload("web", labels=(("a", "b"),), anti_affinity=(AntiAffinity("host", (("a", "b"),)),))
    apart = PackingInstance(
        "apart", Nodes(np.array([[9, 9]]), labels=({"host": "x"},)), Pods(np.array([[1, 1], [1, 1]])), (web,)
    )
    assert repair(apart, {0: 0}, time_limit=None, deterministic_limit=1e-3).plan.then == {0: 0}
