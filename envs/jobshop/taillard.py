"""Taillard's job-shop instances, rebuilt bit for bit from their published seeds."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.instance import Instance

MODULUS = 2**31 - 1
MULTIPLIER = 16807


class Uniform:
    """The linear congruential generator of Bratley, Fox and Schrage, as Taillard uses it."""

    def __init__(self, seed: int) -> None:
        if not 0 < seed < MODULUS:
            raise UsageError(f"seed is {seed}; this generator needs 1 to {MODULUS - 1}")
        self._state = seed

    def integer(self, low: int, high: int) -> int:
        """The next whole number from `low` to `high`, both included."""
        self._state = MULTIPLIER * self._state % MODULUS
        return low + int(self._state / MODULUS * (high - low + 1))


def taillard(jobs: int, machines: int, time_seed: int, machine_seed: int, name: str) -> Instance:
    """The instance of these seeds: every job visits every machine once, durations 1 to 99.

    Args:
        time_seed: of the durations, drawn job by job; 1 to 2**31 - 2.
        machine_seed: of the routes, each a shuffle of the machines; 1 to 2**31 - 2.

    Raises:
        UsageError: a count below 1 or a seed out of range.

    Source: E. Taillard, "Benchmarks for basic scheduling problems", EJOR 64 (1993) 278-285.
    """
    if jobs < 1 or machines < 1:
        raise UsageError(f"{jobs} jobs and {machines} machines; both must be at least 1")
    times, shuffle = Uniform(time_seed), Uniform(machine_seed)
    duration = [times.integer(1, 99) for _ in range(jobs * machines)]
    machine: list[int] = []
    for _ in range(jobs):
        route = list(range(machines))
        for k in range(machines):
            other = shuffle.integer(k, machines - 1)
            route[k], route[other] = route[other], route[k]
        machine += route
    job_ptr = np.arange(0, jobs * machines + 1, machines, dtype=np.int32)
    return Instance(name, job_ptr, np.array(machine, np.int32), np.array(duration, np.int64), machines)
