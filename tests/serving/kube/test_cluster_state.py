"""The cluster's state after many events is that of a fresh start from what is left."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.convert import node_facts, pod_facts
from tests.serving.kube.objects import Json, node, nodes, pod, pods

NODES = ("n0", "n1", "n2")


def picture(state: ClusterState) -> dict[str, Any]:
    """All that may be read, in no order."""
    amounts = {
        name: {r: int(state.free[state.rows[name], c]) for r, c in state.columns.items() if state.free[:, c].any()}
        for name in state.names
    }
    return {
        "nodes": state.nodes,
        "placed": {uid: (one.pod, one.node) for uid, one in state.placed.items()},
        "waiting": state.waiting,
        "free": amounts,
        "room": {name: int(state.room[state.rows[name]]) for name in state.names},
        "groups": {key: dict(count) for key, count in state.groups.items()},
        "keep_away": {key: dict(count) for key, count in state.keep_away.items()},
        "on_node": {name: sorted(state.on_node(name)) for name in NODES},
        "gpu_total": {name: sum(free) for name, free in state.gpu_free.items()},
    }


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[str, Any]], dict[str, Json], dict[str, Json]]:
    """Events, and the nodes and pods there are after them."""
    events: list[tuple[str, Any]] = []
    left_nodes: dict[str, Json] = {}
    left_pods: dict[str, Json] = {}
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.sampled_from(("node", "pod", "pod", "pod", "bind", "drop node", "drop pod")))
        if kind == "node":
            name = draw(st.sampled_from(NODES))
            left_nodes[name] = draw(nodes(name))
            left_nodes[name]["status"]["allocatable"]["nvidia.com/gpu"] = draw(st.sampled_from(("0", "2")))
            events.append((kind, left_nodes[name]))
        elif kind in ("pod", "bind"):
            name = f"p{draw(st.integers(0, 5))}"
            made = draw(pods(name, (*NODES, "unknown", "")))
            if draw(st.integers(0, 3)) == 0:
                made["metadata"]["annotations"] = {"alibabacloud.com/gpu-milli": "300"}
            left_pods[made["metadata"]["uid"]] = made
            events.append(("pod", made))
        elif kind == "drop node" and left_nodes:
            name = draw(st.sampled_from(sorted(left_nodes)))
            del left_nodes[name]
            events.append((kind, name))
        elif kind == "drop pod" and left_pods:
            uid = draw(st.sampled_from(sorted(left_pods)))
            del left_pods[uid]
            events.append((kind, uid))
    return events, left_nodes, left_pods


def apply(state: ClusterState, event: tuple[str, Any]) -> None:
    kind, what = event
    if kind == "node":
        state.put_node(node_facts(what))
    elif kind == "pod":
        state.put_pod(pod_facts(what))
    elif kind == "drop node":
        state.drop_node(what)
    else:
        state.drop_pod(what)


@given(history=histories())
def test_events_lead_where_a_fresh_listing_leads(
    history: tuple[list[tuple[str, Any]], dict[str, Json], dict[str, Json]],
) -> None:
    events, left_nodes, left_pods = history
    state = ClusterState()
    for event in events:
        apply(state, event)
    fresh = ClusterState()
    fresh.replace([node_facts(n) for n in left_nodes.values()], [pod_facts(p) for p in left_pods.values()])
    assert picture(state) == picture(fresh)
    state.replace([], [])
    assert picture(state) == picture(ClusterState())


def test_an_expected_pod_counts_until_it_is_seen_or_overdue() -> None:
    now = [0.0]
    state = ClusterState(lambda: now[0])
    for name in ("a", "b"):
        state.put_node(node_facts(node(name)))
    waiting = pod_facts(pod("p", "1"))
    state.put_pod(waiting)
    state.expect(waiting, "a", for_s=5.0)
    assert (state.free[:, 0] == [3000, 4000]).all()
    assert not state.waiting
    state.put_pod(waiting)  # an event from before the binding changes nothing
    assert (state.free[:, 0] == [3000, 4000]).all()
    now[0] = 5.0
    state.expire()
    assert (state.free[:, 0] == 4000).all()
    assert list(state.waiting) == ["uid-p"]
    state.expect(waiting, "a")
    state.put_pod(pod_facts(pod("p", "1", on="b")))  # it went elsewhere
    assert (state.free[:, 0] == [4000, 3000]).all()
    now[0] = 100.0
    state.expire()
    state.expect(waiting, "a")  # what has been seen stands above what is expected
    assert (state.free[:, 0] == [4000, 3000]).all()


def test_what_was_expected_of_an_unknown_pod_leaves_nothing_behind() -> None:
    now = [0.0]
    state = ClusterState(lambda: now[0])
    state.put_node(node_facts(node("a")))
    state.expect(pod_facts(pod("p")), "a", for_s=1.0)
    now[0] = 2.0
    state.expire()
    assert not state.placed
    assert not state.waiting


def test_shares_of_gpus_go_where_they_are_or_to_the_fullest_that_has_room() -> None:
    state = ClusterState()
    state.put_node(node_facts(node("a", **{"nvidia.com/gpu": "3"})))

    def share(name: str, milli: str, index: str = "") -> None:
        notes = {"alibabacloud.com/gpu-milli": milli} | ({"alibabacloud.com/gpu-index": index} if index else {})
        state.put_pod(pod_facts(pod(name, on="a", annotations=notes)))

    share("x", "400", "1")
    assert state.gpu_free["a"] == [1000, 600, 1000]
    share("y", "500")
    assert state.gpu_free["a"] == [1000, 100, 1000]
    share("z", "500")
    assert state.gpu_free["a"] == [500, 100, 1000]
    state.drop_pod("uid-y")
    assert state.gpu_free["a"] == [500, 600, 1000]
