"""Kubernetes objects to facts, against hand arithmetic."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchgym.serving.kube.convert import node_facts, pod_facts
from dispatchgym.serving.kube.facts import Requirement
from dispatchgym.serving.kube.quantity import PayloadError
from tests.serving.kube.objects import node, pod

GIB = 2**30


def container(cpu: str, memory: str = "0", **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu, "memory": memory}}, **more}


def test_a_pod_asks_for_its_containers_or_its_largest_init_container() -> None:
    spec = {
        "containers": [container("100m", "1Gi"), container("200m")],
        "initContainers": [container("250m", "3Gi"), container("50m")],
        "overhead": {"cpu": "10m"},
    }
    assert pod_facts(pod("p", **spec)).requests == {"cpu": 300 + 10, "memory": 3 * GIB}


def test_a_restarting_init_container_counts_beside_all_that_start_after_it() -> None:
    spec = {
        "containers": [container("100m")],
        "initContainers": [
            container("500m"),  # before the sidecar: alone
            container("200m", restartPolicy="Always"),
            container("400m"),  # beside the sidecar: 600m in all
        ],
    }
    assert pod_facts(pod("p", **spec)).requests == {"cpu": 600}


def test_a_limit_without_a_request_is_a_request() -> None:
    spec = {"containers": [{"resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}}]}
    assert pod_facts(pod("p", **spec)).requests == {"cpu": 1000, "memory": GIB}


def test_amounts_for_the_whole_pod_stand_above_its_containers() -> None:
    facts = pod_facts(pod("p", "1", "1Gi", resources={"requests": {"cpu": "3"}}))
    assert facts.requests == {"cpu": 3000, "memory": GIB}


def test_a_gpu_can_be_asked_for_whole_or_shared_by_annotation() -> None:
    whole = pod_facts(pod("p", requests={"nvidia.com/gpu": "2"}))
    assert (whole.gpus, whole.gpu_milli) == (2, 1000)
    notes = {"alibabacloud.com/gpu-milli": "460", "alibabacloud.com/gpu-card-model": "T4|V100"}
    shared = pod_facts(pod("p", annotations=notes))
    assert (shared.gpus, shared.gpu_milli, shared.gpu_models) == (1, 460, ("T4", "V100"))
    placed = pod_facts(
        pod("p", annotations={"alibabacloud.com/gpu-milli": "1000", "alibabacloud.com/gpu-count": "2",
                              "alibabacloud.com/gpu-index": "0-3"})
    )  # fmt: skip
    assert (placed.gpus, placed.gpu_slots) == (2, (0, 3))
    with pytest.raises(PayloadError, match="share of one GPU"):
        pod_facts(pod("p", annotations={"alibabacloud.com/gpu-milli": "500", "alibabacloud.com/gpu-count": "2"}))


def test_a_node_has_what_is_allocatable() -> None:
    made = node("a", "3920m", "7Gi", "58", **{"nvidia.com/gpu": "4"}, labels={"nvidia.com/gpu.product": "A100"})
    made["status"]["capacity"] = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    facts = node_facts(made)
    assert facts.allocatable == {"cpu": 3920, "memory": 7 * GIB, "nvidia.com/gpu": 4}
    assert (facts.max_pods, facts.gpus, facts.model) == (58, 4, "A100")


@pytest.mark.parametrize(
    ("requirement", "labels", "holds"),
    [
        (Requirement("a", "In", ("1", "2")), {"a": "2"}, True),
        (Requirement("a", "In", ("1", "2")), {}, False),
        (Requirement("a", "NotIn", ("1",)), {}, True),
        (Requirement("a", "NotIn", ("1",)), {"a": "1"}, False),
        (Requirement("a", "Exists", ()), {"a": ""}, True),
        (Requirement("a", "DoesNotExist", ()), {"a": ""}, False),
        (Requirement("a", "Gt", ("9",)), {"a": "10"}, True),
        (Requirement("a", "Lt", ("9",)), {"a": "10"}, False),
        (Requirement("a", "Gt", ("9",)), {"a": "x"}, False),
        (Requirement("a", "Gt", ("9",)), {}, False),
    ],
)
def test_a_requirement_holds(requirement: Requirement, labels: dict[str, str], holds: bool) -> None:
    assert requirement.holds(labels) is holds


def test_what_a_descheduler_must_leave_alone_says_why() -> None:
    assert "again" in pod_facts(pod("p")).pinned
    assert pod_facts(pod("p", owner="rs")).pinned == ""
    daemon = pod("p", owner="ds")
    daemon["metadata"]["ownerReferences"][0]["kind"] = "DaemonSet"
    assert "DaemonSet" in pod_facts(daemon).pinned
    assert "hostPath" in pod_facts(pod("p", owner="rs", volumes=[{"name": "v", "hostPath": {}}])).pinned


def test_an_error_names_the_pod_the_field_and_the_value() -> None:
    with pytest.raises(PayloadError, match=r"pod shop/p requests: cpu: 'much' is not a quantity"):
        pod_facts(pod("p", "much"))
    terms = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Near"}]}]}
    odd = pod("p", affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}})
    with pytest.raises(PayloadError, match="operator 'Near'"):
        pod_facts(odd)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[0m", "é", "x" * 254, ""])
def test_a_name_cannot_forge_a_line_of_the_log(name: str) -> None:
    for made, read in ((pod("p"), pod_facts), (node("n"), node_facts)):
        made["metadata"]["name"] = name
        with pytest.raises(PayloadError) as refused:
            read(made)  # type: ignore[operator]
        assert str(refused.value).isprintable()


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_RICH = pod(
    "p",
    annotations={"a": "b"},
    owner="rs",
    labels={"app": "web"},
    initContainers=[{"resources": {"limits": {"cpu": "1"}}, "restartPolicy": "Always"}],
    tolerations=[{"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}],
    affinity={
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]
            }
        },
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "zone", "labelSelector": {"matchExpressions": [{"key": "k", "operator": "Exists"}]}}
            ]
        },
    },
    topologySpreadConstraints=[{"topologyKey": "zone", "maxSkew": 1, "labelSelector": {"matchLabels": {"a": "b"}}}],
    volumes=[{"name": "v", "emptyDir": {}}],
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for key, child in inner for p in _paths(child, (*path, key))]


@given(where=st.sampled_from(_paths(_RICH)), what=_PLAIN)
def test_a_damaged_pod_is_read_or_refused_and_nothing_else(where: tuple[Any, ...], what: Any) -> None:
    damaged = copy.deepcopy(_RICH)
    at: Any = damaged
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = what
    with contextlib.suppress(PayloadError):
        pod_facts(damaged)


@given(what=_PLAIN)
def test_what_is_no_node_is_refused(what: Any) -> None:
    with pytest.raises(PayloadError):
        node_facts(what)
