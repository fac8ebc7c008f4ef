"""Speed and memory of the job-shop environments, beside JSSEnv and job-shop-lib in the same run.

Figures are steps per second of one core's CPU time, random legal actions, their choice included. The peers
live in an environment of their own: `make bench-peers` builds .venv-peers; without it their columns stay empty.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
from harness.rows import Measured, Row, arguments, publish, rate
from numba import njit

import dispatchgym  # noqa: F401 (registers the environments)
from dispatchgym.envs.jobshop import library, scenario
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.solvers.jobshop import rules

SIZES = {"15x15": ("ta01", 256), "100x20": ("ta71", 32)}  # instance and environments in a batch
PEERS = Path(__file__).resolve().parent.parent / ".venv-peers" / "bin" / "python"


@njit
def pick(mask: np.ndarray, draw: np.ndarray, out: np.ndarray) -> None:
    """A uniform legal action for every environment."""
    for i in range(len(mask)):
        legal = mask[i].sum()
        out[i] = 0
        nth = draw[i] % max(legal, 1)
        for a in range(mask.shape[1]):
            if mask[i, a]:
                if nth == 0:
                    out[i] = a
                    break
                nth -= 1


def batch_of(instance: Instance, config: ShopConfig, graph: GraphName, n: int) -> ShopBatch:
    """n environments on one instance, the interrupting ones each with its own shutdowns."""
    batch = ShopBatch.of([instance], config, graph, envs_per_instance=n)
    if config.variant == "isbjssp":
        batch.load_scenarios(range(n), [scenario.draw(instance, 0.1, seed) for seed in range(n)])
        batch.reset()
    return batch


def random_episodes(batch: ShopBatch, observe: bool) -> int:
    """Play all environments to their end; returns the steps made."""
    rng = np.random.default_rng(0)
    actions = np.zeros(batch.num_envs, np.int64)
    batch.reset()
    steps = 0
    while True:
        if observe:
            batch.observe()
        live = batch.num_envs - int(batch.over.sum())
        if live == 0:
            return steps
        pick(batch.mask, rng.integers(0, 1 << 30, batch.num_envs), actions)
        batch.step(actions)
        steps += live


def batched(repeats: int) -> list[Row]:
    rows = []
    bars = {("jssp", "ops", "15x15"): "bar 500,000", ("jssp", "ops", "100x20"): "bar 60,000"}
    bars |= {(v, "ops", "15x15"): "bar 150,000" for v in ("bws", "isbjssp")}
    for size, (name, n) in SIZES.items():
        for variant in ("jssp", "bws", "isbjssp"):
            for graph in ("ops", "jobs"):
                batch = batch_of(library.load(name), ShopConfig(variant), graph, n)
                speed = rate(partial(random_episodes, batch, True), repeats)
                label = f"{variant} batch of {n}, {graph} graph, {size}"
                rows.append(Row(label, speed.value, "steps/s", speed.spread, bar=bars.get((variant, graph, size), "")))
    return rows


def rollouts(repeats: int) -> list[Row]:
    rows = []
    for rule in ("lrpt", "fdd/mwkr"):
        batch = ShopBatch.of([library.load("ta01")], ShopConfig(), envs_per_instance=256)

        def run(batch: ShopBatch = batch, rule: str = rule) -> int:
            rules.play(batch, rule)
            return int(batch.shop.decisions.sum())

        speed = rate(run, repeats)
        rows.append(
            Row(
                f"jssp rule {rule}, no observation, 15x15",
                speed.value,
                "decisions/s",
                speed.spread,
                bar="bar 1,000,000",
            )
        )
    return rows


def single(size: str, graph: str, repeats: int) -> Measured:
    """One gymnasium environment, as a user without vectors steps it."""
    env = gymnasium.make(
        "dispatchgym/JobShop-v0", instance=SIZES[size][0], graph=graph, disable_env_checker=True
    ).unwrapped
    rng = np.random.default_rng(0)

    def run() -> int:
        obs, _ = env.reset(seed=0)
        steps, over = 0, False
        while not over:
            legal = np.flatnonzero(obs["action_mask"])
            obs, _, over, _, _ = env.step(legal[rng.integers(len(legal))])
            steps += 1
        return steps

    return rate(run, repeats)


def peers(episodes: int, sizes: list[str]) -> dict[str, Measured]:
    """The peers' speeds, measured in this same run; empty where they are not installed."""
    if not PEERS.exists():
        print("note: no peers; `make bench-peers` installs them into .venv-peers", file=sys.stderr)
        return {}
    routes = {}
    for size in sizes:
        i = library.load(SIZES[size][0])
        pairs = list(zip(i.machine.tolist(), i.duration.tolist(), strict=True))
        routes[size] = [pairs[a:b] for a, b in zip(i.job_ptr[:-1], i.job_ptr[1:], strict=True)]
    request = json.dumps({"instances": routes, "episodes": episodes, "limit": 300})
    script = str(Path(__file__).parent / "peers" / "jobshop.py")
    out = subprocess.run([str(PEERS), script], input=request, capture_output=True, text=True, check=False)
    if out.returncode:
        raise SystemExit(f"error: the peers failed: {out.stderr.strip().splitlines()[-1]}")
    return {name: Measured.of(rates) for name, rates in json.loads(out.stdout).items()}


