"""How long a shipped bundle takes for one decision on one CPU thread, in each runtime, beside a dispatch rule.

A decision is the observation written, the logits computed and the best candidate taken, along greedy runs of whole
problems; forced moves are not decisions. On clusters it is besides the step before, which makes the list of choices.
Wall time by decision (median and 99th percentile) and CPU time as the mean of a run. The peer is a rule, compiled, over
the same problems: lrpt in shops, kube-scheduler for pods, fgd for GPUs; its time by decision, forced moves included.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import Bundle
from dispatchgym.agents.forced_moves import step_to_choice
from dispatchgym.agents.runtime import RUNTIMES
from dispatchgym.envs.jobshop import library as instances
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.packing import twin
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import Shortlists, ShortName
from dispatchgym.solvers.jobshop import rules
from dispatchgym.solvers.packing import kube_scheduler
from dispatchgym.solvers.packing import rules as packing_rules

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "MKL", "OMP")}
PEER = "lrpt"
BARS = {"15x15": "bar 500 us", "100x20": "bar 5,000 us", "64x512": "bar 5,000 us"}


def shops(larger: bool) -> dict[str, Instance]:
    """Size -> instance."""
    found = {"15x15": instances.load("ta01"), "30x20": instances.load("ta41"), "100x20": instances.load("ta71")}
    if larger:
        found["200x20"] = random_instance(np.random.default_rng(0), 200, 20)
    return found


def decisions(loaded: Bundle, instance: Instance, most: int) -> tuple[list[float], float]:
    """Wall seconds of each of about `most` decisions, evenly spread over a run, and their mean CPU seconds."""
    graph = cast(GraphName, loaded.runtime.spec.graph)
    batch = ShopBatch.of([instance], loaded.shop, graph)
    every = max(1, instance.num_ops // most)
    action, reward = np.full(1, -1, np.int64), np.empty(1)
    step_to_choice(batch.problem, batch.shop, batch.mode, action, reward)
    wall: list[float] = []
    cpu = 0.0
    made = 0
    while not batch.over[0]:
        if made % every == 0:
            began_cpu, began = time.process_time(), time.perf_counter()
            seen = batch.observe()
            action[0] = seen.action[loaded.runtime.choose(seen)[0]]
            wall.append(time.perf_counter() - began)
            cpu += time.process_time() - began_cpu
        else:
            action[0] = np.flatnonzero(batch.mask[0])[0]
        step_to_choice(batch.problem, batch.shop, batch.mode, action, reward)
        made += 1
    return wall, cpu / max(1, len(wall))


def clusters(graph: str, larger: bool) -> dict[str, PackingInstance]:
    """Nodes x pods -> instance."""
    if graph == "bindings":
        found = [twin.load(0, scale=scale) for scale in ((0.05, 1.0) if larger else (0.05,))]
    else:
        found = [priority_matters(nodes, 8, 4, 0.95, 0) for nodes in ((16, 64, 256) if larger else (16, 64))]
    return {instance.size: instance for instance in found}


def cluster_decisions(loaded: Bundle, instance: PackingInstance, most: int) -> tuple[list[float], float]:
    """As `decisions`, on a cluster."""
    lists = Shortlists.of([instance], cast(ShortName, loaded.runtime.spec.graph), loaded.choices)
    lists.begin()
    action = np.empty(1, np.int64)
    wall: list[float] = []
    cpu = 0.0
    seen = lists.observe()
    for _ in range(instance.num_pods):
        action[0] = seen.action[loaded.runtime.choose(seen)[0]]
        began_cpu, began = time.process_time(), time.perf_counter()
        lists.step(action)
        seen = lists.observe()
        if lists.batch.over[0]:
            break
        loaded.runtime.choose(seen)
        wall.append(time.perf_counter() - began)
        cpu += time.process_time() - began_cpu
    every = max(1, len(wall) // most)
    return wall[::every], cpu / max(1, len(wall))


def by_cluster_rule(graph: str, instance: PackingInstance, repeats: int) -> Measured:
    """Microseconds by decision of the peer."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run = packing_rules.rollout(instance, "fgd") if graph == "bindings" else kube_scheduler.rollout(instance)
        found.append(1e6 * (time.perf_counter() - began) / run.decisions)
    return Measured.of(found[1:])


def by_rule(shop: ShopConfig, instance: Instance, repeats: int) -> Measured:
    """Microseconds by decision of the peer."""
    rules.rollout(instance, PEER, shop)
    found = []
    for _ in range(repeats * 5):
        began = time.perf_counter()
        run = rules.rollout(instance, PEER, shop)
        found.append(1e6 * (time.perf_counter() - began) / run.decisions)
    return Measured.of(found)


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one bundle."""
    path = bundles.find(name)
    manifest = bundles.manifest_of(path)
    repeats, most = (1, 60) if options.quick else (5, 300)
    rows = []
    loaded = {r: bundles.load(path, r) for r in RUNTIMES if r != "onnx" or bundles.ONNX in manifest["files"]}
    first = next(iter(loaded.values()))
    graph = first.runtime.spec.graph
    timed: dict[str, tuple[str, Measured, Callable[[Bundle, int], tuple[list[float], float]]]] = {}
    if manifest["family"] == "packing":
        peer = "fgd" if graph == "bindings" else "kube-scheduler"
        for size, cluster in clusters(graph, larger=not options.quick).items():
            rule = by_cluster_rule(graph, cluster, repeats)
            timed[size] = peer, rule, lambda each, most, cluster=cluster: cluster_decisions(each, cluster, most)  # type: ignore[misc]
    else:
        for size, instance in shops(larger=not options.quick).items():
            rule = by_rule(first.shop, instance, repeats)
            timed[size] = PEER, rule, lambda each, most, instance=instance: decisions(each, instance, most)  # type: ignore[misc]
    for size, (peer, rule, run) in timed.items():
        for runtime, each in loaded.items():
            run(each, 20)  # warm
            runs = [run(each, most) for _ in range(repeats)]
            label = f"{name} {size} {runtime}"
            for what, values in (
                ("median", [float(np.median(wall)) for wall, _ in runs]),
                ("p99", [float(np.percentile(wall, 99)) for wall, _ in runs]),
                ("CPU mean", [cpu for _, cpu in runs]),
            ):
                found = Measured.of([1e6 * value for value in values])
                bar = BARS.get(size, "") if what == "median" else ""
                rows.append(Row(f"{label}, {what}", found.value, "us", found.spread, f"rule {peer}", rule.value, bar))
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("bundles", nargs="*", help="names or paths (default: every shipped one)")
    options = parser.parse_args()
    if not ONE_THREAD.items() <= os.environ.items():  # NumPy reads them when it is imported: start over
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    rows = [row for name in options.bundles or bundles.shipped() for row in measure(name, options)]
    publish(rows, options.json, ["numpy", "onnxruntime", "torch", "numba"])


if __name__ == "__main__":
    main()
