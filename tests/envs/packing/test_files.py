"""Clusters written and read back, and lists over time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.envs.api import InvalidInstanceError, UsageError
from dispatchgym.envs.packing import files, generate, openb, twin
from dispatchgym.envs.packing.instance import FOREVER


@pytest.mark.parametrize("seed", range(6))
def test_a_cluster_comes_back_as_it_was(tmp_path: Path, seed: int) -> None:
    instance = generate.random_cluster(np.random.default_rng(seed), 5, 12, departures=bool(seed % 2))
    path = tmp_path / "one.json"
    path.write_text(json.dumps(files.plain(instance)))
    back = files.read(path)
    assert back.digest == instance.digest
    assert (back.name, back.resources, back.workloads) == (instance.name, instance.resources, instance.workloads)
    assert (back.nodes.names, back.pods.names) == (instance.nodes.names, instance.pods.names)
    assert back.typical.models == instance.typical.models
    assert np.array_equal(back.typical.share, instance.typical.share)


def test_little_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    content = {"format": files.FORMAT, "schema": 1, "nodes": {"capacity": [[4, 8]]}, "pods": {"request": [[1, 2]]}}
    path.write_text(json.dumps(content))
    instance = files.read(path)
    assert (instance.size, instance.nodes.max_pods.tolist()) == ("1x1", [110])
    assert instance.pods.lifetime.tolist() == [FOREVER]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "x"}, '"format" must be'),
        ({"schema": 2}, '"schema" 1'),
        ({"pods": {}}, "there is no 'request'|request"),
        ({"nodes": {"capacity": [[1.5, 2]]}}, "whole numbers"),
        ({"nodes": {"capacity": [[1, 2]], "colour": 3}}, "colour"),
        ({"pods": {"request": [[1, 2]], "workload": [7]}}, "names workload 7"),
        ({"nodes": 3}, "not a cluster"),
    ],
)
def test_what_is_no_cluster_is_refused_by_file(tmp_path: Path, change: dict[str, object], said: str) -> None:
    content = {"format": files.FORMAT, "schema": 1, "nodes": {"capacity": [[4, 8]]}, "pods": {"request": [[1, 2]]}}
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content | change))
    with pytest.raises(InvalidInstanceError, match=said) as error:
        files.read(path)
    assert "bad.json" in str(error.value)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_over_time_the_pods_ask_for_what_was_wanted(load: float) -> None:
    pods, workloads = twin.pods(3, 0.2)
    created = twin.creation_times(3, len(pods))
    instance = openb.over_time(twin.nodes(), pods, workloads, created, seed=1, share=0.02, load=load)
    arrival, life = instance.pods.arrival, instance.pods.lifetime
    gpus = instance.pods.gpus * instance.pods.gpu_milli / 1000
    end = int(arrival[-1])
    # Second by second: who has arrived and would not have left.
    times = np.arange(0, end, max(1, end // 2000))
    asked = np.mean([(gpus * ((arrival <= t) & (arrival + life > t))).sum() for t in times])
    assert asked == pytest.approx(load * instance.nodes.gpus.sum(), rel=0.03)
    kept = int(0.9 * len(pods))
    assert abs(instance.num_pods - kept) <= 1
    assert sorted(life.tolist()) == sorted(pods.lifetime[np.argsort(created, kind="stable")][-instance.num_pods :])
    assert instance.num_nodes == round(0.02 * len(twin.nodes()))


def test_over_time_refuses_what_a_list_cannot_ask_for() -> None:
    pods, workloads = twin.pods(3, 0.02)
    created = twin.creation_times(3, len(pods))
    with pytest.raises(UsageError, match="take a smaller share"):
        openb.over_time(twin.nodes(), pods, workloads, created, seed=1, share=1.0)
    with pytest.raises(UsageError, match="share 0"):
        openb.over_time(twin.nodes(), pods, workloads, created, seed=1, share=0.0)
