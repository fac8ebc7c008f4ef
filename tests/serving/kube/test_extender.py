"""The extender's answers to payloads as kube-scheduler writes them."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchgym.serving.kube.advisor import PlacementAdvisor
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.convert import node_facts, pod_facts
from dispatchgym.serving.kube.decisions import MOST_KEPT, Decision, Decisions
from dispatchgym.serving.kube.extender import Extender, ExtenderConfig, priorities
from dispatchgym.serving.kube.metrics import ExtenderMetrics
from dispatchgym.serving.kube.quantity import PayloadError
from dispatchgym.serving.kube.wire import ExtenderArgs, ExtenderBindingArgs, ExtenderPreemptionArgs
from dispatchgym.serving.wire import RequestError, read, write
from tests.serving.kube.objects import Json, Says, node, pod

POD = """{"metadata":{"name":"web-5d9c7-x2x8k","generateName":"web-5d9c7-","namespace":"shop",
 "uid":"0f4b1f0e-7f3d-4f53-9f0e-2f6f1f1f1f1f","resourceVersion":"812","creationTimestamp":"2026-11-20T08:00:00Z",
 "labels":{"app":"web","pod-template-hash":"5d9c7"},"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet",
 "name":"web-5d9c7","uid":"a1","controller":true,"blockOwnerDeletion":true}]},
 "spec":{"containers":[{"name":"web","image":"web:1","resources":{"limits":{"memory":"256Mi"},
 "requests":{"cpu":"500m","memory":"256Mi"}},"terminationMessagePath":"/dev/termination-log"}],
 "restartPolicy":"Always","schedulerName":"default-scheduler","priority":0,"enableServiceLinks":true,
 "tolerations":[{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute",
 "tolerationSeconds":300}]},"status":{"phase":"Pending","qosClass":"Burstable"}}"""
BY_NAME = f'{{"Pod":{POD},"Nodes":null,"NodeNames":["a","b"]}}'
WHOLE = (
    f'{{"Pod":{POD},"Nodes":{{"metadata":{{}},"items":[{json.dumps(node("a"))},{json.dumps(node("b"))}]}},'
    '"NodeNames":null}'
)
PREEMPT_BY_UID = (
    f'{{"Pod":{POD},"NodeNameToVictims":null,"NodeNameToMetaVictims":'
    '{"a":{"Pods":[{"UID":"uid-x"}],"NumPDBViolations":1},"b":{"Pods":[],"NumPDBViolations":0}}}'
)


def make(policy: Any, nodes: list[Json], running: list[Json] | None = None, **config: Any) -> Extender:
    state = ClusterState()
    for one in nodes:
        state.put_node(node_facts(one))
    for one in running or []:
        state.put_pod(pod_facts(one))
    binder = config.pop("binder", None)
    journal = config.pop("journal", None)
    advisor = PlacementAdvisor(state, policy, budget_s=600.0)
    return Extender(advisor, Decisions(journal), ExtenderMetrics(state), ExtenderConfig(**config), binder)


SECOND = Says(lambda n: float(n))
TWO = [node("a"), node("b")]


def args(payload: str) -> ExtenderArgs:
    return read(ExtenderArgs, payload.encode())


def test_prioritize_answers_a_host_priority_list_for_names_and_for_whole_nodes() -> None:
    for payload in (BY_NAME, WHOLE):
        answer = make(SECOND, TWO).prioritize(args(payload))
        assert answer == [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 10}]


def test_filter_answers_in_the_form_it_was_asked() -> None:
    named = make(SECOND, TWO).filter(args(BY_NAME))
    assert named == {
        "Nodes": None, "NodeNames": ["a", "b"], "FailedNodes": {}, "FailedAndUnresolvableNodes": {}, "Error": "",
    }  # fmt: skip
    whole = make(SECOND, TWO).filter(args(WHOLE))
    assert whole["NodeNames"] is None
    assert whole["Nodes"]["items"] == TWO  # older schedulers go on with the objects that come back


def test_filter_leaves_to_kube_scheduler_what_it_has_checked_unless_told_to_check_again() -> None:
    full = [pod("x", "4", on="a")]
    tainted = [node("a"), node("b", taints=[{"key": "k", "effect": "NoSchedule"}])]
    assert make(SECOND, tainted, full).filter(args(BY_NAME))["NodeNames"] == ["a", "b"]
    again = make(SECOND, tainted, full, recheck=True).filter(args(BY_NAME))
    assert again["NodeNames"] == []
    assert list(again["FailedNodes"]) == ["a"]
    assert "insufficient cpu" in again["FailedNodes"]["a"]
    assert again["FailedAndUnresolvableNodes"] == {"b": "taint k=:NoSchedule is not tolerated"}


def test_filter_refuses_a_node_without_the_share_of_a_gpu() -> None:
    shared = pod("p", annotations={"alibabacloud.com/gpu-milli": "500"})
    payload = json.dumps({"Pod": shared, "Nodes": None, "NodeNames": ["a", "g"]})
    nodes = [node("a"), node("g", **{"nvidia.com/gpu": "1"})]
    assert make(SECOND, nodes).filter(args(payload))["NodeNames"] == ["g"]


def test_a_node_that_is_not_known_yet_passes_and_scores_lowest() -> None:
    extender = make(SECOND, [node("b")])
    assert extender.filter(args(BY_NAME))["NodeNames"] == ["a", "b"]
    assert extender.prioritize(args(BY_NAME)) == [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 10}]


def test_without_a_watch_the_nodes_are_those_that_are_sent() -> None:
    extender = make(SECOND, [], watches=False)
    assert extender.prioritize(args(WHOLE)) == [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 10}]
    blind = make(SECOND, [])  # with one, only what was seen counts, and that is nothing yet
    assert blind.prioritize(args(WHOLE)) == [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 0}]
    assert blind.advisor.causes == {"unknown nodes": 1}


def test_no_nodes_no_scores() -> None:
    assert make(SECOND, TWO).prioritize(args(f'{{"Pod":{POD},"Nodes":null,"NodeNames":null}}')) == []


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_policy_that_fails_leaves_all_nodes_alike_and_is_counted(value: float | None) -> None:
    def score(n: int) -> float:
        if value is None:
            raise RuntimeError("broken")
        return value

    extender = make(Says(score), TWO)
    assert extender.prioritize(args(BY_NAME)) == [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 0}]
    cause = "error" if value is None else "not a number"
    assert f'decisions_total{{cause="{cause}",source="fallback"}} 1.0' in extender.metrics.text().decode()
    assert not extender.state.placed  # nothing is expected of a choice that was not ours


def test_a_pod_counts_where_it_is_expected_until_its_binding_is_seen() -> None:
    extender = make(SECOND, TWO)
    extender.prioritize(args(BY_NAME))
    assert extender.state.free[:, 0].tolist() == [4000, 3500]


def test_a_dry_run_changes_nothing_and_writes_down_what_happened() -> None:
    journal = io.StringIO()
    extender = make(SECOND, TWO, dry_run=True, recheck=True, journal=journal)
    extender.state.put_pod(pod_facts(pod("x", "4", on="a")))
    assert extender.filter(args(BY_NAME))["NodeNames"] == ["a", "b"]
    assert extender.prioritize(args(BY_NAME)) == [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 0}]
    assert len(extender.state.placed) == 1
    asked = json.loads(POD)
    extender.decisions.saw(pod_facts(asked))
    assert journal.getvalue() == ""  # not bound yet
    asked["spec"]["nodeName"] = "a"
    extender.decisions.saw(pod_facts(asked))
    extender.decisions.saw(pod_facts(asked))
    line = json.loads(journal.getvalue())
    assert (line["would"], line["bound"], line["agrees"], line["dry_run"]) == ("b", "a", False, True)
    counts = extender.decisions.agreement
    assert (counts.decided, counts.bound, counts.agreed, counts.rate) == (1, 1, 0, 0.0)


def test_preempt_keeps_victims_and_with_recheck_only_nodes_where_they_help() -> None:
    asked = read(ExtenderPreemptionArgs, PREEMPT_BY_UID.encode())
    full = [pod("x", "4", on="a"), pod("y", "4", on="b")]
    everything = {
        "a": {"Pods": [{"UID": "uid-x"}], "NumPDBViolations": 1},
        "b": {"Pods": [], "NumPDBViolations": 0},
    }
    assert make(SECOND, TWO, full).preempt(asked) == {"NodeNameToMetaVictims": everything}
    checked = make(SECOND, TWO, full, recheck=True).preempt(asked)
    assert checked == {"NodeNameToMetaVictims": {"a": everything["a"]}}
    whole = {"Pod": json.loads(POD), "NodeNameToVictims": {"a": {"Pods": [full[0]], "NumPDBViolations": 0}}}
    answer = make(SECOND, TWO, full).preempt(read(ExtenderPreemptionArgs, json.dumps(whole).encode()))
    assert answer == {"NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "uid-x"}], "NumPDBViolations": 0}}}


def test_bind_is_off_unless_asked_for() -> None:
    class Notes:
        def __init__(self) -> None:
            self.bound: list[tuple[Json, str]] = []

        def bind(self, pod: Json, node: str) -> None:
            self.bound.append((pod["metadata"], node))

    asked = read(ExtenderBindingArgs, b'{"PodName":"p","PodNamespace":"shop","PodUID":"u","Node":"b"}')
    with pytest.raises(PayloadError, match="binding is off"):
        make(SECOND, TWO).bind(asked)
    with pytest.raises(PayloadError, match="binding is off"):
        make(SECOND, TWO, dry_run=True, binder=Notes()).bind(asked)
    notes = Notes()
    assert make(SECOND, TWO, binder=notes).bind(asked) == {"Error": ""}
    assert notes.bound == [({"name": "p", "namespace": "shop", "uid": "u"}, "b")]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_priorities_keep_the_order_and_name_one_best(values: list[float]) -> None:
    scores = np.array(values)
    given_to = priorities(scores)
    assert given_to.min() >= 0
    assert (given_to == 10).sum() == 1
    assert given_to[int(np.argmax(scores))] == 10
    order = np.argsort(scores, kind="stable")
    others = order[order != int(np.argmax(scores))]
    assert (np.diff(given_to[others]) >= 0).all()


def test_priorities_spread_over_the_scale() -> None:
    assert priorities(np.array([0.0, 5.0, 10.0])).tolist() == [0, 4, 10]
    assert priorities(np.array([7.0, 7.0, 7.0])).tolist() == [10, 9, 9]


def test_decisions_forget_the_oldest() -> None:
    decisions = Decisions()
    for i in range(MOST_KEPT + 3):
        decisions.add(
            Decision("t", f"shop/p{i}", f"u{i}", "rule", False, "policy", "", "a", "b", 2, False, 0.001)
        )  # fmt: skip
    assert decisions.agreement.pending == MOST_KEPT
    assert decisions.agreement.unseen == 3
    assert decisions.latest(f"u{MOST_KEPT + 2}") is not None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"Pod":null}', b'{"NodeNames":[]}', b'{"Pod":{},"NodeNames":"a"}', b"\xff"]
)
def test_what_is_not_the_protocol_is_refused_without_repeating_it(body: bytes) -> None:
    with pytest.raises(RequestError, match="ExtenderArgs"):
        read(ExtenderArgs, body)


def test_an_answer_never_holds_what_json_has_not() -> None:
    with pytest.raises(RequestError, match="not finite"):
        write({"score": float("nan")})
    assert write({"name": "\ud800"}) == b'{"name":"\\ud800"}'
