"""Placements per second of CPU time on one core: whole runs, and single decisions with their observations.

Peers, as published by others on other machines: a KWOK cluster makes about 20 pods a second, kube-scheduler's own
continuous benchmark runs at 680 to 810, the published FGD simulator at about 18 on the openb cluster.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from harness.rows import Measured, Row, arguments, publish, rate

import dispatchgym  # noqa: F401 (registers the ids)
from dispatchgym.envs.packing import generate, twin
from dispatchgym.envs.packing.batch import ALLOCATED, PackingBatch, PackingConfig
from dispatchgym.solvers.packing import kube_scheduler, rules

REAL_SCHEDULER, FGD_SIMULATOR = 810.0, 18.0


def main() -> None:
    options = arguments(__doc__).parse_args()
    repeats = 2 if options.quick else 7
    rows = []
    for nodes, clusters, bar in ((32, 20, "20,000"), (1200, 1, "2,000")):
        instances = [generate.priority_matters(nodes, 8, 4, 0.95, seed) for seed in range(clusters)]
        for evict in (False, True):
            batch = PackingBatch.of(instances, PackingConfig(evict=evict))

            def run(batch: PackingBatch = batch) -> int:
                batch.reset()
                kube_scheduler.play(batch)
                return sum(int((batch.log(i).rows[:, 1] == 0).sum()) for i in range(batch.num_envs))

            measured = rate(run, repeats)
            name = f"kube-scheduler, {nodes} nodes{', preemption' if evict else ''}"
            bound = f"bar {bar}" if not evict else ""
            rows.append(
                Row(name, measured.value, "placements/s", measured.spread, "scheduler_perf", REAL_SCHEDULER, bound)
            )

    instance = twin.load(0)
    rules.rollout(instance, "fgd", PackingConfig(reward=ALLOCATED))
    seconds = []
    for _ in range(repeats):
        before = time.process_time()
        rules.rollout(instance, "fgd", PackingConfig(reward=ALLOCATED))
        seconds.append(time.process_time() - before)
    spent = Measured.of(seconds)
    rows.append(Row("fgd, full openb twin", spent.value, "CPU s a run", spent.spread, bar="bar 20"))
    speed = Measured.of([instance.num_pods / s for s in seconds])
    rows.append(Row("fgd, full openb twin", speed.value, "pods/s", speed.spread, "FGD simulator", FGD_SIMULATOR))

    for name in ("dispatchgym/PodPacking-v0", "dispatchgym/GpuPacking-v0"):
        env = gymnasium.make(name, disable_env_checker=True)

        def episodes(env: gymnasium.Env[Any, Any] = env) -> int:
            rng, steps = np.random.default_rng(0), 0
            for seed in range(3):
                obs, _ = env.reset(seed=seed)
                over = False
                while not over:
                    obs, _, over, _, _ = env.step(rng.choice(np.flatnonzero(obs["action_mask"])))
                    steps += 1
            return steps

        measured = rate(episodes, repeats)
        rows.append(Row(f"{name}, random policy", measured.value, "steps/s", measured.spread))
    publish(rows, options.json, ("numpy", "numba", "gymnasium"))


if __name__ == "__main__":
    main()
