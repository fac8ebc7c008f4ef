"""The dynamics against the independent validator, hand arithmetic and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchgym.envs.api import InvalidActionError, InvalidInstanceError, InvalidScheduleError, UsageError
from dispatchgym.envs.packing import generate
from dispatchgym.envs.packing.batch import PackingBatch, PackingConfig, Reward
from dispatchgym.envs.packing.instance import (
    AntiAffinity,
    Nodes,
    PackingInstance,
    Pods,
    Requirement,
    Spread,
    Taint,
    Toleration,
    Typical,
    Workload,
)
from dispatchgym.envs.packing.log import Event
from dispatchgym.envs.packing.state import Capacity
from dispatchgym.envs.packing.validate import validate

ROOM = Capacity(nodes=6, pods=14, resources=3, gpus=4, workloads=4, terms=4, domains=6, typical=14)
"""One shape for all random clusters: every test runs the same compiled code on the same arrays."""


def made(seed: int, **kinds: bool) -> PackingInstance:
    rng = np.random.default_rng(seed)
    return generate.random_cluster(rng, int(rng.integers(2, 7)), int(rng.integers(3, 15)), **kinds)


def batch_of(instance: PackingInstance, config: PackingConfig | None = None) -> PackingBatch:
    batch = PackingBatch(1, ROOM, config)
    batch.load([0], [instance])
    batch.reset()
    return batch


def is_allowed(events: list[Event], more: Event, instance: PackingInstance) -> bool:
    try:
        validate([*events, more], instance)
    except InvalidScheduleError:
        return False
    return True


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    gpus=st.booleans(),
    departures=st.booleans(),
    evict=st.booleans(),
    moves=st.sampled_from([0, 3]),
)
def test_what_the_kernel_does_the_validator_allows(
    seed: int, gpus: bool, departures: bool, evict: bool, moves: int
) -> None:
    instance = made(seed, gpus=gpus, departures=departures)
    batch = batch_of(instance, PackingConfig(evict=evict, moves=moves, fragments=gpus))
    rng = np.random.default_rng(seed)
    steps = 0
    while not batch.over[0]:
        batch.step([rng.choice(np.flatnonzero(batch.mask[0]))])
        steps += 1
        assert steps < 2000, "the episode does not end"
        assert (batch.cluster.free >= 0).all()
        assert (batch.cluster.gpu_free >= 0).all()
        assert (batch.cluster.node["room"] >= 0).all()
    events = batch.log(0).events()
    runs = validate(events, instance)
    assert runs == {p: n for p, n in enumerate(batch.cluster.pod["host"][0].tolist()) if n >= 0}
    metrics = batch.metrics(0)
    kinds = [event.kind for event in events]
    assert (metrics.moves, metrics.evictions) == (kinds.count("move"), kinds.count("evict"))
    assert sum(metrics.placed) + metrics.pending == instance.num_pods
    used = sum(int(instance.pods.gpus[p] * instance.pods.gpu_milli[p]) for p in runs)
    assert batch.cluster.env["gpu_used"][0] == used
    share = [sum(int(instance.pods.request[p, r]) for p in runs) for r in range(3)]
    np.testing.assert_allclose(metrics.utilisation, share / np.maximum(instance.nodes.capacity.sum(axis=0), 1))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), gpus=st.booleans(), departures=st.booleans())
def test_the_mask_offers_exactly_what_the_validator_allows(seed: int, gpus: bool, departures: bool) -> None:
    instance = made(seed, gpus=gpus, departures=departures)
    batch = batch_of(instance)
    rng = np.random.default_rng(seed)
    while not batch.over[0]:
        events, p = batch.log(0).events(), int(batch.cluster.env["hand"][0])
        now, need = int(batch.cluster.env["now"][0]), int(instance.pods.gpus[p])
        offered = {a // ROOM.gpus for a in np.flatnonzero(batch.mask[0]) if a != batch.wait_action}
        allowed = {
            n
            for n in range(instance.num_nodes)
            if any(
                is_allowed(events, Event(now, "bind", p, n, slots), instance)
                for slots in itertools.combinations(range(int(instance.nodes.gpus[n])), need)
            )
        }
        assert offered == allowed
        batch.step([rng.choice(np.flatnonzero(batch.mask[0]))])


def victims_by_hand(instance: PackingInstance, events: list[Event], p: int, n: int, now: int) -> set[int] | None:
    """kube-scheduler's rule, written once more: all lower ones out, then back in by importance."""
    runs = validate(events, instance)
    slots = {e.pod: e.slots for e in events if e.kind == "bind"}
    since = {e.pod: e.time for e in events if e.kind == "bind"}
    priority = instance.pods.priority
    lower = [q for q, place in runs.items() if place == n and priority[q] < priority[p]]
    lower.sort(key=lambda q: (-priority[q], since[q], q))

    def fits_without(out: set[int]) -> bool:
        now_events = [*events, *(Event(now, "evict", q, n, slots[q], p) for q in out)]
        choices = itertools.combinations(range(int(instance.nodes.gpus[n])), int(instance.pods.gpus[p]))
        return any(is_allowed(now_events, Event(now, "bind", p, n, c), instance) for c in choices)

    out = set(lower)
    if not lower or fits_without(set()) or not fits_without(out):
        return None
    for q in lower:
        if fits_without(out - {q}):
            out -= {q}
    return out


