"""Instances, generators, the readers of openb and its twin."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.envs import data_command
from dispatchgym.envs.api import InvalidInstanceError, UnknownNameError, UsageError
from dispatchgym.envs.packing import generate, openb, twin
from dispatchgym.envs.packing.instance import (
    FOREVER,
    Nodes,
    PackingInstance,
    Pods,
    Requirement,
    Taint,
    Toleration,
    Typical,
    Workload,
)

NODES = """sn,cpu_milli,memory_mib,gpu,model
a,64000,262144,2,P100
b,32000,1000,0,
"""
PODS = """name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time
p0,12000,16384,1,460,,5,25
p1,6000,0,1,1000,P100|T4,3,3
p2,6000,12,0,0,,9,109
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "list.csv"
    file.write_text(text)
    return file


def test_the_lists_are_read_as_they_stand(tmp_path: Path) -> None:
    nodes = openb.read_nodes(written(tmp_path, NODES))
    assert (nodes.names, nodes.models, nodes.gpus.tolist()) == (("a", "b"), ("P100", ""), [2, 0])
    assert nodes.capacity.tolist() == [[64000, 262144], [32000, 1000]]
    pods, workloads = openb.read_pods(written(tmp_path, PODS))
    assert pods.request.tolist() == [[12000, 16384], [6000, 0], [6000, 12]]
    assert (pods.gpus.tolist(), pods.gpu_milli.tolist()) == ([1, 1, 0], [460, 1000, 0])
    assert pods.lifetime.tolist() == [20, 1, 100]  # nobody lives for no time at all
    assert [workloads[w].models for w in pods.workload] == [(), ("P100", "T4"), ()]
    assert openb.creation_times(written(tmp_path, PODS)).tolist() == [2, 0, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,cpu_milli\np0,1\n", "there is no column 'memory_mib'"),
        (PODS.replace("460", "much"), "line 2: gpu_milli is 'much'"),
        (PODS.splitlines()[0] + "\n", "has no rows"),
        (PODS.replace("6000,0,1,1000", "6000,0,2,500"), "asks for a share of several GPUs"),
    ],
)
def test_a_bad_list_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInstanceError, match=message):
        openb.read_pods(written(tmp_path, text))


def test_pods_arrive_until_the_ratio_is_reached() -> None:
    nodes = Nodes(np.array([[10, 10]] * 4), gpus=np.array([2] * 4))
    pods = Pods(np.array([[1, 1]] * 3), gpus=np.array([1, 2, 0]), gpu_milli=np.array([500, 1000, 0]))
    for seed in range(20):
        instance = openb.arrivals(nodes, pods, (Workload(),), seed, 1.3)
        assert len({name.rsplit("-", 1)[0] for name in instance.pods.names[:3]}) == 3  # all of the list come first
        assert instance.pods.arrival.tolist() == list(range(instance.num_pods))
        demand = instance.pods.gpus * instance.pods.gpu_milli
        assert 1.3 * 8000 - 2000 < demand.sum() <= 1.3 * 8000 + 1000  # the check counts one GPU of a pod, as published
        assert (instance.pods.lifetime == FOREVER).all()
    many = pods.take([0, 1, 2] * 10)
    few = openb.arrivals(nodes, many, (Workload(),), 0, 0.5)
    assert 2000 < (few.pods.gpus * few.pods.gpu_milli).sum() <= 4000
    with pytest.raises(UsageError, match="leaves none of the pods"):
        openb.arrivals(nodes, pods.take([1]), (Workload(),), 0, 0.1)
    with pytest.raises(UsageError, match="no pod of the list asks for a GPU"):
        openb.arrivals(nodes, Pods(np.array([[1, 1]])), (Workload(),), 0)


def test_typical_pods_are_the_frequent_ones() -> None:
    # 10 pods: six of class a, three of class b, one of class c; 90 % are reached with a and b.
    cpu = np.array([1] * 6 + [2] * 3 + [3])
    typical = Typical.of(Pods(np.column_stack([cpu, cpu])), (Workload(),), popular=0.9)
    assert typical.cpu.tolist() == [1, 2]
    np.testing.assert_allclose(typical.share, [6 / 9, 3 / 9])


def test_the_published_cluster_has_the_published_size(public_data: Path) -> None:
    instance = openb.load("default", 42)
    assert (instance.num_nodes, int(instance.nodes.gpus.sum())) == (1213, 6212)
    assert int(instance.nodes.capacity[:, 0].sum()) == 107_018_000
    pods, _ = openb.read_pods(public_data / "kubernetes" / "openb_pod_list_default.csv")
    assert len(pods) == 8152
    assert round(float((pods.gpus * pods.gpu_milli).sum()) / 1000, 1) == 6086.8
    assert openb.load("default", 42).digest == instance.digest != openb.load("default", 43).digest
    for workload in openb.WORKLOADS:
        asked = openb.load(workload, 42).pods
        assert 1.299 < float((asked.gpus * asked.gpu_milli).sum()) / 6_212_000 <= 1.3002


