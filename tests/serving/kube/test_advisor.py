"""Advice: the policy's, or the fallback rule's with the reason counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.architecture import EncoderConfig, PolicyConfig, weight_shapes
from dispatchgym.agents.numpy_network import NumpyNetwork
from dispatchgym.envs.api import UnknownNameError
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.shortlist import SPECS, ShortlistConfig, Shortlists, ShortName
from dispatchgym.serving.kube.advisor import PlacementAdvisor, least_allocated
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.convert import node_facts, pod_facts
from dispatchgym.serving.kube.policies import NetworkPolicy, RulePolicy, load_policy
from tests.serving.kube.objects import Says, node, pod
from tests.serving.kube.test_mirror import as_objects

LONG_S = 600.0
"""A budget that only a policy that hangs exceeds, even where everything has to be compiled first."""


@pytest.fixture
def state() -> ClusterState:
    state = ClusterState()
    for name, cpu in (("a", "4"), ("b", "8"), ("c", "2")):
        state.put_node(node_facts(node(name, cpu)))
    state.put_pod(pod_facts(pod("x", "1500m", on="c")))
    return state


def advise(state: ClusterState, policy: Any, budget_s: float = LONG_S) -> Iterator[Any]:
    advisor = PlacementAdvisor(state, policy, budget_s=budget_s)
    yield advisor
    advisor.close()


def test_the_policy_ranks_the_nodes_that_fit(state: ClusterState) -> None:
    for advisor in advise(state, Says(lambda n: [1.0, 3.0, 9.0][n])):
        advice = advisor.advise(pod_facts(pod("p", "1")))
        assert (advice.nodes, advice.source, advice.cause) == (("a", "b"), "policy", "")
        assert (advice.best, advice.runner_up) == ("b", "a")
        assert advice.failed["c"].filter == "NodeResourcesFit"
        assert dict(advisor.decisions) == {"policy": 1}


def test_nobody_scores_where_nothing_fits(state: ClusterState) -> None:
    for advisor in advise(state, Says(lambda n: 0.0)):
        advice = advisor.advise(pod_facts(pod("p", "100")))
        assert (advice.best, advice.runner_up, advice.source, advice.cause) == (None, None, "none", "nothing fits")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_replaced_by_the_fallback(state: ClusterState, value: float) -> None:
    for advisor in advise(state, Says(lambda n: value if n == 1 else 1.0)):
        advice = advisor.advise(pod_facts(pod("p", "1")))
        assert (advice.source, advice.cause) == ("fallback", "not a number")
        # With the pod, a keeps 3/4 of its CPU and b 7/8; both 7/8 of their memory.
        assert advice.scores.tolist() == [81.25, 87.5]
        assert advisor.causes["not a number"] == 1


def test_a_policy_that_raises_is_replaced_and_asked_again(state: ClusterState, caplog: Any) -> None:
    calls = []

    def score(n: int) -> float:
        calls.append(n)
        if len(calls) == 1:
            raise RuntimeError("broken network")
        return 1.0

    for advisor in advise(state, Says(score)):
        assert advisor.advise(pod_facts(pod("p"))).cause == "error"
        assert "broken network" in caplog.text
        assert advisor.advise(pod_facts(pod("p"))).source == "policy"


def test_a_late_policy_holds_up_nobody(state: ClusterState) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def score(n: int) -> float:
        begun.set()
        assert go_on.wait(LONG_S)
        return 1.0

    for advisor in advise(state, Says(score), budget_s=0.01):
        assert advisor.advise(pod_facts(pod("p"))).cause == "late"
        assert begun.wait(LONG_S)
        assert advisor.advise(pod_facts(pod("q"))).cause == "busy"  # not even asked
        assert advisor.causes == {"late": 1, "busy": 1}
        go_on.set()
        assert advisor._running is not None
        advisor._running.result(LONG_S)
        advisor.budget_s = LONG_S
        assert advisor.advise(pod_facts(pod("r"))).source == "policy"


def test_a_node_that_the_policy_was_not_offered_comes_last(state: ClusterState) -> None:
    for advisor in advise(state, Says(lambda n: -5.0 * n)):
        advice = advisor.score(pod_facts(pod("p")), ["unknown", "b", "a"])
        assert advice.ranking == ["a", "b", "unknown"]


def test_the_fallback_counts_what_is_free_with_the_pod(state: ClusterState) -> None:
    scores = least_allocated(state, pod_facts(pod("p", "500m", "4Gi")), ["a", "c", "unknown"])
    # a: (3.5/4 + 4/8)/2; c: nothing of 2 cores, 3 of 8 GiB (x holds 1).
    np.testing.assert_allclose(scores, [68.75, 18.75, 0.0])


def network(graph: ShortName) -> NetworkPolicy:
    """A policy of random weights."""
    spec = SPECS[graph]
    config = PolicyConfig(EncoderConfig(width=8, layers=1, heads=2, hubs=False, rivals=()), rule=None)
    rng = np.random.default_rng(0)
    shapes = weight_shapes(spec, config, has_wait=False)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {name: np.abs(value) + 1.0 for name, value in weights.items() if ".scale_" in name}
    return NetworkPolicy("bundle:test", NumpyNetwork(spec, config, weights), ShortlistConfig())


@pytest.mark.parametrize("graph", ["repack", "bindings"])
def test_a_network_scores_a_live_cluster_as_it_scores_the_environment(graph: ShortName) -> None:
    instance = priority_matters(8, 4, 2, 0.7, 1)
    nodes, pods = as_objects(instance)
    state = ClusterState()
    state.replace([node_facts(n) for n in nodes], [])
    policy = network(graph)
    lists = Shortlists.of([instance], graph, ShortlistConfig(moves=0, evict=False))
    lists.begin()
    decided = 0
    for advisor in advise(state, policy):
        while not lists.batch.over[0] and decided < 12:
            seen = lists.observe()
            logits = policy.runtime.logits(seen)[0]
            width = lists.batch.capacity.gpus
            hand = int(lists.batch.cluster.env["hand"][0])
            for p in range(int(lists.batch.cluster.env["next_pod"][0])):
                host = int(lists.batch.cluster.pod["host"][0, p])
                state.put_pod(replace(pod_facts(pods[p]), node=f"n{host:03d}" if host >= 0 else ""))
            advice = advisor.advise(pod_facts(pods[hand]))
            assert advice.source == "policy"
            assert not advice.waits
            listed = {f"n{a // width:03d}": x for a, x in zip(seen.action.tolist(), logits.tolist(), strict=True)}
            found = dict(zip(advice.nodes, advice.scores.tolist(), strict=True))
            for name, logit in listed.items():
                assert found[name] == pytest.approx(logit, rel=1e-4, abs=1e-4)
            assert advice.best == max(listed, key=lambda name: listed[name])
            lists.step(seen.action[[logits.argmax()]].astype(np.int64))
            decided += 1
    assert decided > 5


def test_a_network_chooses_between_gpus_that_are_shared() -> None:
    state = ClusterState()
    for name in ("g", "h"):
        state.put_node(node_facts(node(name, **{"nvidia.com/gpu": "2"})))
    share = {"alibabacloud.com/gpu-milli": "400"}
    state.put_pod(pod_facts(pod("x", on="g", annotations=share)))
    for advisor in advise(state, network("bindings")):
        advice = advisor.advise(pod_facts(pod("p", annotations=share)))
        assert advice.source == "policy"
        assert set(advice.nodes) == {"g", "h"}
        assert advice.scores[0] != advice.scores[1]


@pytest.mark.parametrize("name", bundles.shipped("packing"))
def test_a_shipped_bundle_advises(name: str) -> None:
    state = ClusterState()
    for node_name, cpu in (("a", "4"), ("b", "8"), ("c", "1")):
        state.put_node(node_facts(node(node_name, cpu, **{"nvidia.com/gpu": "2"})))
    for advisor in advise(state, load_policy(f"bundle:{name}")):
        for asked in (pod("p", "2"), pod("q", "2", annotations={"alibabacloud.com/gpu-milli": "500"})):
            advice = advisor.advise(pod_facts(asked))
            assert (advice.source, set(advice.nodes)) == ("policy", {"a", "b"})
            assert advice.scores[0] != advice.scores[1]


def test_rules_are_known_by_name() -> None:
    assert load_policy("fgd").fragments
    assert not load_policy("most-allocated").fragments
    with pytest.raises(UnknownNameError, match="best-fit"):
        load_policy("best-fitt")
    with pytest.raises(UnknownNameError, match="bundle"):
        load_policy("bundle:nowhere")


def test_compare_asks_each_rule_about_the_same_cluster(state: ClusterState) -> None:
    for advisor in advise(state, RulePolicy("best-fit")):
        rules = [RulePolicy(name) for name in ("best-fit", "worst-fit", "kube-scheduler", "fgd")]
        found = advisor.compare(pod_facts(pod("p", "1")), ["a", "b"], rules)
        assert set(found) == {"best-fit", "worst-fit", "kube-scheduler"}  # no fragmentation is kept for fgd
        assert found["best-fit"].argmax() == 0
        assert found["worst-fit"].argmax() == 1