def test_evictions_follow_the_victim_rule() -> None:
    chosen = 0  # decisions where some but not all pods of lower priority had to go
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gpus, rules = seed % 2 == 0, seed % 3 == 0
        instance = generate.random_cluster(rng, 2, 14, gpus=gpus, rules=rules, departures=True, priorities=6)
        batch = batch_of(instance, PackingConfig(evict=True))
        while not batch.over[0]:
            p, now = int(batch.cluster.env["hand"][0]), int(batch.cluster.env["now"][0])
            events = batch.log(0).events()
            first = ROOM.nodes * ROOM.gpus
            offered = {int(a) - first for a in np.flatnonzero(batch.mask[0]) if first <= a < first + ROOM.nodes}
            expected = {n: victims_by_hand(instance, events, p, n, now) for n in range(instance.num_nodes)}
            assert offered == {n for n, out in expected.items() if out is not None}
            action = int(rng.choice(np.flatnonzero(batch.mask[0])))
            if offered and rng.random() < 0.7:
                action = first + int(rng.choice(sorted(offered)))
            runs = batch.cluster.pod["host"][0]
            lower = {
                n: int(((runs[:14] == n) & (instance.pods.priority < instance.pods.priority[p])).sum()) for n in offered
            }
            batch.step([action])
            if first <= action < first + ROOM.nodes:
                out = {e.pod for e in batch.log(0).events()[len(events) :] if e.kind == "evict"}
                assert out == expected[action - first]
                chosen += len(out) < lower[action - first]
    assert chosen > 30


@pytest.mark.parametrize("seed", range(6))
def test_some_order_of_decisions_reaches_the_most_that_can_be_placed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    request, capacity = rng.integers(100, 900, (5, 2)), rng.integers(700, 1400, (3, 2))
    instance = PackingInstance("tiny", Nodes(capacity), Pods(request))
    best = 0
    for hosts in itertools.product(range(-1, 3), repeat=5):
        used = np.zeros((3, 2), int)
        for p, n in enumerate(hosts):
            if n >= 0:
                used[n] += request[p]
        if (used <= capacity).all():
            best = max(best, sum(n >= 0 for n in hosts))
    batch = PackingBatch.of([instance])

    def reached(path: list[int]) -> int:
        batch.reset()
        for action in path:
            batch.step([action])
        if batch.over[0]:
            return batch.metrics(0).placed[0]
        legal = np.flatnonzero(batch.mask[0]).tolist()
        return max(reached([*path, action]) for action in legal)

    assert reached([]) == best


# --- hand-computed filters ---


def plain(capacity: Any, request: Any, **columns: Any) -> PackingInstance:
    workloads = columns.pop("workloads", (Workload(),))
    nodes = {key: columns.pop(key) for key in ("labels", "taints", "models", "max_pods") if key in columns}
    node_gpus, closed = columns.pop("node_gpus", ()), columns.pop("closed", ())
    return PackingInstance(
        "plain",
        Nodes(np.array(capacity), gpus=np.array(node_gpus), unschedulable=np.array(closed), **nodes),
        Pods(np.array(request), **{key: np.array(value) for key, value in columns.items()}),
        workloads,
    )


def offers(batch: PackingBatch) -> list[str]:
    return [batch.meaning(int(a)) for a in np.flatnonzero(batch.mask[0])]


