"""kube-scheduler against a slow second scheduler written from its documentation, and against hand arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.packing import generate
from dispatchgym.envs.packing.batch import PackingBatch, PackingConfig
from dispatchgym.envs.packing.instance import Nodes, PackingInstance, Pods, Taint, Toleration, Workload
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import kube_scheduler
from dispatchgym.solvers.packing.hard_seeds import hard_instances
from dispatchgym.solvers.packing.kube_scheduler import Settings

FIRST = Settings(ties="first")


def slow_fit(strategy: str, asked: list[int], capacity: list[int]) -> int:
    scores = []
    for need, has in zip(asked, capacity, strict=True):
        if need > has:
            scores.append(100 if strategy == "requested-to-capacity" else 0)
        elif strategy == "least-allocated":
            scores.append((has - need) * 100 // has)
        elif strategy == "most-allocated":
            scores.append(need * 100 // has)
        else:
            scores.append(100 - (has - need) * 100 // has)
    if strategy == "requested-to-capacity":
        kept = [s for s in scores if s > 0]
        return math.floor(sum(kept) / len(kept) + 0.5) if kept else 0
    return sum(scores) // len(scores)


def slow_run(instance: PackingInstance, settings: Settings) -> dict[int, int]:
    """Pods by arrival and priority onto the node with the highest score, evicting if none fits; first among equals."""
    pods, capacity = instance.pods, instance.nodes.capacity
    runs: dict[int, int] = {}
    since: dict[int, int] = {}
    active: list[int] = []
    aside: list[int] = []

    def used(n: int, without: set[int] = frozenset()) -> np.ndarray:  # type: ignore[assignment]
        here = [p for p, at in runs.items() if at == n and p not in without]
        return pods.request[here].sum(axis=0)

    def fits(p: int, n: int, without: set[int] = frozenset()) -> bool:  # type: ignore[assignment]
        return bool((used(n, without) + pods.request[p] <= capacity[n]).all())

    def score(p: int, n: int) -> int:
        total = (used(n) + pods.request[p]).tolist()
        share = [t / c for t, c in zip(total, capacity[n].tolist(), strict=True)]
        before = [t / c for t, c in zip(used(n).tolist(), capacity[n].tolist(), strict=True)]
        level = int((1 - abs(share[0] - share[1]) / 2) * 100)
        level_before = int((1 - abs(before[0] - before[1]) / 2) * 100)
        balanced = {"level": level, "change": 50 + (50 + level - level_before) // 2, "off": 0}[settings.balanced]
        return slow_fit(settings.strategy, total, capacity[n].tolist()) + balanced

    def victims(p: int, n: int) -> list[int]:
        lower = [q for q, at in runs.items() if at == n and pods.priority[q] < pods.priority[p]]
        out = set(lower)
        if not lower or not fits(p, n, out):
            return []
        for q in sorted(lower, key=lambda q: (-pods.priority[q], since[q], q)):
            if fits(p, n, out - {q}):
                out.remove(q)
        return sorted(out, key=lambda q: -pods.priority[q])

    for now in np.unique(pods.arrival).tolist():
        active += np.flatnonzero(pods.arrival == now).tolist()
        while active:
            p = max(active, key=lambda q: (pods.priority[q], -active.index(q)))
            active.remove(p)
            nodes = [n for n in range(instance.num_nodes) if fits(p, n)]
            if nodes:
                runs[p], since[p] = max(nodes, key=lambda n: (score(p, n), -n)), now
                continue
            harm = {}
            for n in range(instance.num_nodes):
                if out := victims(p, n):
                    top = pods.priority[out[0]]
                    start = min(since[q] for q in out if pods.priority[q] == top)
                    harm[n] = (top, sum(int(pods.priority[q]) + 2**31 for q in out), len(out), -start, n)
            if not harm:
                aside.append(p)
                continue
            n = min(harm, key=lambda n: harm[n])
            for q in reversed_put_back(victims(p, n), pods.priority, since):
                del runs[q]
                active += [q, *sorted(aside)]
                aside = []
            runs[p], since[p] = n, now
    return runs


def reversed_put_back(out: list[int], priority: np.ndarray, since: dict[int, int]) -> list[int]:
    """Victims in the order in which they are evicted: the most important first."""
    return sorted(out, key=lambda q: (-priority[q], since[q], q))


@pytest.mark.parametrize("balanced", ["level", "change", "off"])
@pytest.mark.parametrize("strategy", ["least-allocated", "most-allocated", "requested-to-capacity"])
def test_it_decides_as_a_slow_second_scheduler(strategy: str, balanced: str) -> None:
    settings = Settings(strategy=strategy, balanced=balanced, ties="first")  # type: ignore[arg-type]
    evictions = 0
    for seed in range(8):
        instance = generate.priority_matters(5, 4, 3, 0.95, seed)
        run = kube_scheduler.rollout(instance, settings)
        assert validate(run.log.events(), instance) == slow_run(instance, settings)
        evictions += run.metrics.evictions
    assert evictions > 5


def test_the_two_forms_of_balance_by_hand() -> None:
    # Node 0: cpu 50 % in use, memory 10 %; the pod takes 0 % and 20 % more: 0.5 and 0.3. Level 90; before it was 80:
    # 50 + (50 + 10) // 2 = 80. Node 1 is empty: 0 and 0.2, level 90; before 100: 50 + (50 - 10) // 2 = 70.
    nodes = Nodes(np.array([[1000, 1000], [1000, 1000]]))
    pods = Pods(np.array([[500, 100], [0, 200]]), arrival=np.arange(2))
    instance = PackingInstance("hand", nodes, pods)
    for balanced, expected in (("level", 1), ("change", 1), ("off", 1)):
        run = kube_scheduler.rollout(instance, Settings(balanced=balanced, ties="first"))  # type: ignore[arg-type]
        assert run.log.events()[1].node == expected  # LeastAllocated decides: 40 and 70 to 90 and 80
    only_balance = Settings(balanced="change", fit_weight=0, ties="first")
    assert kube_scheduler.rollout(instance, only_balance).log.events()[1].node == 0
    assert kube_scheduler.rollout(instance, replace(only_balance, balanced="level")).log.events()[1].node == 0  # a tie


def test_the_shape_of_requested_to_capacity_is_followed() -> None:
    # Empty nodes of 1000 and 400, a pod of 200: 20 % and 50 % in use.
    instance = PackingInstance("shape", Nodes(np.array([[1000, 1000], [400, 400]])), Pods(np.array([[200, 200]])))
    for shape, expected in ((((0, 0), (100, 10)), 1), (((0, 10), (100, 0)), 0), (((0, 0), (20, 10), (50, 3)), 0)):
        settings = Settings(strategy="requested-to-capacity", shape=shape, balanced="off", ties="first")
        assert kube_scheduler.rollout(instance, settings).log.events()[0].node == expected


def test_a_pod_without_requests_counts_with_the_default() -> None:
    # Three pods without requests on node 0 leave it less attractive than node 1 with one pod of 250 milli-CPU.
    nodes = Nodes(np.array([[1000, 2000]] * 2))
    pods = Pods(np.array([[0, 0]] * 3 + [[250, 500], [100, 200]]), arrival=np.arange(5))
    batch = PackingBatch.of([PackingInstance("zero", nodes, pods)])
    for node in (0, 0, 0, 1):
        batch.step([node])
    kube_scheduler.play(batch, Settings(ties="first"))
    assert batch.log(0).events()[-1].node == 1  # 60 % left against 65 %


def test_intolerable_soft_taints_are_avoided() -> None:
    nodes = Nodes(
        np.array([[1000, 1000]] * 3),
        taints=((Taint("a", "", "PreferNoSchedule"), Taint("b", "", "PreferNoSchedule")),
                (Taint("a", "", "PreferNoSchedule"),), (Taint("c", "", "PreferNoSchedule"),) * 2),
    )  # fmt: skip
    for tolerations, expected in (((), 1), ((Toleration("a"), Toleration("b")), 0), ((Toleration("c"),), 2)):
        instance = PackingInstance("taints", nodes, Pods(np.array([[10, 10]])), (Workload(tolerations=tolerations),))
        assert kube_scheduler.rollout(instance, FIRST).log.events()[0].node == expected


def test_large_clusters_are_sampled_in_turn() -> None:
    # 150 nodes: 100 that fit are enough. Nodes 60 and 120 are the largest: the first pod sees 0..99 and takes 60, the
    # second sees 100..149 and 0..49 and takes 120, the third starts at 50.
    capacity = np.full((150, 2), 1000)
    capacity[[60, 120]] = 4000
    instance = PackingInstance("many", Nodes(capacity), Pods(np.array([[500, 500]] * 3), arrival=np.arange(3)))
    run = kube_scheduler.rollout(instance, FIRST)
    assert [e.node for e in run.log.events()] == [60, 120, 60]
    everything = kube_scheduler.rollout(instance, replace(FIRST, percentage=100))
    assert [e.node for e in everything.log.events()] == [60, 120, 60]
    first = kube_scheduler.rollout(instance, replace(FIRST, percentage=1))
    assert [e.node for e in first.log.events()] == [60, 120, 60]  # at least 100 in any case


@pytest.mark.parametrize(("nodes", "percentage", "expected"), [
    (99, 0, 99), (100, 0, 100), (1000, 0, 420), (5000, 0, 500), (6000, 0, 300), (15000, 0, 750), (1000, 30, 300),
])  # fmt: skip
def test_how_many_nodes_are_enough(nodes: int, percentage: int, expected: int) -> None:
    # 1000: 50 - 8 = 42 %; 5000: 10 %; 6000: max(5, 2) %.
    assert kube_scheduler.nodes_to_find(nodes, percentage) == expected


def test_ties_are_drawn_by_the_seed() -> None:
    instance = PackingInstance("ties", Nodes(np.array([[1000, 1000]] * 4)), Pods(np.array([[10, 10]])))
    chosen = [kube_scheduler.rollout(instance, seed=seed).log.events()[0].node for seed in range(200)]
    assert chosen == [kube_scheduler.rollout(instance, seed=seed).log.events()[0].node for seed in range(200)]
    assert np.bincount(chosen, minlength=4).tolist() == pytest.approx([50] * 4, abs=20)


def test_the_least_harmful_victims_are_chosen() -> None:
    # A pod of 1000 and priority 9 at four full nodes whose pods have priorities: 0: (5, 1); 1: (3, 3, 3); 2: (3, 3);
    # 3: (3, 3), started later. The highest priority rules out node 0, the number node 1, the start node 2.
    request = [[500, 500]] * 2 + [[334, 334]] * 2 + [[332, 332]] + [[500, 500]] * 4 + [[1000, 1000]]
    pods = Pods(
        np.array(request),
        priority=np.array([5, 1, 3, 3, 3, 3, 3, 3, 3, 9]),
        arrival=np.arange(10),
    )
    batch = PackingBatch.of([PackingInstance("harm", Nodes(np.array([[1000, 1000]] * 4)), pods)],
                            PackingConfig(evict=True))  # fmt: skip
    for node in (0, 0, 1, 1, 1, 2, 2, 3, 3):
        batch.step([node])
    kube_scheduler.play(batch, FIRST)
    assert {e.pod for e in batch.log(0).events() if e.kind == "evict" and e.cause == 9} == {7, 8}


def test_without_leave_to_evict_pods_stay_pending() -> None:
    instance = generate.priority_matters(4, 4, 4, 1.05, 0)
    run = kube_scheduler.rollout(instance, FIRST, PackingConfig())
    assert run.metrics.evictions == 0
    assert run.metrics.pending > 0


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="least-allocated"):
        Settings(strategy="least")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="each above the one before"):
        Settings(shape=((50, 1), (50, 2)))
    with pytest.raises(UsageError, match="scores from 0 to 10"):
        Settings(shape=((0, 0), (100, 100)))
    with pytest.raises(UsageError, match="percentage is 101"):
        Settings(percentage=101)


def test_hard_instances_are_those_that_the_default_scheduler_does_not_solve() -> None:
    chosen = {instance.name for instance in hard_instances(4, 4, 2, 0.9, 8)}
    expected = []
    for seed in range(200):
        instance = generate.priority_matters(4, 4, 2, 0.9, seed)
        if len(slow_run(instance_of_one_priority(instance), FIRST)) < 16:
            expected.append(instance.name)
    assert chosen == set(expected[:8])
    assert len(expected) < 200
    with pytest.raises(UsageError, match=r"0 of 400 instances of 4 nodes at usage 0\.3"):
        hard_instances(4, 4, 2, 0.3, 2)
    full = hard_instances(4, 4, 2, 1.0, 3, first_seed=5)
    assert [instance.name.rsplit("seed", 1)[1] for instance in full] == ["5", "6", "7"]


def instance_of_one_priority(instance: PackingInstance) -> PackingInstance:
    """The same arrivals, but nobody may be evicted; one ReplicaSet arrives at a time, so the order stays."""
    return replace(
        instance, pods=instance.pods.take(range(instance.num_pods), priority=np.zeros(instance.num_pods, int))
    )
