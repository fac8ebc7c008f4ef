"""The filters, beside a slow reading of the Kubernetes documentation over the raw objects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.convert import node_facts, pod_facts
from dispatchgym.serving.kube.filters import Filters
from tests.serving.kube.objects import Json, anti_affinity, clusters, node, pod, pods

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def state_of(nodes: list[Json], running: list[Json]) -> ClusterState:
    state = ClusterState()
    for one in nodes:
        state.put_node(node_facts(one))
    for one in running:
        state.put_pod(pod_facts(one))
    return state


def failed(nodes: list[Json], running: list[Json], asked: Json, **options: Any) -> dict[str, str]:
    found = Filters(state_of(nodes, running)).check(pod_facts(asked), **options)
    return {name: failure.filter for name, failure in found.failed.items()}


# --- by hand ---


def test_resources_count_pods_and_exact_bytes() -> None:
    nodes = [node("a", "1", "1Gi"), node("b", "4", "8Gi", "1")]
    on = [pod("x", "500m", "1023Mi", "a"), pod("y", "1", "1Gi", "b")]
    found = Filters(state_of(nodes, on)).check(pod_facts(pod("p", "500m", "1025Ki")))
    assert found.failed["a"].reason == f"insufficient memory (asks {1025 * 1024}, free {1024 * 1024})"
    assert found.failed["b"].reason == "insufficient room for one more pod"
    assert not found.failed["a"].is_final
    assert failed(nodes, on, pod("p", "500m", "1Mi")) == {"b": "NodeResourcesFit"}
    assert Filters(state_of(nodes, on)).check(pod_facts(pod("p", "5"))).failed["b"].is_final  # no eviction would help


def test_a_request_of_nothing_fits_an_overfull_node() -> None:
    assert failed([node("a", "1")], [pod("x", "2", on="a")], pod("p", "0", "0")) == {}


def test_pods_that_are_done_hold_nothing() -> None:
    assert failed([node("a", "1")], [pod("x", "1", on="a", phase="Succeeded")], pod("p", "1")) == {}


def test_an_unschedulable_node_takes_those_who_tolerate_it() -> None:
    nodes = [node("a", unschedulable=True)]
    assert failed(nodes, [], pod("p")) == {"a": "NodeUnschedulable"}
    tolerant = pod("p", tolerations=[{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}])
    assert failed(nodes, [], tolerant) == {}


@pytest.mark.parametrize(
    ("toleration", "fits"),
    [
        ({"key": "k", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "operator": "Equal", "value": "v"}, True),
        ({"key": "k", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "k", "value": "other"}, False),
        ({"key": "k", "value": "v", "effect": "NoExecute"}, False),
        ({"operator": "Equal", "value": "v"}, False),
        ({"key": "k", "operator": "Lt", "value": "9"}, False),
    ],
)
def test_a_toleration_lets_onto_a_tainted_node(toleration: Json, fits: bool) -> None:
    tainted = [node("a", taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}])]
    assert failed(tainted, [], pod("p", tolerations=[toleration])) == ({} if fits else {"a": "TaintToleration"})


def test_node_affinity_needs_one_term_and_an_empty_term_accepts_nothing() -> None:
    nodes = [node("a", labels={"cores": "8"}), node("b", labels={"cores": "32"}), node("c")]

    def affinity(*terms: Json) -> Json:
        return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(terms)}}}

    many = {"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["16"]}]}
    named = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}]}
    assert failed(nodes, [], pod("p", affinity=affinity(many))) == {"a": "NodeAffinity", "c": "NodeAffinity"}
    assert failed(nodes, [], pod("p", affinity=affinity(many, named))) == {"a": "NodeAffinity"}
    assert len(failed(nodes, [], pod("p", affinity=affinity({})))) == 3


def test_a_changed_node_is_filtered_anew() -> None:
    state = state_of([node("a")], [])
    filters = Filters(state)
    picky = pod_facts(pod("p", nodeSelector={"disk": "ssd"}))
    assert not filters.check(picky).nodes
    state.put_node(node_facts(node("a", labels={"disk": "ssd"})))
    assert filters.check(picky).nodes == ("a",)


def test_spread_with_too_few_domains_counts_from_nothing() -> None:
    nodes = [node("a", labels={"zone": "east"})]
    term = {"topologyKey": "zone", "maxSkew": 1, "labelSelector": {"matchLabels": {"app": "web"}}}
    on = [pod("x", on="a", labels={"app": "web"})]
    one = pod("p", labels={"app": "web"}, topologySpreadConstraints=[term])
    two = pod("p", labels={"app": "web"}, topologySpreadConstraints=[term | {"minDomains": 2}])
    assert failed(nodes, on, one) == {}  # the only domain is the emptiest
    assert failed(nodes, on, two) == {"a": "PodTopologySpread"}


def test_the_first_of_a_group_that_wants_to_be_near_itself_may_start_anywhere() -> None:
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}
    asked = pod("p", labels={"app": "web"}, affinity={"podAffinity": {REQUIRED: [term]}})
    nodes = [node("a", labels={"zone": "east"}), node("b", labels={"zone": "west"}), node("c")]
    assert failed(nodes, [], asked) == {"c": "InterPodAffinity"}
    assert failed(nodes, [pod("x", on="b", labels={"app": "web"})], asked) == {
        "a": "InterPodAffinity", "c": "InterPodAffinity",
    }  # fmt: skip
    elsewhere = pod("x", on="b", labels={"app": "web"}, namespace="lab")
    assert failed(nodes, [elsewhere], asked) == {"c": "InterPodAffinity"}


def test_without_some_pods_their_room_and_their_rules_are_gone() -> None:
    nodes = [node("a", "1", labels={"zone": "east"})]
    on = [pod("x", "1", on="a", labels={"app": "web"}, affinity=anti_affinity("zone", app="web"))]
    asked = pod("p", "1", labels={"app": "web"})
    assert failed(nodes, on, asked) == {"a": "NodeResourcesFit"}
    assert failed(nodes, on, asked, without=["uid-x"]) == {}


def test_a_share_of_a_gpu_fits_only_one_gpu() -> None:
    nodes = [node("a", **{"nvidia.com/gpu": "2"}, labels={"nvidia.com/gpu.product": "T4"}), node("b")]
    on = [
        pod(f"x{g}", "0", "0", "a", annotations={"alibabacloud.com/gpu-milli": "600", "alibabacloud.com/gpu-index": g})
        for g in ("0", "1")
    ]

    def asks(milli: str, model: str = "") -> Json:
        notes = {"alibabacloud.com/gpu-milli": milli, "alibabacloud.com/gpu-card-model": model}
        return pod("p", annotations=notes)

    assert failed(nodes, on, asks("400")) == {"b": "GpuShare"}
    assert failed(nodes, on, asks("500")) == {"a": "GpuShare", "b": "GpuShare"}  # 800 free, but on two GPUs
    assert failed(nodes, on, asks("400", "V100")) == {"a": "GpuShare", "b": "GpuShare"}


# --- drawn ---


def fits(asked: Json, at: Json, nodes: list[Json], running: list[Json]) -> bool:
    """May `asked` go to `at`? Straight from the rules, one pod and one node at a time."""
    spec, labels = asked["spec"], at["metadata"]["labels"]
    space, own = asked["metadata"]["namespace"], asked["metadata"].get("labels", {})
    tolerates = bool(spec.get("tolerations"))  # as drawn: all or nothing
    if at["spec"].get("unschedulable") and not tolerates:
        return False
    if any(t["effect"] == "NoSchedule" for t in at["spec"].get("taints", ())) and not tolerates:
        return False
    if any(labels.get(k) != v for k, v in spec.get("nodeSelector", {}).items()):
        return False
    here = [p for p in running if p["spec"]["nodeName"] == at["metadata"]["name"]]
    taken = {port["hostPort"] for p in here for c in p["spec"]["containers"] for port in c.get("ports", ())}
    if any(port["hostPort"] in taken for c in spec["containers"] for port in c.get("ports", ())):
        return False
    if len(here) + 1 > int(at["status"]["allocatable"]["pods"]):
        return False
    for resource in ("cpu", "memory"):

        def asks(p: Json, resource: str = resource) -> Any:
            return sum(parse_quantity(c["resources"]["requests"].get(resource, 0)) for c in p["spec"]["containers"])

        free = parse_quantity(at["status"]["allocatable"][resource]) - sum(asks(p) for p in here)
        if asks(asked) and asks(asked) > free:
            return False
    by_name = {n["metadata"]["name"]: n["metadata"]["labels"] for n in nodes}

    def together(p: Json, key: str) -> bool:
        return key in labels and by_name[p["spec"]["nodeName"]].get(key) == labels[key]

    def matches(term: Json, space: str, other: Json) -> bool:
        other_labels = other["metadata"].get("labels", {})
        return other["metadata"]["namespace"] == space and all(
            other_labels.get(k) == v for k, v in term["labelSelector"]["matchLabels"].items()
        )

    def terms(p: Json, kind: str) -> list[Json]:
        found: list[Json] = p["spec"].get("affinity", {}).get(kind, {}).get(REQUIRED, [])
        return found

    for other in running:
        for term in terms(asked, "podAntiAffinity"):
            if matches(term, space, other) and together(other, term["topologyKey"]):
                return False
        for term in terms(other, "podAntiAffinity"):
            if matches(term, other["metadata"]["namespace"], asked) and together(other, term["topologyKey"]):
                return False
    for term in terms(asked, "podAffinity"):
        key = term["topologyKey"]
        near = [p for p in running if matches(term, space, p) and key in by_name[p["spec"]["nodeName"]]]
        alone = not near and matches(term, space, asked)
        if key not in labels or not (alone or any(together(p, key) for p in near)):
            return False
    for term in spec.get("topologySpreadConstraints", ()):
        key = term["topologyKey"]
        if key not in labels:
            return False
        selected = spec.get("nodeSelector", {})
        open_to_it = {n: x for n, x in by_name.items() if key in x and all(x.get(k) == v for k, v in selected.items())}
        count = {x[key]: 0 for x in open_to_it.values()}
        for p in running:
            if p["spec"]["nodeName"] in open_to_it and matches(term, space, p):
                count[open_to_it[p["spec"]["nodeName"]][key]] += 1
        if (
            count[labels[key]] + (own.get("app") == term["labelSelector"]["matchLabels"]["app"]) - min(count.values())
            > term["maxSkew"]
        ):
            return False
    return True


@given(cluster=clusters(), asked=pods("p"))
def test_the_filters_agree_with_the_rules_read_slowly(cluster: tuple[list[Json], list[Json]], asked: Json) -> None:
    nodes, running = cluster
    expected = [n["metadata"]["name"] for n in nodes if fits(asked, n, nodes, running)]
    found = Filters(state_of(nodes, running)).check(pod_facts(asked))
    assert list(found.nodes) == expected
    assert set(found.failed) == {n["metadata"]["name"] for n in nodes} - set(expected)


@given(cluster=clusters(), asked=pods("p"), data=st.data())
def test_without_pods_is_the_same_as_had_they_never_been(
    cluster: tuple[list[Json], list[Json]], asked: Json, data: st.DataObject
) -> None:
    nodes, running = cluster
    gone = [p for p in running if data.draw(st.booleans())]
    left = [p for p in running if p not in gone]
    uids = [p["metadata"]["uid"] for p in gone]
    found = Filters(state_of(nodes, running)).check(pod_facts(asked), without=uids)
    assert found.nodes == Filters(state_of(nodes, left)).check(pod_facts(asked)).nodes