def nodes_offered(instance: PackingInstance, *bound: int) -> list[int]:
    """Bind the first pods to these nodes; where may the next one go?"""
    batch = PackingBatch.of([instance])
    for n in bound:
        batch.step([n * batch.capacity.gpus])
    return [a // batch.capacity.gpus for a in np.flatnonzero(batch.mask[0]) if a != batch.wait_action]


def test_a_pod_fits_where_every_resource_is_left() -> None:
    instance = plain([[1000, 500], [500, 1000], [1000, 1000]], [[600, 400], [600, 600]])
    assert nodes_offered(instance) == [0, 2]
    assert nodes_offered(instance, 2) == []
    assert nodes_offered(instance, 0) == [2]


def test_a_full_and_a_closed_node_take_nobody() -> None:
    full = plain([[9, 9], [9, 9]], [[1, 1]] * 2, max_pods=np.array([1, 5]))
    assert nodes_offered(full, 0) == [1]
    assert nodes_offered(plain([[9, 9], [9, 9]], [[1, 1]], closed=[True, False])) == [1]


def test_taints_keep_away_whoever_does_not_tolerate_them() -> None:
    taints = ((Taint("a", "1"),), (Taint("a", "2", "NoExecute"),), (Taint("b", "", "PreferNoSchedule"),), ())
    for tolerations, expected in (
        ((), [2, 3]),
        ((Toleration("a", "1"),), [0, 2, 3]),
        ((Toleration("a"),), [0, 1, 2, 3]),
        ((Toleration("a", effect="NoExecute"),), [1, 2, 3]),
        ((Toleration(),), [0, 1, 2, 3]),
        ((Toleration("b"),), [2, 3]),
    ):
        workloads = (Workload(tolerations=tolerations),)
        assert nodes_offered(plain([[9, 9]] * 4, [[1, 1]], taints=taints, workloads=workloads)) == expected


def test_selector_and_affinity_look_at_the_labels() -> None:
    labels = ({"zone": "a", "disk": "ssd"}, {"zone": "b", "disk": "hdd"}, {"zone": "b"})
    either = ((Requirement("zone", "In", ("a",)),), (Requirement("disk", "DoesNotExist"),))
    both = ((Requirement("zone", "NotIn", ("a",)), Requirement("disk", "Exists")),)
    for workload, expected in (
        (Workload(selector=(("zone", "b"),)), [1, 2]),
        (Workload(affinity=either), [0, 2]),
        (Workload(affinity=both), [1]),
        (Workload(selector=(("disk", "ssd"),), affinity=both), []),
    ):
        assert nodes_offered(plain([[9, 9]] * 3, [[1, 1]], labels=labels, workloads=(workload,))) == expected


def test_anti_affinity_works_both_ways_and_by_domain() -> None:
    labels = ({"zone": "a"}, {"zone": "a"}, {"zone": "b"}, {})
    web, lonely = (("app", "web"),), (("app", "lonely"),)
    workloads = (
        Workload("web", labels=web),
        Workload("lonely", labels=lonely, anti_affinity=(AntiAffinity("zone", web),)),
    )
    first_web = plain([[9, 9]] * 4, [[1, 1]] * 2, labels=labels, workloads=workloads, workload=[0, 1])
    assert nodes_offered(first_web, 0) == [2, 3]
    assert nodes_offered(first_web, 3) == [0, 1, 2, 3]  # a node without the label is in no zone
    first_lonely = plain([[9, 9]] * 4, [[1, 1]] * 2, labels=labels, workloads=workloads, workload=[1, 0])
    assert nodes_offered(first_lonely, 2) == [0, 1, 3]


def test_topology_spread_holds_the_skew() -> None:
    labels = ({"zone": "a"}, {"zone": "b"}, {"zone": "b"}, {})
    app = (("app", "x"),)
    even = Workload(labels=app, spread=(Spread("zone", app, 1),))
    instance = plain([[9, 9]] * 4, [[1, 1]] * 4, labels=labels, workloads=(even,))
    assert nodes_offered(instance) == [0, 1, 2]
    assert nodes_offered(instance, 1) == [0]
    assert nodes_offered(instance, 1, 0) == [0, 1, 2]
    loose = Workload(labels=app, spread=(Spread("zone", app, 2),))
    assert nodes_offered(plain([[9, 9]] * 4, [[1, 1]] * 4, labels=labels, workloads=(loose,)), 1) == [0, 1, 2]


def test_a_gpu_share_needs_one_slot_and_whole_gpus_need_idle_ones() -> None:
    instance = plain(
        [[9, 9], [9, 9]],
        [[1, 1]] * 4,
        node_gpus=[2, 1],
        models=("A", "B"),
        gpus=[1, 1, 1, 2],
        gpu_milli=[400, 400, 700, 1000],
    )
    batch = PackingBatch.of([instance], PackingConfig(reward=Reward(gpu=1.0)))
    assert offers(batch) == ["bind to node 0, slot 0", "bind to node 1, slot 0", "WAIT"]  # equal GPUs offered once
    assert batch.step([0])[0][0] == pytest.approx(0.4)
    assert offers(batch) == ["bind to node 0, slot 0", "bind to node 0, slot 1", "bind to node 1, slot 0", "WAIT"]
    batch.step([0])
    assert offers(batch) == ["bind to node 0, slot 1", "bind to node 1, slot 0", "WAIT"]  # 200/1000 left on slot 0
    batch.step([1])
    assert batch.over[0]  # nobody has two idle GPUs for the last pod
    assert batch.metrics(0).placed == (3,)
    assert batch.metrics(0).gpu_allocation_pct == pytest.approx(100 * 1.5 / 3)
    only_b = plain([[9, 9], [9, 9]], [[1, 1]], node_gpus=[2, 1], models=("A", "B"), gpus=[1],
                   workloads=(Workload(models=("B", "C")),))  # fmt: skip
    assert nodes_offered(only_b) == [1]


def test_a_pod_that_waits_comes_back_when_somebody_leaves() -> None:
    instance = plain([[10, 10]], [[8, 8], [5, 5], [4, 4]], arrival=[0, 1, 2], lifetime=[10, 5, 5])
    batch = PackingBatch.of([instance])
    batch.step([0])
    assert (batch.cluster.env["now"][0], offers(batch)) == (10, ["bind to node 0, slot 0", "WAIT"])
    assert batch.cluster.env["hand"][0] == 1
    batch.step([0])
    batch.step([0])
    assert batch.over[0]
    assert [(e.time, e.kind, e.pod) for e in batch.log(0).events()] == [
        (0, "bind", 0),
        (10, "depart", 0),
        (10, "bind", 1),
        (10, "bind", 2),
    ]
    assert batch.metrics(0).pending_hours == pytest.approx((9 + 8) / 3600)


def test_a_pod_told_to_wait_is_asked_about_again_after_any_departure() -> None:
    # Pod 1 fits node 1 only and is told to wait; pod 0 leaves node 0, where pod 1 does not fit.
    instance = plain([[4, 4], [9, 9]], [[4, 4], [8, 8]], arrival=[0, 1], lifetime=[5, 9])
    batch = PackingBatch.of([instance])
    batch.step([0])
    assert offers(batch) == ["bind to node 1, slot 0", "WAIT"]
    batch.step([batch.wait_action])
    assert (batch.cluster.env["now"][0], offers(batch)) == (5, ["bind to node 1, slot 0", "WAIT"])


def test_the_queue_serves_priority_first_and_then_order() -> None:
    batch = PackingBatch.of([plain([[9, 9]], [[1, 1]] * 4, priority=[0, 2, 1, 2])])
    order = []
    while not batch.over[0]:
        order.append(int(batch.cluster.env["hand"][0]))
        batch.step([0])
    assert order == [1, 3, 2, 0]


def test_a_move_is_two_decisions_and_staying_costs_nothing() -> None:
    instance = plain([[10, 10], [10, 10]], [[4, 4], [4, 4], [8, 8]], arrival=[0, 1, 2])
    config = PackingConfig(moves=2, reward=Reward(placed=1.0, move=0.25))
    batch = PackingBatch.of([instance], config)
    batch.step([0])
    batch.step([1])
    assert offers(batch) == ["pick up pod 0", "pick up pod 1", "WAIT"]
    pick = int(np.flatnonzero(batch.mask[0])[0])
    batch.step([pick])
    assert offers(batch) == ["bind to node 0, slot 0", "bind to node 1, slot 0"]
    assert batch.step([0])[0][0] == 0.0  # it stays; the budget is used all the same
    batch.step([pick])
    assert batch.step([1])[0][0] == -0.25
    assert offers(batch) == ["bind to node 0, slot 0", "WAIT"]  # no moves left
    assert batch.step([0])[0][0] == 1.0
    assert (batch.metrics(0).placed, batch.metrics(0).moves) == ((3,), 1)
    assert batch.log(0).events()[2] == Event(2, "move", 0, 1, (), 0)
    assert validate(batch.log(0).events(), instance) == {0: 1, 1: 1, 2: 0}


def test_a_move_brings_back_who_waits() -> None:
    instance = plain([[10, 10], [10, 10]], [[4, 4], [4, 4], [8, 8], [1, 1]], arrival=[0, 1, 2, 3])
    batch = PackingBatch.of([instance], PackingConfig(moves=1))
    pick = batch.capacity.nodes * 2
    for action in (0, 1, batch.wait_action, pick, 1):  # pod 2 waits; for pod 3, pod 0 moves to node 1
        batch.step([action])
    assert batch.cluster.env["hand"][0] == 3
    batch.step([1])
    assert (batch.cluster.env["hand"][0], offers(batch)) == (2, ["bind to node 0, slot 0", "WAIT"])


def test_an_eviction_is_paid_for_and_takes_the_placement_back() -> None:
    instance = plain([[10, 10]], [[4, 4], [4, 4], [5, 5]], priority=[0, 0, 1], arrival=[0, 1, 2])
    config = PackingConfig(evict=True, reward=Reward(placed=1.0, tier=4.0, eviction=0.5))
    batch = PackingBatch.of([instance], config)
    assert batch.step([0])[0][0] == 1.0
    batch.step([0])
    assert offers(batch) == ["evict on node 0", "WAIT"]
    assert batch.step([1])[0][0] == 4.0 - 1.0 - 0.5  # the younger pod goes: the older one is put back first
    assert batch.over[0]
    assert batch.metrics(0).placed == (1, 1)
    assert [e.pod for e in batch.log(0).events() if e.kind == "evict"] == [1]


def test_fragmentation_is_as_by_hand() -> None:
    # Two GPUs, one of them 300/1000 free, 8 milli-CPU left; typical pods: a share of 500 (cpu 4), two whole GPUs,
    # no GPU. Free in all 1300. The share can run: the 300 are lost to it. Two GPUs: all lost. No GPU: all lost.
    typical = Typical(
        np.array([4, 1, 1]),
        np.array([1, 2, 0], np.int32),
        np.array([500, 1000, 0], np.int32),
        ((), (), ()),
        np.array([0.5, 0.25, 0.25]),
    )
    nodes = Nodes(np.array([[10, 10]]), gpus=np.array([2]), models=("A",))
    pods = Pods(np.array([[2, 2]]), gpus=np.array([1]), gpu_milli=np.array([700]))
    instance = PackingInstance("hand", nodes, pods, typical=typical)
    batch = PackingBatch.of([instance], PackingConfig(fragments=True))
    assert batch.cluster.env["frag_sum"][0] == pytest.approx(0.25 * 2000)
    batch.step([0])
    assert batch.cluster.env["frag_sum"][0] == pytest.approx(0.5 * 300 + 0.25 * 1300 + 0.25 * 1300)
    assert batch.metrics(0).fragmentation_pct == pytest.approx(100 * 800 / 2000)


def test_illegal_actions_are_refused_and_change_nothing() -> None:
    batch = PackingBatch.of([plain([[10, 10]], [[4, 4]])])
    with pytest.raises(InvalidActionError, match=r"action 1 is not legal now; legal are: 0 \(bind to node 0, slot 0\)"):
        batch.step([1])
    with pytest.raises(InvalidActionError, match="shape"):
        batch.step([0, 0])
    batch.step([0])
    with pytest.raises(UsageError, match="is empty"):
        PackingBatch(1, ROOM).reset()
    with pytest.raises(InvalidInstanceError, match="raise the capacity"):
        PackingBatch(1, ROOM._replace(pods=1)).load([0], [made(0)])


def test_a_batch_does_what_its_members_do_alone() -> None:
    instances = [made(seed, gpus=True) for seed in range(4)]
    config = PackingConfig(evict=True, moves=2, fragments=True)
    whole = PackingBatch(4, ROOM, config)
    whole.load(range(4), instances)
    whole.reset()
    alone = [batch_of(instance, config) for instance in instances]
    rng = np.random.default_rng(0)
    while not whole.over.all():
        actions = [int(rng.choice(np.flatnonzero(m))) if m.any() else 0 for m in whole.mask]
        reward, _ = whole.step(actions)
        for i, one in enumerate(alone):
            assert one.step([actions[i]])[0][0] == reward[i]
            np.testing.assert_array_equal(one.mask[0], whole.mask[i])
