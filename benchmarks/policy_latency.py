"""How long a shipped bundle takes for one decision on one CPU thread, in each runtime, beside a dispatch rule.

A decision is the observation written, the logits computed and the best candidate taken, along greedy runs of whole
problems; forced moves are not decisions. On clusters it is besides the step before, which makes the list of choices.
For LLM engines it is the plan of a whole step, in steps whose list begins with 60 choices or more, of 64 at most; where
a network can be one kernel, "numpy" is that kernel. Wall time by decision (median and 99th percentile) and CPU time as
the mean of a run, for LLM engines its 99th percentile.
The peer is a rule, compiled, over the same problems: lrpt in shops, kube-scheduler for pods, fgd for GPUs; its time by
decision, forced moves included. For LLM engines it is least-slack, written over the same view, in such steps of its
own run.

--live measures LLM schedulers as the server asks them: 256 requests run and 500 wait, in an engine where some come and
others end all the time; the thread sleeps 10 ms before every decision, as it does while a device works, so that caches
and the core are as cold as they are live. The decision is what the server counts; beside it, what the engine takes to
write the view.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.planning import look
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, EngineView, Plan, Policy
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.sight import new_sight, see
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.state import ENDED
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.packing import twin
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import Shortlists, ShortName
from dispatchgym.serving.llm.schedulers import load_scheduler, rehearse
from dispatchgym.serving.llm.seat import Seat
from dispatchgym.solvers.jobshop import rules
from dispatchgym.solvers.llm.least_slack import LeastSlack
from dispatchgym.solvers.llm.vllm import Vllm
from dispatchgym.solvers.packing import kube_scheduler
from dispatchgym.solvers.packing import rules as packing_rules

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "MKL", "OMP")}
PEER = "lrpt"
FULL = 60
RUNNING, WAITING = 256, 500
PAUSE_S = 0.01
BARS = {"15x15": "bar 500 us", "100x20": "bar 5,000 us", "64x512": "bar 5,000 us"}


def shops(larger: bool) -> dict[str, Instance]:
    """Size -> instance."""
    found = {"15x15": instances.load("ta01"), "30x20": instances.load("ta41"), "100x20": instances.load("ta71")}
    if larger:
        found["200x20"] = random_instance(np.random.default_rng(0), 200, 20)
    return found


def decisions(instance: Instance, loaded: Bundle, most: int) -> tuple[list[float], float]:
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


def cluster_decisions(instance: PackingInstance, loaded: Bundle, most: int) -> tuple[list[float], float]:
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
        runs = [run(partial(ChoicePolicy, each.runtime, each.engine)) for _ in range(repeats + 1)][1:]
        label = f"{name} {FULL}+ choices {runtime}"
        rows += [
            percentile_row(label, "median", [timed.wall for timed in runs], 50, "least-slack", rule),
            percentile_row(label, "p99", [timed.wall for timed in runs], 99, "least-slack", rule, "bar 1,000 us"),
            percentile_row(label, "CPU p99", [timed.cpu for timed in runs], 99, "least-slack", rule, "bar 1,000 us"),
        ]
    return rows


def percentile_row(
    label: str, what: str, runs: list[list[float]], percent: float, peer: str = "", rule: Measured | None = None,
    bar: str = "",
) -> Row:  # fmt: skip
    """A percentile of each run's seconds by decision, in microseconds."""
    found = Measured.of([1e6 * float(np.percentile(run, percent)) for run in runs])
    against, known = (f"rule {peer}", rule.value) if rule is not None else (None, None)
    return Row(f"{label}, {what}", found.value, "us", found.spread, against, known, bar)


class Clocked:
    """A scheduler that notes the CPU seconds of its last decision."""

    oracle = False

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.name = inner.name
        self.cpu_s = 0.0

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.inner.reset(spec, seed)

    def decide(self, view: EngineView) -> Plan:
        began = time.thread_time()
        plan = self.inner.decide(view)
        self.cpu_s = time.thread_time() - began
        return plan


