"""The arrays that policies read follow the cluster, and agree with the packing world itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchgym.envs.packing import fitting
from dispatchgym.envs.packing.batch import PackingBatch
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.convert import node_facts, pod_facts
from dispatchgym.serving.kube.mirror import Mirror
from dispatchgym.solvers.packing import kube_scheduler, rules
from tests.serving.kube.objects import Json, node, pod
from tests.serving.kube.test_cluster_state import apply, histories


def arrays(mirror: Mirror, batch: PackingBatch) -> dict[str, Any]:
    """What policies can read, by names instead of rows."""
    cluster, problem = batch.cluster, batch.problem
    names = mirror.state.names
    uid = {row: key for key, row in mirror._rows.items()}
    found: dict[str, Any] = {
        "free": cluster.free[0, : len(names)].tolist(),
        "gpus": cluster.gpu_free[0, : len(names)].tolist(),
        "room": cluster.node["room"][0, : len(names)].tolist(),
        "queued": int(cluster.env["queued"][0]),
        "aside": int(cluster.env["aside"][0]),
        "running": int(cluster.env["running"][0]),
        "asked": int(cluster.env["gpu_asked"][0]),
        "used": int(cluster.env["gpu_used"][0]),
        "fragments": round(float(cluster.env["frag_sum"][0]), 6),
        "tiers": int(problem.size["num_tiers"][0]) > 0,
        "chains": {},
        "pods": {},
    }
    for n, name in enumerate(names):
        q = int(cluster.node["head"][0, n])
        chain = set()
        while q >= 0:
            chain.add(uid[q])
            q = int(cluster.pod["after"][0, q])
        found["chains"][name] = chain
    for row, key in uid.items():
        one = problem.pod[0, row]
        found["pods"][key] = (
            problem.request[0, row].tolist(), int(one["priority"]), int(one["gpus"]), int(one["milli"]),
            int(cluster.pod["status"][0, row]),
        )  # fmt: skip
        example = int(problem.classes["example"][0, one["kind"]])
        assert (problem.request[0, example] == problem.request[0, row]).all()
        assert problem.pod[0, example]["workload"] == one["workload"]
    return found


@settings(max_examples=40)
@given(history=histories(), data=st.data())
def test_it_follows_events_to_where_a_fresh_start_leads(history: Any, data: st.DataObject) -> None:
    events, _, _ = history
    state = ClusterState(lambda: 0.0)
    mirror = Mirror(state)
    asked = pod_facts(pod("asked"))
    for event in [("node", node("n9", **{"nvidia.com/gpu": "2"})), *events]:
        apply(state, event)
        if data.draw(st.booleans()):
            choice = data.draw(st.sampled_from([asked, *(one.pod for one in state.placed.values())]))
            mirror.ask(choice, state.names)
    batch = mirror.ask(asked, state.names)
    fresh = Mirror(state)
    expected = fresh.ask(asked, state.names)
    assert batch is not None
    assert expected is not None
    assert arrays(mirror, batch) == arrays(fresh, expected)
    assert mirror.batch is not None
    actions, scores = kube_scheduler.scores(batch)
    same, again = kube_scheduler.scores(expected)
    gpus = batch.capacity.gpus, expected.capacity.gpus
    assert [(a // gpus[0], s) for a, s in zip(actions.tolist(), scores.tolist(), strict=True)] == [
        (a // gpus[1], s) for a, s in zip(same.tolist(), again.tolist(), strict=True)
    ]


def as_objects(instance: PackingInstance) -> tuple[list[Json], list[Json]]:
    nodes = [
        node(f"n{n:03d}", f"{row[0]}m", f"{row[1]}Mi", str(instance.nodes.max_pods[n]))
        for n, row in enumerate(instance.nodes.capacity.tolist())
    ]
    pods = [
        pod(
            f"p{p}",
            f"{row[0]}m",
            f"{row[1]}Mi",
            priority=int(instance.pods.priority[p]),
            owner=f"rs-{instance.pods.workload[p]}",
        )
        for p, row in enumerate(instance.pods.request.tolist())
    ]
    return nodes, pods


@pytest.mark.parametrize("rule", ["kube-scheduler", "best-fit", "worst-fit", "dot-product", "first-fit"])
def test_a_rule_scores_a_live_cluster_as_it_scores_the_environment(rule: str) -> None:
    instance = priority_matters(8, 4, 2, 0.9, 3)
    nodes, pods = as_objects(instance)
    state = ClusterState()
    for one in nodes:
        state.put_node(node_facts(one))
    mirror = Mirror(state)
    env = PackingBatch.of([instance])
    while not env.over[0]:
        hand = int(env.cluster.env["hand"][0])
        facts = pod_facts(pods[hand])
        ask = kube_scheduler.scores if rule == "kube-scheduler" else lambda b: rules.scores(rule, b)
        actions, expected = ask(env)
        width = env.capacity.gpus
        batch = mirror.ask(facts, [f"n{a // width:03d}" for a in actions])
        assert batch is not None
        found, scores = ask(batch)
        assert (found // batch.capacity.gpus).tolist() == (actions // width).tolist()
        assert scores.tolist() == expected.tolist()
        assert all(
            fitting.fits_now(batch.problem, batch.cluster, 0, int(batch.cluster.env["hand"][0]), a // width)
            for a in actions.tolist()
        )
        best = int(actions[np.argmax(expected)])
        env.step([best])
        state.put_pod(replace(facts, node=f"n{best // width:03d}"))


def test_a_pod_that_runs_is_asked_about_as_if_it_did_not() -> None:
    state = ClusterState()
    for name in ("a", "b"):
        state.put_node(node_facts(node(name)))
    running = pod_facts(pod("p", "1", on="a"))
    state.put_pod(running)
    mirror = Mirror(state)
    batch = mirror.ask(running, ["a", "b"])
    assert batch is not None
    assert batch.cluster.free[0, :2, 0].tolist() == [4000, 4000]
    batch = mirror.ask(pod_facts(pod("q")), ["a", "b"])
    assert batch is not None
    assert batch.cluster.free[0, :2, 0].tolist() == [3000, 4000]


def test_gpu_slots_are_offered_once_for_equally_free_gpus() -> None:
    state = ClusterState()
    state.put_node(node_facts(node("a", **{"nvidia.com/gpu": "4"})))
    notes = {"alibabacloud.com/gpu-milli": "400", "alibabacloud.com/gpu-index": "1"}
    state.put_pod(pod_facts(pod("x", on="a", annotations=notes)))
    mirror = Mirror(state, "gpus", fragments=True)

    def slots(annotations: Json, **requests: str) -> list[int]:
        batch = mirror.ask(pod_facts(pod("p", annotations=annotations, requests=requests)), ["a"])
        if batch is None:
            return []
        batch.observe()
        return [a for a in np.flatnonzero(batch.mask[0]).tolist() if a != batch.wait_action]

    assert slots({"alibabacloud.com/gpu-milli": "300"}) == [0, 1]
    assert slots({"alibabacloud.com/gpu-milli": "700"}) == [0]
    assert slots({}, **{"nvidia.com/gpu": "3"}) == [0]
    assert slots({}, **{"nvidia.com/gpu": "4"}) == []


def test_a_class_keeps_an_example_that_is_one_of_its_own() -> None:
    state = ClusterState()
    state.put_node(node_facts(node("a")))
    asked, mirror = pod_facts(pod("asked", "10m")), Mirror(state)
    mirror.ask(asked, ["a"])
    for name in ("x", "y", "z"):
        state.put_pod(pod_facts(pod(name, "300m", on="a", owner="rs")))
    mirror.ask(asked, ["a"])
    state.drop_pod("uid-x")
    state.put_pod(pod_facts(pod("w", "700m", on="a", owner="other")))  # takes the row that x has left
    batch = mirror.ask(asked, ["a"])
    assert batch is not None
    arrays(mirror, batch)
    rows = [mirror._rows[f"uid-{name}"] for name in ("y", "z")]
    kinds = batch.problem.pod["kind"][0, rows]
    assert kinds[0] == kinds[1]
    assert batch.problem.classes["example"][0, kinds[0]] in rows


def test_nothing_is_offered_by_an_empty_cluster() -> None:
    mirror = Mirror(ClusterState())
    assert mirror.ask(pod_facts(pod("p")), ["a"]) is None
