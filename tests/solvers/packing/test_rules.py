"""The rules: hand arithmetic, a second way to compute FGD, and the published table where the data are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.packing import generate, openb, twin
from dispatchgym.envs.packing.batch import ALLOCATED, PackingBatch, PackingConfig
from dispatchgym.envs.packing.instance import Nodes, PackingInstance, Pods
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import rules


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("gpus", [False, True])
def test_every_run_of_every_rule_is_valid_and_repeatable(rule: str, gpus: bool) -> None:
    for seed in range(3):
        instance = generate.random_cluster(np.random.default_rng(seed), 5, 14, gpus=gpus, departures=seed == 2)
        run = rules.rollout(instance, rule, seed=seed)
        validate(run.log.events(), instance)
        again = rules.rollout(instance, rule, seed=seed)
        np.testing.assert_array_equal(run.log.rows, again.log.rows)


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_whole_run_takes_the_best_of_the_scores_at_every_step(rule: str) -> None:
    instance = generate.random_cluster(np.random.default_rng(5), 5, 14, gpus=True)
    config = PackingConfig(fragments=True)
    batch, other = PackingBatch.of([instance], config), PackingBatch.of([instance], config)
    rules.play(batch, rule, seed=3)
    for event in batch.log(0).events():
        if event.kind != "bind":
            continue
        actions, scores = rules.scores(rule, other, 0, seed=3)
        while not len(actions):
            other.step([other.wait_action])
            actions, scores = rules.scores(rule, other, 0, seed=3)
        best = {int(a) for a in actions[scores == scores.max()]}
        action = event.node * other.capacity.gpus + (event.slots[0] if event.slots else 0)
        assert action in best
        other.step([action])


def gpu_cluster() -> PackingBatch:
    """Three nodes; a half GPU has gone to node 0, slot 0, and a whole one to node 1; another half is at hand."""
    nodes = Nodes(
        np.array([[64000, 100], [96000, 100], [96000, 100]]), gpus=np.array([2, 4, 2]), models=("A", "A", "A")
    )
    pods = Pods(
        np.array([[8000, 1], [16000, 1], [12800, 1]]),
        gpus=np.array([1, 1, 1]),
        gpu_milli=np.array([400, 1000, 500]),
        arrival=np.arange(3),
    )
    batch = PackingBatch.of([PackingInstance("hand", nodes, pods)], PackingConfig(fragments=True))
    batch.step([0])
    batch.step([1 * 4])
    return batch


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Left over on node 0: cpu 43.2/128, gpu 1.1/8: 1 - 0.5 * (.3375 + .1375) = .7625. Node 1: 67.2 and 2.5; node 2:
        # 83.2 and 1.5.
        ("best-fit", {0: 76, 1: 58, 2: 58}),
        ("worst-fit", {0: 0.2375, 1: 0.41875, 2: 0.41875}),
        # Products: cpu 12.8/128 times 56, 80, 96 of 128; gpu 0.5/8 times 1.6, 3, 2 of 8.
        ("dot-product", {0: 97, 1: 95, 2: 95}),
        # Node 0 has a GPU in use with 600 left: 100 - 6. Node 1 is used: 50 - 1. Node 2 is empty: 33 - 2.
        ("gpu-packing", {0: 94, 1: 49, 2: 31}),
        # Node 0 holds shares alone, 1.6 GPUs left of 8: 75 + 20. Node 1 only whole ones, 3 left: 15. Node 2 nobody,
        # 2 left: 25 + 18.
        ("gpu-clustering", {0: 95, 1: 15, 2: 43}),
        ("first-fit", {0: 0, 1: 0, 2: 0}),
    ],
)
def test_scores_are_as_by_hand(rule: str, expected: dict[int, float]) -> None:
    batch = gpu_cluster()
    actions, scores = rules.scores(rule, batch)
    got: dict[int, set[float]] = {}
    for action, score in zip(actions.tolist(), scores.tolist(), strict=True):
        got.setdefault(action // batch.capacity.gpus, set()).add(round(score, 9))
    assert got == {n: {value} for n, value in expected.items()}


def fragments(cpu: int, free: list[int], typical: list[tuple[int, int, int, float]]) -> float:
    """FGD's measure once more, from the paper's words: (cpu, gpus, milli, share) of typical pods."""
    total = 0.0
    for need_cpu, need_gpus, milli, share in typical:
        able = need_gpus > 0 and cpu >= need_cpu and sum(f >= milli for f in free) >= need_gpus
        total += share * sum(f for f in free if not able or f < milli)
    return total


def test_fgd_scores_the_fall_of_fragmentation() -> None:
    batch = gpu_cluster()
    instance = batch.instances[0]
    assert instance is not None
    t = instance.typical
    typical = list(zip(t.cpu.tolist(), t.gpus.tolist(), t.gpu_milli.tolist(), t.share.tolist(), strict=True))
    free = [[600, 1000], [0, 1000, 1000, 1000], [1000, 1000]]
    cpu = [56000, 80000, 96000]
    actions, scores = rules.scores("fgd", batch)
    assert len(actions) == 4  # slots 0 and 1 of node 0, one of the equal slots of the others
    for action, score in zip(actions.tolist(), scores.tolist(), strict=True):
        n, g = divmod(action, 4)
        after = list(free[n])
        after[g] -= 500
        fall = fragments(cpu[n], free[n], typical) - fragments(cpu[n] - 12800, after, typical)
        assert score == math.floor(100 / (1 + math.exp(-fall / 1000)))


def test_random_draws_nodes_alike_however_many_slots_they_have() -> None:
    nodes = Nodes(np.array([[10, 10]] * 2), gpus=np.array([8, 1]), models=("A", "A"))
    pods = Pods(np.array([[1, 1]] * 2), gpus=np.array([1, 1]), gpu_milli=np.array([300, 300]), arrival=np.arange(2))
    batch = PackingBatch.of([PackingInstance("two", nodes, pods)])
    batch.step([0])
    drawn = {0: 0, 1: 0, 8: 0}
    for seed in range(2000):
        actions, scores = rules.scores("random", batch, seed=seed * 7919)
        drawn[int(actions[np.argmax(scores)])] += 1
    # Node 0 half the time; there 7 of the 8 GPUs are idle and offered as one.
    assert drawn[8] == pytest.approx(1000, abs=90)
    assert drawn[0] == pytest.approx(1000 / 8, abs=45)


def test_ffd_places_the_large_ones_first_and_names_pods_as_given() -> None:
    nodes = Nodes(np.array([[10, 10]] * 2))
    instance = PackingInstance("ffd", nodes, Pods(np.array([[3, 1], [3, 1], [7, 1], [7, 1]])))
    assert rules.rollout(instance, "first-fit").metrics.placed == (3,)
    run = rules.rollout(instance, "ffd")
    assert run.metrics.placed == (4,)
    assert validate(run.log.events(), instance) == {0: 0, 1: 1, 2: 0, 3: 1}


def test_unknown_and_unprepared_requests_are_refused() -> None:
    instance = generate.priority_matters(2, 2, 1, 0.9, 0)
    with pytest.raises(UnknownNameError, match="best-fit"):
        rules.rollout(instance, "bestfit")
    with pytest.raises(UsageError, match="fragments=True"):
        rules.play(PackingBatch.of([instance]), "fgd")


def test_on_a_twin_the_rules_rank_as_on_the_real_cluster() -> None:
    def mean(rule: str) -> float:
        runs = (rules.rollout(twin.load(s, scale=0.1), rule, PackingConfig(reward=ALLOCATED), seed=s) for s in range(4))
        return float(np.mean([run.metrics.gpu_allocation_pct for run in runs]))

    assert mean("random") < mean("best-fit") < mean("fgd")


@pytest.mark.parametrize(
    ("rule", "published"),
    [("random", 87.47), ("gpu-packing", 92.00), ("best-fit", 93.08), ("fgd", 95.39)],
)
def test_the_published_allocation_is_reproduced(rule: str, published: float, public_data: Path) -> None:
    # Three seeds of ten: benchmarks/gpu_packing.py plays all, where the means lie within 0.2.
    runs = []
    for seed in openb.SEEDS[:3]:
        instance = openb.load("default", seed)
        run = rules.rollout(instance, rule, PackingConfig(reward=ALLOCATED), seed=seed)
        runs.append(run.metrics.gpu_allocation_pct)
        curve = openb.allocation_curve(instance, run.log, [40, 130])
        assert curve[0] == pytest.approx(40.0, abs=0.6)  # so far nearly everybody fits
        assert curve[1] == pytest.approx(run.metrics.gpu_allocation_pct, abs=0.2)
    assert np.mean(runs) == pytest.approx(published, abs=0.8)