def test_the_data_command_lists_the_clusters(public_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_command.main(["list", "--family", "openb"]) == 0
    printed = capsys.readouterr().out
    assert "ft06" not in printed
    row = next(line.split() for line in printed.splitlines() if line.startswith("openb-default"))
    assert row[:5] == ["openb-default", "1213", "8152", "6212", "6086.8"]


def test_without_the_data_the_list_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DISPATCHGYM_DATA", raising=False)
    assert data_command.main(["list", "--family", "openb"]) == 0
    printed = capsys.readouterr().out
    assert next(line.split()[1:5] for line in printed.splitlines() if line.startswith("openb-cpu250")) == ["-"] * 4


def test_without_the_data_the_message_names_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPATCHGYM_DATA", raising=False)
    with pytest.raises(UsageError, match="use the synthetic twin"):
        openb.load()
    with pytest.raises(UnknownNameError, match="cpu250"):
        openb.load("cpu25")


def test_the_twin_has_the_moments_it_is_fitted_to() -> None:
    nodes = twin.nodes()
    assert (len(nodes), int(nodes.gpus.sum()), int(nodes.capacity[:, 0].sum())) == (1213, 6212, 107_018_000)
    for seed in range(3):
        pods, _ = twin.pods(seed)
        gpus = float((pods.gpus * pods.gpu_milli).sum()) / 1000
        assert (len(pods), gpus) == (8152, pytest.approx(6086.8, rel=0.01))
        assert float(pods.request[:, 0].sum()) == pytest.approx(85_436_000, rel=0.01)
        assert int((pods.gpus == 8).sum()) == 44
        low, mid, high = np.percentile(pods.lifetime, [25, 50, 75])
        assert (low, mid, high) == (
            pytest.approx(167, rel=0.2),
            pytest.approx(540, rel=0.2),
            pytest.approx(1972, rel=0.2),
        )
    assert twin.pods(0)[0].request.tolist() != twin.pods(1)[0].request.tolist()
    small = twin.load(0, scale=0.02)
    assert small.num_nodes < 40
    demand = small.pods.gpus * small.pods.gpu_milli
    assert 1.15 < demand.sum() / (1000 * small.nodes.gpus.sum()) <= 1.35


@pytest.mark.parametrize("usage", [0.9, 0.95, 1.0, 1.05])
def test_priority_matters_instances_are_as_the_paper_says(usage: float) -> None:
    for seed in range(10):
        instance = generate.priority_matters(8, 4, 4, usage, seed)
        pods = instance.pods
        assert instance.size == "8x32"
        sizes = np.bincount(pods.workload)
        assert ((sizes >= 1) & (sizes <= 4)).all()
        for s in range(len(sizes)):  # a ReplicaSet's pods are alike and arrive together
            rows = pods.workload == s
            assert len(np.unique(np.column_stack([pods.request, pods.priority, pods.arrival])[rows], axis=0)) == 1
        assert ((pods.request >= 100) & (pods.request <= 1000)).all()
        assert ((pods.priority >= 1) & (pods.priority <= 4)).all()
        for r in range(2):
            total = int(pods.request[:, r].sum())
            need = max(int(pods.request[:, r].max()), math.ceil(math.ceil(total / usage) / 8))
            assert (instance.nodes.capacity[:, r] == need).all()
    assert generate.priority_matters(8, 4, 4, usage, 1).digest == generate.priority_matters(8, 4, 4, usage, 1).digest
    assert generate.priority_matters(8, 4, 4, usage, 1).digest != generate.priority_matters(8, 4, 4, usage, 2).digest
    with pytest.raises(UsageError, match="usage is 0"):
        generate.priority_matters(8, 4, 4, 0, 1)
    with pytest.raises(UsageError, match="must be >= 1"):
        generate.priority_matters(8, 0, 4, 0.9, 1)


def test_tolerations_and_requirements_by_hand() -> None:
    assert Toleration("a", "1").tolerates(Taint("a", "1"))
    assert not Toleration("a", "1").tolerates(Taint("a", "2"))
    assert not Toleration("a", effect="NoExecute").tolerates(Taint("a"))
    assert Requirement("k", "NotIn", ("x",)).holds({})  # as in Kubernetes: no label is not one of the values
    assert not Requirement("k", "In", ("x",)).holds({})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nodes(np.zeros((0, 2), int)), "at least one node"),
        (lambda: Nodes(np.array([[1, -1]])), "between 0 and"),
        (lambda: Nodes(np.array([[1.5, 1]])), "whole numbers"),
        (lambda: Nodes(np.array([[1, 1]]), names=("a", "b")), "2 names for 1 nodes"),
        (lambda: Nodes(np.array([[1, 1]]), gpus=np.array([33])), "0 to 32 GPUs"),
        (lambda: Pods(np.array([[1, 1]] * 2), arrival=np.array([1, 0])), "pod 'pod-1' arrives before"),
        (lambda: Pods(np.array([[1, 1]]), lifetime=np.array([0])), "lives for no time"),
        (lambda: Pods(np.array([[1, 1]]), gpus=np.array([2]), gpu_milli=np.array([500])), "share of several"),
        (lambda: Pods(np.array([[1, 1]]), gpu_milli=np.array([500])), "or the other way round"),
        (lambda: Pods(np.array([[1, 1]]), priority=np.array([2**40])), "does not fit int32"),
        (
            lambda: PackingInstance("x", Nodes(np.array([[1, 1]])), Pods(np.array([[1, 1, 1]]))),
            "pods have 3 resources, but 2",
        ),
        (
            lambda: PackingInstance("x", Nodes(np.array([[1, 1]])), Pods(np.array([[1, 1]]), workload=np.array([1]))),
            "names workload 1 of 1",
        ),
    ],
)
def test_data_that_cannot_be_are_refused(make: object, message: str) -> None:
    with pytest.raises(InvalidInstanceError, match=message):
        make()  # type: ignore[operator]
