"""How long a shipped bundle takes for one decision on one CPU thread, in each runtime, beside a dispatch rule.

A decision is the observation written, the logits computed and the best candidate taken, along greedy runs of whole
problems; forced moves are not decisions. On clusters it is besides the step before, which makes the list of choices.
For LLM engines it is the plan of a whole step, in steps whose list begins with 60 choices or more, of 64 at most. Wall
time by decision (median and 99th percentile) and CPU time as the mean of a run, for LLM engines its 99th percentile.
The peer is a rule, compiled, over the same problems: lrpt in shops, kube-scheduler for pods, fgd for GPUs; its time by
decision, forced moves included. For LLM engines it is least-slack, written over the same view, in such steps of its
own run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import Bundle
from dispatchgym.agents.forced_moves import step_to_choice
from dispatchgym.agents.llm_policy import ChoicePolicy
from dispatchgym.agents.runtime import RUNTIMES
from dispatchgym.envs.jobshop import library as instances
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.batch import ChoicesConfig
from dispatchgym.envs.llm.choices import list_choices
from dispatchgym.envs.llm.columns import new_choices
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.planning import look
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, Policy
from dispatchgym.envs.llm.sight import new_sight, see
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.packing import twin
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import Shortlists, ShortName
from dispatchgym.solvers.jobshop import rules
from dispatchgym.solvers.llm.least_slack import LeastSlack
from dispatchgym.solvers.packing import kube_scheduler
from dispatchgym.solvers.packing import rules as packing_rules

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "MKL", "OMP")}
PEER = "lrpt"
FULL = 60
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


class Timed:
    """A scheduler that notes how long it plans, in steps whose list of choices is full."""

    oracle = False

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.name = inner.name
        self.wall: list[float] = []
        self.cpu: list[float] = []
        config = ChoicesConfig()
        self._sight, self._choices = new_sight(512, config.most), new_choices(config.most, config.weights)

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.inner.reset(spec, seed)
        self._spec = spec

    def decide(self, view: EngineView) -> Plan:
        began_cpu, began = time.process_time(), time.perf_counter()
        plan = self.inner.decide(view)
        took, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        self._sight = see(self._sight, view, self._spec)
        look(self._sight)
        list_choices(self._sight, self._choices)
        if self._choices.size[0] >= FULL:
            self.wall.append(took)
            self.cpu.append(cpu)
        return plan


def engine_rows(name: str, loaded: dict[str, Bundle], requests: int, repeats: int) -> list[Row]:
    """The rows of a bundle for LLM engines: requests come faster than the engine serves them."""
    crowd = workloads.load("azure-2023-conv-twin", requests=requests, rate_per_s=60.0, seed=0)
    crowd = replace(crowd, ttft_slo_s=np.full(requests, 10.0), tpot_slo_s=np.full(requests, 0.1))

    def run(make: Callable[[], Policy]) -> Timed:
        timed = Timed(make())
        simulate(crowd, timed, EngineConfig(), steps=False)
        return timed

    run(LeastSlack)
    rule = Measured.of([1e6 * float(np.median(run(LeastSlack).wall)) for _ in range(repeats)])
    rows = []
    for runtime, each in loaded.items():
        runs = [run(lambda each=each: ChoicePolicy(each.runtime, each.engine)) for _ in range(repeats + 1)][1:]  # type: ignore[misc]
        label = f"{name} {FULL}+ choices {runtime}"
        rows += [
            percentile_row(label, "median", [timed.wall for timed in runs], 50, "least-slack", rule),
            percentile_row(label, "p99", [timed.wall for timed in runs], 99, "least-slack", rule, "bar 1,000 us"),
            percentile_row(label, "CPU p99", [timed.cpu for timed in runs], 99, "least-slack", rule, "bar 1,000 us"),
        ]
    return rows


def percentile_row(
    label: str, what: str, runs: list[list[float]], percent: float, peer: str, rule: Measured, bar: str = ""
) -> Row:
    """A percentile of each run's seconds by decision, in microseconds."""
    found = Measured.of([1e6 * float(np.percentile(run, percent)) for run in runs])
    return Row(f"{label}, {what}", found.value, "us", found.spread, f"rule {peer}", rule.value, bar)


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one bundle."""
    path = bundles.find(name)
    manifest = bundles.manifest_of(path)
    repeats, most = (1, 60) if options.quick else (5, 300)
    rows = []
    loaded = {r: bundles.load(path, r) for r in RUNTIMES if r != "onnx" or bundles.ONNX in manifest["files"]}
    first = next(iter(loaded.values()))
    graph = first.runtime.spec.graph
    if manifest["family"] == "llm":
        return engine_rows(name, dict(loaded), 300 if options.quick else 600, repeats)
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
            label, wall = f"{name} {size} {runtime}", [wall for wall, _ in runs]
            rows += [
                percentile_row(label, "median", wall, 50, peer, rule, BARS.get(size, "")),
                percentile_row(label, "p99", wall, 99, peer, rule),
                percentile_row(label, "CPU mean", [[cpu] for _, cpu in runs], 50, peer, rule),
            ]
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
