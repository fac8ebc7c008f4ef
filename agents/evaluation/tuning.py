"""The one constant of a rule that is tuned: how many jobs to let into the shop."""

from __future__ import annotations

from functools import cache

import numpy as np

from dispatchgym.agents.evaluation.problem import derived_seed
from dispatchgym.envs.jobshop import generate
from dispatchgym.envs.jobshop import scenario as scenarios
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.solvers.jobshop import rules

CAPS: tuple[float | None, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, None)
"""Shares of the machines that are tried; None is no limit."""

TRAINING_INSTANCES = 30


@cache
def best_cap(
    rule: str, num_jobs: int, num_machines: int, config: ShopConfig, shutdown_probability: float = 0.0
) -> float | None:
    """The cap with the least mean makespan over generated instances of one size in one shop.

    The training instances and their shutdowns come from seeds made of the size, so they are the
    same in every process and never an instance that is tested. Ties go to the smaller cap.
    """
    seeds = [derived_seed("tuning", f"{num_jobs}x{num_machines}", str(k)) for k in range(TRAINING_INSTANCES)]
    instances = [generate.random_instance(np.random.default_rng(seed), num_jobs, num_machines) for seed in seeds]
    shutdowns = None
    if config.variant == "isbjssp":
        shutdowns = [
            scenarios.draw(instance, shutdown_probability, seed, config.on_interrupt)
            for instance, seed in zip(instances, seeds, strict=True)
        ]
    batch = ShopBatch.of(instances, config, scenarios=shutdowns)
    return min(CAPS, key=lambda cap: int(rules.play(batch, rule, cap=cap, seed=seeds[0]).sum()))