def singles(repeats: int, sizes: list[str]) -> list[Row]:
    others = peers(repeats, sizes)
    rows = []
    for size in sizes:
        for graph, peer in (("jobs", f"JSSEnv {size}"), ("ops", f"job-shop-lib graph env {size}")):
            own, other = single(size, graph, repeats), others.get(peer)
            bar = "bar 3 x" if graph == "jobs" else ""
            rows.append(
                Row(
                    f"jssp gymnasium env, {graph} graph, {size}",
                    own.value,
                    "steps/s",
                    own.spread,
                    peer if other else None,
                    other.value if other else None,
                    bar,
                )
            )
    return rows


def memory() -> Row:
    """Growth of the resident set by a batch of 1,024 that has observed and stepped, in a process of its own."""
    code = (
        "import os, numpy as np\n"
        "from dispatchgym.envs.jobshop import library\n"
        "from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20\n"
        "warm = ShopBatch.of([library.load('ta01')], ShopConfig('bws'), 'ops'); warm.observe(); warm.step([0])\n"
        "before = resident()\n"
        "batch = ShopBatch.of([library.load('ta01')] * 1024, ShopConfig('bws'), 'ops')\n"
        "for _ in range(20): seen = batch.observe(); batch.step(batch.mask.argmax(axis=1))\n"
        "print(resident() - before)\n"
    )
    grown = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    return Row("memory of 1,024 batched envs with ops graphs, 15x15", grown, "MiB", (grown, grown), bar="bar 500 MB")


def compile_time() -> Row:
    """CPU seconds to compile every kernel into an empty cache."""
    code = (
        "import time; t = time.process_time()\n"
        "from dispatchgym.envs.jobshop import library\n"
        "from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig\n"
        "from dispatchgym.solvers.jobshop import rules\n"
        "b = ShopBatch.of([library.load('ft06')], ShopConfig('bws')); b.observe(); b.step([0])\n"
        "rules.play(b, 'mwkr'); print(time.process_time() - t)\n"
    )
    with tempfile.TemporaryDirectory() as empty:
        env = {**os.environ, "XDG_CACHE_HOME": empty}
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    used = float(out.stdout)
    return Row("compiling all kernels once", used, "CPU s", (used, used), bar="bar 30 s")


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    repeats = 2 if options.quick else 7
    began = time.perf_counter()
    rows = batched(repeats) + rollouts(repeats)
    rows += singles(repeats, ["15x15"] if options.quick else list(SIZES))
    rows.append(memory())
    if not options.quick:
        rows.append(compile_time())
    publish(rows, options.json, ["numba", "numpy", "gymnasium"])
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
