"""Shortlists: chains of moves against brute force, legal choices, columns by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing import chains, shortlist, twin
from dispatchgym.envs.packing.batch import PackingBatch, PackingConfig
from dispatchgym.envs.packing.generate import priority_matters, random_cluster
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import ShortlistConfig, Shortlists, ShortName
from dispatchgym.envs.packing.state import RUNNING
from dispatchgym.envs.packing.validate import validate

CONFIG = ShortlistConfig(most=12, moves=50)


def instances(graph: ShortName, count: int = 6) -> list[PackingInstance]:
    if graph == "bindings":
        return [twin.load(seed, scale=0.01) for seed in range(count)]
    return [priority_matters(6, 4, 1 + seed % 3, 1.0, seed) for seed in range(count)]


def shortest_chain(instance: PackingInstance, hosts: dict[int, int], pod: int, deepest: int) -> int:
    """Least number of moves of running pods after which `pod` fits somewhere, by trying all; 9 if there is none.

    A move to the node that `pod` will take is not tried: chains do not look for those.
    """
    request, capacity = instance.pods.request, instance.nodes.capacity

    def free(hosts: dict[int, int]) -> np.ndarray:
        left = capacity.copy()
        for q, n in hosts.items():
            left[n] -= request[q]
        return left

    for depth in range(deepest + 1):
        for moved in itertools.permutations(hosts, depth):
            for goals in itertools.product(range(instance.num_nodes), repeat=depth):
                now, possible = dict(hosts), True
                for q, goal in zip(moved, goals, strict=True):
                    possible = now[q] != goal and bool((request[q] <= free(now)[goal]).all())
                    if not possible:
                        break
                    now[q] = goal
                if possible:
                    fits = (request[pod] <= free(now)).all(axis=1)
                    if any(fits[n] for n in range(instance.num_nodes) if n not in goals or depth == 0):
                        return depth
    return 9


def test_chains_are_found_exactly_where_trying_all_moves_finds_them() -> None:
    rng = np.random.default_rng(0)
    seen = []
    for seed in range(60):
        instance = priority_matters(3, 3, 1, 1.0, seed)
        lists = PackingBatch.of([instance], PackingConfig(moves=100))
        while not lists.over[0]:
            binds = np.flatnonzero(lists.mask[0][: lists.capacity.nodes])
            if len(binds):
                lists.step([rng.choice(binds)])
                continue
            pod = int(lists.cluster.env["hand"][0])
            running = np.flatnonzero(lists.cluster.pod["status"][0] == RUNNING)
            hosts = {int(q): int(lists.cluster.pod["host"][0, q]) for q in running}
            elsewhere, depth = chains.scratch(lists.capacity.pods)
            found = chains.find_chains(lists.problem, lists.cluster, 0, pod, 2, elsewhere, depth)
            expected = shortest_chain(instance, hosts, pod, 2)
            assert found == (expected if expected <= 2 else chains.NO_CHAIN), (seed, hosts, pod)
            assert (depth[running] == found).any() == (found < chains.NO_CHAIN)
            seen.append(found)
            lists.step([lists.wait_action])
    assert {1, 2, chains.NO_CHAIN} <= set(seen)


@pytest.mark.parametrize("graph", ["repack", "bindings"])
def test_listed_choices_are_legal_different_and_at_least_two(graph: ShortName) -> None:
    lists = Shortlists.of(instances(graph), graph, CONFIG)
    reward = lists.begin()
    rng = np.random.default_rng(1)
    decisions = 0
    while not lists.batch.over.all():
        seen = lists.observe()
        actions = np.full(6, -1, np.int64)
        for i in np.flatnonzero(~lists.batch.over):
            mine = slice(seen.candidate_ptr[i], seen.candidate_ptr[i + 1])
            rows, listed = seen.x["choice"][mine], seen.action[mine]
            assert 2 <= len(listed) <= CONFIG.most
            assert lists.batch.mask[i, listed].all()
            assert lists.batch.wait_action not in listed
            assert len(np.unique(rows, axis=0)) == len(rows)
            actions[i] = rng.choice(listed)
            decisions += 1
        assert (np.diff(seen.candidate_ptr)[lists.batch.over] == 0).all()
        reward += lists.step(actions)
    assert decisions >= 100
    for i, instance in enumerate(instances(graph)):
        validate(lists.batch.log(i).events(), instance)
        metrics = lists.batch.metrics(i)
        if graph == "bindings":
            assert lists.loss[i] == pytest.approx(100 - metrics.gpu_allocation_pct)
            assert reward[i] == pytest.approx(lists.stake[i] * metrics.gpu_allocation_pct / 100)
        else:
            weight = 4.0 ** np.arange(len(metrics.placed))[::-1]
            total = sum(weight[::-1][np.searchsorted(np.sort(instance.tiers), instance.pods.priority)])
            assert lists.stake[i] == pytest.approx(total)
            assert lists.loss[i] == pytest.approx(100 * (1 - (weight * metrics.placed).sum() / total))
            paid = lists.stake[i] * (1 - lists.loss[i] / 100) - 0.1 * (metrics.moves + metrics.evictions)
            assert reward[i] == pytest.approx(paid)


@pytest.mark.parametrize("graph", ["repack", "bindings"])
def test_finishing_by_merit_is_taking_the_highest_merit_each_time(graph: ShortName) -> None:
    whole, late, single = (Shortlists.of(instances(graph), graph, CONFIG) for _ in range(3))
    whole.begin()
    whole.finish()
    late.begin(late=0.5)
    arrived = late.batch.cluster.env["next_pod"] / late.batch.problem.size["num_pods"]
    assert ((arrived >= 0.5) | late.batch.over).all()
    single.begin()
    while not single.batch.over.all():
        seen = single.observe()
        actions = np.full(6, -1, np.int64)
        for i in np.flatnonzero(~single.batch.over):
            mine = slice(seen.candidate_ptr[i], seen.candidate_ptr[i + 1])
            actions[i] = seen.action[mine][seen.x["choice"][mine, -1].argmax()]
        single.step(actions)
    for i in range(6):
        assert whole.batch.log(i).events() == single.batch.log(i).events()
        begun = late.batch.log(i).events()
        assert begun == single.batch.log(i).events()[: len(begun)]


def test_clusters_with_every_kind_of_filter_are_played_by_the_rules() -> None:
    rng = np.random.default_rng(2)
    drawn = [random_cluster(rng, 5, 30, gpus=bool(k % 2), departures=k % 3 == 0) for k in range(8)]
    for instance in drawn:
        lists = Shortlists.of([instance], "repack", CONFIG)
        lists.begin()
        lists.finish()
        validate(lists.batch.log(0).events(), instance)


def test_columns_of_a_binding_by_hand() -> None:
    """Two nodes, one GPU in use by half: pods ask for 2 cores a GPU."""
    lists = Shortlists.of([two_nodes()], "bindings", ShortlistConfig())
    lists.begin()
    seen = lists.observe()
    names = [feature.name for feature in lists.spec.node("choice").features]
    found = {name: seen.x["choice"][:, c].tolist() for c, name in enumerate(names)}
    assert seen.action.tolist() == [0, 2]
    # node 0: 8 cores and 2 GPUs; node 1: 2 cores and 1 GPU; the pod takes 1 core and half a GPU
    assert found["slot_after"] == [0.5, 0.5]
    assert found["idle_taken"] == [1.0, 1.0]
    assert found["opened"] == [1.0, 1.0]
    assert found["cpu_after"] == pytest.approx([7 / 128, 1 / 128])
    assert found["gpu_after"] == pytest.approx([1.5 / 8, 0.5 / 8])
    assert found["spare"] == pytest.approx([(7 - 3) / 2, 0.0])  # in GPUs' worth of the usual 2 cores
    assert found["short"] == [0.0, 0.0]
    # fragments: all pods are half GPUs of 1 core, which fit, so nothing is lost before or after
    assert found["gathered"] == [0.0, 0.0]


def two_nodes() -> PackingInstance:
    from dispatchgym.envs.packing.instance import Nodes, Pods

    return PackingInstance(
        "two nodes",
        Nodes(np.array([[8000, 100], [2000, 100]]), gpus=np.array([2, 1]), models=("A", "A")),
        Pods(np.array([[1000, 0]] * 3), gpus=np.array([1] * 3), gpu_milli=np.array([500] * 3)),
    )


def test_an_impossible_configuration_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        ShortlistConfig(most=1)
    with pytest.raises(UsageError, match="3 x 20"):
        ShortlistConfig(merit=((1.0, 2.0),)).weights("bindings")
    assert ShortlistConfig().weights("repack").shape == shortlist.WEIGHTS["repack"].shape
