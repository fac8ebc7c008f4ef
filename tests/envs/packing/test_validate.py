"""Each rule that the validator names, broken once."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.envs.api import InvalidScheduleError
from dispatchgym.envs.packing.instance import AntiAffinity, Nodes, PackingInstance, Pods, Spread, Taint, Workload
from dispatchgym.envs.packing.log import Event
from dispatchgym.envs.packing.validate import validate

APP = (("app", "x"),)


def instance() -> PackingInstance:
    """Node 0 and 1 in zone a, 2 in zone b; 0 has two GPUs, 1 is tainted, 2 has room for one pod."""
    return PackingInstance(
        "three",
        Nodes(
            np.array([[10, 10], [10, 10], [10, 10]]),
            max_pods=np.array([9, 9, 1]),
            gpus=np.array([2, 0, 0]),
            models=("A", "", ""),
            labels=({"zone": "a"}, {"zone": "a"}, {"zone": "b"}),
            taints=((), (Taint("t"),), ()),
        ),
        Pods(
            np.array([[6, 6], [6, 6], [1, 1], [1, 1], [1, 1], [1, 1]]),
            priority=np.array([0, 1, 0, 0, 0, 0]),
            gpus=np.array([0, 0, 1, 1, 0, 0]),
            gpu_milli=np.array([0, 0, 600, 600, 0, 0]),
            workload=np.array([0, 0, 0, 1, 2, 3]),
            arrival=np.array([0, 1, 1, 1, 1, 1]),
            lifetime=np.array([10, 10, 10, 10, 10, 10]),
        ),
        (
            Workload("plain"),
            Workload("b only", models=("B",)),
            Workload("lonely", labels=APP, anti_affinity=(AntiAffinity("zone", APP),)),
            Workload("spread", labels=APP, spread=(Spread("zone", APP, 1),)),
        ),
    )


def bind(time: int, pod: int, node: int, *slots: int) -> Event:
    return Event(time, "bind", pod, node, slots)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([bind(0, 9, 0)], "there are 6 pods"),
        ([bind(0, 0, 3)], "there are 3 nodes"),
        ([bind(1, 1, 0), bind(0, 0, 2)], "the event before it was at time 1"),
        ([bind(0, 1, 0)], "arrives only at 1"),
        ([bind(0, 0, 0), bind(1, 0, 2)], "already runs on node 0"),
        ([bind(0, 0, 0), bind(1, 1, 0)], "would use 12 of 10 cpu"),
        ([bind(0, 0, 1)], "does not tolerate taint t"),
        ([bind(1, 4, 2), bind(1, 5, 2)], "forbids it in the same zone"),
        ([bind(1, 5, 0), bind(1, 4, 0)], "its anti-affinity forbids pod 5"),
        ([bind(1, 2, 2), bind(1, 4, 2)], "asks for 1 GPUs and gets 0"),
        ([bind(1, 2, 2, 0)], "GPU 0 does not exist"),
        ([bind(1, 3, 0, 0)], "wants one of"),
        ([bind(0, 0, 2), bind(1, 1, 2)], "the node would hold 2 pods; it takes 1"),
        ([bind(0, 0, 0), Event(9, "depart", 0, 0, ())], "it leaves at 10"),
        ([bind(0, 0, 0), bind(11, 1, 2)], "pod 0 should have left at 10"),
        ([bind(0, 0, 0), Event(10, "depart", 0, 0, ()), bind(10, 0, 0)], "done and gone"),
        ([bind(0, 0, 0), Event(1, "evict", 0, 0, (), 2)], "its priority 0 is not below 0"),
        ([bind(0, 0, 0), Event(1, "evict", 0, 0, (), 1)], "which was not bound afterwards"),
        ([bind(0, 0, 0), Event(1, "evict", 0, 0, (), 1), bind(1, 1, 2)], "pods were evicted from node 0 for pod 1"),
        ([bind(0, 0, 0), Event(1, "evict", 0, 2, (), 1)], "it holds"),
        ([Event(1, "move", 0, 0, (), 1)], "does not run"),
        ([bind(0, 0, 0), Event(1, "move", 0, 2, (), 1)], "it ran on node 0, not on 1"),
        ([bind(0, 0, 0), Event(1, "move", 0, 0, (), 0)], "there already"),
        ([bind(0, 0, 0), Event(1, "move", 0, 1, (), 0)], "does not tolerate"),
    ],
)
def test_a_broken_rule_is_named(events: list[Event], message: str) -> None:
    with pytest.raises(InvalidScheduleError, match=message):
        validate(events, instance())


def test_two_shares_that_do_not_fit_one_gpu_are_refused() -> None:
    pair = PackingInstance(
        "pair",
        Nodes(np.array([[9, 9]]), gpus=np.array([2])),
        Pods(np.array([[1, 1]] * 2), gpus=np.array([1, 1]), gpu_milli=np.array([600, 600])),
    )
    assert validate([bind(0, 0, 0, 0), bind(0, 1, 0, 1)], pair) == {0: 0, 1: 0}
    with pytest.raises(InvalidScheduleError, match="GPU 0 would be used 1200/1000"):
        validate([bind(0, 0, 0, 0), bind(0, 1, 0, 0)], pair)


def test_too_much_in_one_domain_is_refused() -> None:
    zones = PackingInstance(
        "zones",
        Nodes(np.array([[9, 9]] * 3), labels=({"zone": "a"}, {"zone": "b"}, {})),
        Pods(np.array([[1, 1]] * 3)),
        (Workload(labels=APP, spread=(Spread("zone", APP, 1),)),),
    )
    assert validate([bind(0, 0, 0), bind(0, 1, 1), bind(0, 2, 0)], zones) == {0: 0, 1: 1, 2: 0}
    with pytest.raises(InvalidScheduleError, match="skew over zone would be 2; at most 1"):
        validate([bind(0, 0, 0), bind(0, 1, 0)], zones)
    with pytest.raises(InvalidScheduleError, match="no label zone"):
        validate([bind(0, 0, 2)], zones)


def test_an_eviction_followed_by_its_binding_is_allowed() -> None:
    events = [bind(0, 0, 0), Event(1, "evict", 0, 0, (), 1), bind(1, 1, 0), bind(2, 0, 2)]
    assert validate(events, instance()) == {0: 2, 1: 0}
