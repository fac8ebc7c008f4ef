"""high-node-utilization by hand, and its promises on random clusters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing import generate
from dispatchgym.envs.packing.instance import AntiAffinity, Nodes, PackingInstance, Pods, Workload
from dispatchgym.envs.packing.log import Event
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import rules
from dispatchgym.solvers.packing.high_node_utilization import Thresholds, compact
from dispatchgym.solvers.packing.plan import placed_by_priority

CPU = Thresholds(cpu=20, memory=100, pods=100)


def cluster(*asked: int, nodes: int = 4, **columns: np.ndarray) -> PackingInstance:
    """Nodes of 100 each; pods that ask for as much memory as CPU."""
    return PackingInstance(
        "hand", Nodes(np.full((nodes, 2), 100)), Pods(np.repeat(np.array(asked), 2).reshape(-1, 2), **columns)
    )


def test_the_least_used_node_goes_first_onto_the_fullest_that_fits() -> None:
    instance = cluster(80, 50, 15, 4, 6)
    # Use 80, 50, 15 and 10: nodes 3 and 2 are sources, 3 first. Both its pods fit beside 80: 84, then 90. 15 does not.
    done = compact(instance, {0: 0, 1: 1, 2: 2, 3: 3, 4: 3}, CPU)
    assert done.steps == ((3, 3, 0), (4, 3, 0), (2, 2, 1))
    assert done.emptied == (2, 3)
    assert done.plan.moved == (2, 3, 4)
    assert (done.plan.evicted, done.plan.bound) == ((), ())


def test_pods_of_low_priority_go_first_and_what_fits_nowhere_stays() -> None:
    instance = cluster(90, 8, 8, nodes=2, priority=np.array([0, 2, 1]))
    done = compact(instance, {0: 0, 1: 1, 2: 1}, CPU)
    assert done.steps == ((2, 1, 0),)
    assert done.emptied == ()


def test_every_threshold_counts() -> None:
    instance = cluster(50, 15, nodes=2)
    now = {0: 0, 1: 1}
    assert compact(instance, now).steps == ((1, 1, 0),)  # 1 of 110 pods is below 20 %
    assert compact(instance, now, Thresholds(memory=14)).steps == ()
    assert compact(instance, now, Thresholds(memory=15)).steps == ((1, 1, 0),)


def test_nothing_happens_without_source_or_target() -> None:
    instance = cluster(10, 10, nodes=2)
    now = {0: 0, 1: 1}
    assert compact(instance, now).steps == ()  # all are hardly used
    assert compact(instance, now, Thresholds(cpu=5)).steps == ()  # none is


def test_closed_nodes_and_anti_affinity_are_no_targets() -> None:
    app = (("app", "x"),)
    instance = PackingInstance(
        "rules",
        Nodes(
            np.full((4, 2), 100),
            labels=({"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}),
        ),
        Pods(np.array([[60, 60], [40, 40], [5, 5]]), workload=np.array([0, 1, 0])),
        (Workload("x", labels=app, anti_affinity=(AntiAffinity("host", app),)), Workload("y")),
    )
    done = compact(instance, {0: 0, 1: 1, 2: 2}, CPU)
    assert done.steps == ((2, 2, 1),)  # 0 is fuller but holds an x


def test_random_clusters_stay_valid_and_no_node_becomes_used() -> None:
    steps = 0
    for seed in range(40):
        instance = generate.random_cluster(np.random.default_rng(seed), 8, 14)
        workloads = tuple(replace(w, spread=()) for w in instance.workloads)
        instance = PackingInstance(instance.name, instance.nodes, instance.pods, workloads, instance.resources)
        log = rules.rollout(instance, "worst-fit").log.events()
        now = validate(log, instance)
        done = compact(instance, now, Thresholds(40, 40, 100))
        time = max(event.time for event in log)
        assert validate([*log, *done.events(time)], instance) == dict(done.plan.then)
        assert placed_by_priority(instance, done.plan.then) == placed_by_priority(instance, now)
        assert set(done.plan.then.values()) == set(now.values()) - set(done.emptied)
        steps += len(done.steps)
    assert steps > 20


def test_steps_are_log_entries() -> None:
    done = compact(cluster(50, 15, nodes=2), {0: 0, 1: 1}, CPU)
    assert done.events(7) == [Event(7, "move", 1, 0, (), 1)]


def test_thresholds_are_percentages() -> None:
    with pytest.raises(UsageError, match="threshold memory is 120"):
        Thresholds(memory=120)
