"""Speed of training: decisions per second of whole PPO iterations, rollout and update together.

On the CPU: stock PPO with our environment, buffer and policy beside sb3-contrib's MaskablePPO on our padded
environment, in turns in one run, one thread each: 15x15, 16 environments, as many decisions per iteration, as many
epochs, minibatches as large, networks of 3 rounds over the same graph: the peer's once with a plain GIN, to which all
links are alike, and once with a matrix a link, which our network has, too; ours with no more weights than the plain
GIN. A decision is a choice that a network made; the peer's is asked about forced moves, which we carry out, and they
count as its decisions. Steps are operations dispatched, forced ones included.

With --gpu: the shipped recipe of the classic shop on a GPU, what its time goes into, and what bounds it.
With --five-minutes: what PPO reaches with that recipe in a wall budget, without its warm start, judged on Taillard's
instances.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness.rows import Measured, Row, arguments, publish
from harness.training_profile import print_profile
from stable_baselines3 import PPO

from dispatchgym.agents.playing import makespans
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.rollout_buffer import RaggedRolloutBuffer
from dispatchgym.agents.training import run as training
from dispatchgym.agents.training.config import TrainConfig, dump, load
from dispatchgym.envs.jobshop import library
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.solvers.jobshop import rules

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
RECIPE = ROOT / "configs" / "jobshop" / "taillard.yaml"
WIDTH, ROUNDS, EPOCHS, MINIBATCH, ENVS = 64, 3, 4, 128, 16
OPERATIONS = 15 * 15
GIN_SIZED = {"jobs": 32, "ops": 24}  # widths at which our network has no more weights than the plain GIN of width 64
HUBS = {"jobs": "false", "ops": "true"}  # as in the recipes: with a node a job, attention is enough
RIVALS = {"jobs": ["next"], "ops": ["first", "needs"]}
PUBLISHED_GREEDY = 13.4  # the best mean gap of a greedy learned dispatcher on Taillard's instances that we know of


class Peer:
    """MaskablePPO in a process of its own, one iteration at a time."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        script = str(Path(__file__).parent / "peers" / "maskable_ppo.py")
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [str(PEERS), script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.weights = int(self._ask(json.dumps(request))["ready"])

    def iteration(self) -> dict[str, float]:
        return self._ask("go")

    def _ask(self, line: str) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("error: the peer failed; its error is above")
        found: dict[str, float] = json.loads(answer)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def beside_maskable_ppo(graph: str, repeats: int, envs: int, extractors: Sequence[str]) -> list[Row]:
    """Our iterations and the peer's in turns, 15x15."""
    encoder = f"width: {GIN_SIZED[graph]}, layers: {ROUNDS}, heads: 4, hubs: {HUBS[graph]}, rivals: {RIVALS[graph]}"
    config = load(
        None,
        [
            "device=cpu",
            "precision=float32",
            f"graph={graph}",
            "instances.sizes=[[15, 15]]",
            f"rollout.instances={envs // 4}",
            "rollout.rollouts=4",
            f"policy.encoder={{{encoder}}}",
            f"ppo.epochs={EPOCHS}",
            f"ppo.minibatch={MINIBATCH}",
            "ppo.advantage=gae",
            "ppo.value=0.05",
        ],
    )
    model = training.build(config)
    model.learn(model.n_envs * model.n_steps)  # compiles; its decisions set the length of the peer's rollouts
    steps = round(buffer_of(model).num_decisions / envs)
    peers = {}
    if PEERS.exists():
        request = {"env": "dispatchgym/JobShop-v0", "instance": "ta01", "graph": graph, "envs": envs, "steps": steps}
        request |= {"epochs": EPOCHS, "minibatch": MINIBATCH, "width": WIDTH, "rounds": ROUNDS}
        peers = {name: Peer({**request, "typed": name == "typed GIN"}) for name in extractors}
    else:
        print("note: no peer; `make bench-peers` installs it into .venv-peers", file=sys.stderr)
    own: list[dict[str, float]] = []
    others: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
    for _ in range(repeats):
        own.append(iteration(model))
        for name, peer in peers.items():
            others[name].append(peer.iteration())
    about = f"{envs} envs, {graph} graph, 15x15"
    weights = {"ours": sum(p.numel() for p in model.policy.parameters())}
    weights |= {name: peer.weights for name, peer in peers.items()}
    print(f"{about}: {steps} decisions per environment and iteration; weights: {weights}")
    for peer in peers.values():
        peer.close()
    rows = []
    for what, clock, unit in (
        ("steps", "cpu_s", "steps/CPU s"),
        ("steps", "wall_s", "steps/s"),
        ("decisions", "cpu_s", "decisions/CPU s"),
    ):
        rate = Measured.of([n[what] / n[clock] for n in own])
        for name, found in others.items() or {"": own}.items():
            against = Measured.of([n["decisions"] / n[clock] for n in found])  # a step is a decision to the peer
            peer_name, peer_value = (f"MaskablePPO, {name}", against.value) if others else (None, None)
            bar = "bar 2.5 x" if unit == "steps/CPU s" else ""
            rows.append(Row(f"PPO, {about}", rate.value, unit, rate.spread, peer_name, peer_value, bar))
    return rows


def iteration(model: PPO) -> dict[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    model.learn(model.n_envs * model.n_steps, reset_num_timesteps=False)
    return {
        "steps": model.n_envs * OPERATIONS,
        "decisions": buffer_of(model).num_decisions,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
    }


def buffer_of(model: PPO) -> RaggedRolloutBuffer:
    assert isinstance(model.rollout_buffer, RaggedRolloutBuffer)
    return model.rollout_buffer


def on_gpu(config: TrainConfig, variations: Mapping[str, Sequence[str]], iterations: int) -> list[Row]:
    """Decisions per second of the recipe and of variations of it, and a profile of the last one."""
    rows = []
    for name, overrides in variations.items():
        varied = load_over(config, overrides)
        model = training.build(varied)
        training.fit_scale(model.policy, varied)  # type: ignore[arg-type]  # ours
        is_cuda = model.device.type == "cuda"
        timed(model)
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        found = [timed(model) for _ in range(iterations)]
        rate = Measured.of([n["decisions"] / (n["rollout_s"] + n["update_s"]) for n in found])
        label = f"{name}, {model.n_envs:,} envs"
        rows.append(Row(f"PPO, {label}", rate.value, "decisions/s", rate.spread, bar="bar 60,000"))
        for part in ("rollout_s", "update_s"):
            seconds = Measured.of([n[part] for n in found])
            rows.append(Row(f"  {part[:-2]} of an iteration", seconds.value, "s", seconds.spread))
        decisions = Measured.of([n["decisions"] for n in found])
        rows.append(Row("  decisions of an iteration", decisions.value, "decisions", decisions.spread))
        if is_cuda:
            peak = torch.cuda.max_memory_allocated() / 2**30
            rows.append(Row("  peak of the GPU memory", peak, "GiB", (peak, peak)))
        print_profile(name, model)
        del model
    return rows


def load_over(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """`config` with dotted overrides."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(dump(config))
        file.flush()
        return load(Path(file.name), overrides)


def timed(model: PPO) -> dict[str, float]:
    """One iteration, rollout and update apart; the device is waited for at the end of each."""

    def wait() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    _, callback = model._setup_learn(10**12, reset_num_timesteps=False)
    assert model.env is not None
    began = wait()
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    between = wait()
    model.train()
    return {
        "decisions": buffer_of(model).num_decisions,
        "rollout_s": between - began,
        "update_s": wait() - between,
    }


class BudgetSpentError(Exception):
    """Raised between two iterations; what was best is on disk."""


def five_minutes(config: TrainConfig, budget_s: float, folder: Path, suite: Sequence[str]) -> list[Row]:
    """Train for `budget_s` seconds of wall time, then play Taillard's instances greedily with the averaged weights.

    Compiling the kernels, once a machine, and one iteration before that come on top and are shown.
    """
    started = time.perf_counter()
    model = training.build(config)
    timed(model)
    began = time.perf_counter()
    per_iteration = sum(timed(model)[part] for part in ("rollout_s", "update_s"))
    del model
    left = budget_s - (time.perf_counter() - began)
    validations = 1.0 + 0.3 / config.validation.every * 10  # their share of the time, roughly
    iterations = max(int(0.95 * left / (per_iteration * validations)), 1)
    print(f"{per_iteration:.2f} s an iteration: {iterations} of them in the {left:.0f} s that are left", flush=True)
    last = {"validation/greedy": float("nan")}

    def report(number: int, row: Mapping[str, float], _: Mapping[str, float]) -> None:
        if "validation/greedy" in row:
            last.update(row)
            print(f"{time.perf_counter() - began:5.0f} s  {number:4}  {row['validation/greedy']:.2f} %", flush=True)
        if time.perf_counter() - began > budget_s:
            raise BudgetSpentError

    try:
        network: GraphNetwork = training.train(replace(config, iterations=iterations), folder, report).average
    except BudgetSpentError:
        raise SystemExit(f"error: the budget of {budget_s:.0f} s was spent before the schedule had ended") from None
    used = time.perf_counter() - began
    rows = [
        Row("compiling, and a first iteration", began - started, "s", (began - started, began - started)),
        Row("training, validation included", used, "s", (used, used), bar=f"bar {budget_s:.0f} s"),
    ]
    return rows + taillard_gaps(network, config, suite)


def taillard_gaps(network: GraphNetwork, config: TrainConfig, suite: Sequence[str]) -> list[Row]:
    """Mean gap to the best known makespans: greedy, beside LRPT with the same and with the non-delay builder."""
    instances = [library.load(name) for name in suite]
    known = [library.best_known(name, "jssp") for name in suite]
    best = [reference.value for reference in known if reference is not None]
    found = {"learned, greedy": makespans(network, instances, config.shop, lanes=config.rollout.lanes)}
    for builder, shop in (("the same builder", config.shop), ("no delay", ShopConfig(config.shop.variant))):
        found[f"lrpt, {builder}"] = rules.play(ShopBatch.of(instances, shop), "lrpt")
    rows = []
    for name, made in found.items():
        gaps = [100.0 * (float(c) / b - 1.0) for c, b in zip(made, best, strict=True)]
        value = sum(gaps) / len(gaps)
        bar = f"published greedy {PUBLISHED_GREEDY}" if name.startswith("learned") else ""
        rows.append(
            Row(f"mean gap of {len(suite)} Taillard instances, {name}", value, "%", (min(gaps), max(gaps)), bar=bar)
        )
    return rows


def parser() -> argparse.ArgumentParser:
    p = arguments(__doc__)
    p.add_argument("--gpu", action="store_true", help="decisions/s of the shipped recipe, and a profile")
    p.add_argument("--five-minutes", action="store_true", help="train in a wall budget, judge on Taillard's instances")
    p.add_argument("--device", default="cuda", help="of --gpu and --five-minutes (default: cuda)")
    p.add_argument("--budget", type=float, default=300.0, metavar="S", help="wall seconds of --five-minutes")
    p.add_argument("--recipe", type=Path, default=RECIPE, metavar="YAML", help="of --gpu and --five-minutes")
    p.add_argument("--graphs", nargs="+", choices=sorted(RIVALS), default=["ops", "jobs"], help="of the CPU section")
    p.add_argument("override", nargs="*", metavar="key=value", help="override of the recipe, such as rollout.lanes=8")
    return p


def main() -> None:
    options = parser().parse_args()
    began = time.perf_counter()
    torch.set_num_threads(1)
    rows: list[Row] = []
    if options.gpu or options.five_minutes:
        fixed = [f"device={options.device}", "tracking.wandb=disabled", "warm_start.teacher=none"]
        config = load(options.recipe, [*fixed, *options.override])
    if options.gpu:
        sizes = "instances.sizes=[[15, 15], [20, 15]]"
        variations = {
            "recipe": [sizes],
            "recipe in bf16": [sizes, "precision=bf16"],
            "recipe in bf16, half of the decisions": [sizes, "precision=bf16", "ppo.share=0.5"],
        }
        kept = list(variations)[:1] if options.quick else list(variations)
        rows += on_gpu(config, {name: variations[name] for name in kept}, 2 if options.quick else 3)
    if options.five_minutes:
        names = library.names("ta")
        suite = names[:10] if options.quick else names
        with tempfile.TemporaryDirectory() as folder:
            rows += five_minutes(config, options.budget, Path(folder), suite)
    if not (options.gpu or options.five_minutes):
        for graph in options.graphs[:1] if options.quick else options.graphs:
            if options.quick:
                rows += beside_maskable_ppo(graph, 2, 4, ["GIN"])
            else:
                rows += beside_maskable_ppo(graph, 5, ENVS, ["GIN", "typed GIN"])
    publish(rows, options.json, ["torch", "stable-baselines3", "numba"])
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