class Crowd:
    """A live engine without a device, in which as many requests run and wait at every decision."""

    def __init__(self, name: str) -> None:
        config = EngineConfig(kv_blocks=20_000, max_len=4096, max_seqs=2 * RUNNING, token_budget=2048)
        spec = EngineSpec(config, load_profile("h200-8b"), config.kv_blocks, slo_kind="mean")
        nothing = Workload(np.zeros(0), np.zeros(0, np.int32), np.zeros(0, np.int32), hash_block=config.block_tokens)
        state = fresh_state(nothing, config, spec.profile, 0, steps=False, tokens=False)
        loaded = load_scheduler(name)
        rehearse(loaded, spec)
        self.policy = loaded.policy if isinstance(loaded.policy, CompiledPolicy) else Clocked(loaded.policy)
        self.engine = Engine(state, Vllm(), spec, clock=lambda: 0.0)  # steps move the engine's own clock
        self.seat = Seat(self.engine, load_scheduler("vllm"), 60.0, 1 << 30)
        self._rng = np.random.default_rng(0)
        self._there: set[int] = set()
        e = self.engine.state.eng[0]
        while e["running"] < RUNNING:
            self.refill()
            self.seat.step()
            e = self.engine.state.eng[0]
        self.seat.install(replace(loaded, policy=self.policy))

    def refill(self) -> None:
        """End whoever runs beyond the number that should, the first admitted first, and let others come."""
        engine = self.engine
        for r in engine.state.run[: max(0, int(engine.state.eng["running"][0]) - RUNNING)].tolist():
            engine.abort(r)
        for r in [r for r in self._there if engine.state.req["state"][r] == ENDED]:
            self._there.remove(r)
            engine.release(r)
        while engine.state.eng["waiting"][0] < WAITING:
            prompt, output = self._rng.integers((32, 100), (512, 1000)).tolist()
            hashes = self._rng.integers(1, 2**62, prompt // 16)
            ttft_s = float(self._rng.choice([0.5, 2.0, 10.0]))
            self._there.add(engine.submit(prompt, output, hashes=hashes, ttft_slo_s=ttft_s, tpot_slo_s=0.1))


def live_rows(name: str, decisions: int, repeats: int) -> list[Row]:
    """The rows of a scheduler as the server asks it."""
    crowd = Crowd(name)
    wall: list[list[float]] = []
    cpu: list[list[float]] = []
    view: list[list[float]] = []
    for _ in range(repeats):
        for times in (wall, cpu, view):
            times.append([])
        for k in range(decisions):
            crowd.refill()
            time.sleep(PAUSE_S)
            if k % 4 == 3:
                began = time.perf_counter()
                crowd.engine.view()
                view[-1].append(time.perf_counter() - began)
                continue
            crowd.seat.step()
            wall[-1].append(crowd.seat.seconds)
            cpu[-1].append(crowd.policy.cpu_s if isinstance(crowd.policy, Clocked) else 0.0)
    crowd.seat.close()
    label, bar = f"{name} live, {RUNNING} run, {WAITING} wait", "bar 1,000 us"
    rows = [percentile_row(f"{label}, view", "median", view, 50)]
    if isinstance(crowd.policy, Clocked):  # else it decides inside the engine
        rows += [
            percentile_row(label, "median", wall, 50),
            percentile_row(label, "p99", wall, 99, bar=bar),
            percentile_row(label, "CPU median", cpu, 50),
            percentile_row(label, "CPU p99", cpu, 99, bar=bar),
        ]
    return rows


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one bundle."""
    path = bundles.find(name)
    manifest = bundles.manifest_of(path)
    repeats, most = (1, 60) if options.quick else (5, 300)
    rows = []
    loaded: dict[str, Bundle] = {
        r: bundles.load(path, r) for r in RUNTIMES if r != "onnx" or bundles.ONNX in manifest["files"]
    }
    first = next(iter(loaded.values()))
    graph = first.runtime.spec.graph
    if manifest["family"] == "llm":
        return engine_rows(name, loaded, 300 if options.quick else 600, repeats)
    timed: dict[str, tuple[str, Measured, Callable[[Bundle, int], tuple[list[float], float]]]] = {}
    if manifest["family"] == "packing":
        peer = "fgd" if graph == "bindings" else "kube-scheduler"
        for size, cluster in clusters(graph, larger=not options.quick).items():
            rule = by_cluster_rule(graph, cluster, repeats)
            timed[size] = peer, rule, partial(cluster_decisions, cluster)
    else:
        for size, instance in shops(larger=not options.quick).items():
            rule = by_rule(first.shop, instance, repeats)
            timed[size] = PEER, rule, partial(decisions, instance)
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
    parser.add_argument(
        "--live", nargs="+", metavar="SCHEDULER", default=[], help="LLM schedulers as the server asks them, alone"
    )
    options = parser.parse_args()
    if not ONE_THREAD.items() <= os.environ.items():  # NumPy reads them when it is imported: start over
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    names = options.bundles or ([] if options.live else bundles.shipped())
    rows = [row for name in names for row in measure(name, options)]
    decisions, repeats = (100, 1) if options.quick else (400, 5)
    rows += [row for name in options.live for row in live_rows(name, decisions, repeats)]
    publish(rows, options.json, ["numpy", "onnxruntime", "torch", "numba"])


if __name__ == "__main__":
    main()
