"""random: a node drawn uniformly from those that fit, and on it a GPU drawn uniformly from those that fit."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.state import Cluster, Problem


@inlined
def noise(key: int, number: int) -> float:
    """A number in [0, 1) that `key` and `number` determine: one splitmix64 step (Steele, Lea and Flood 2014)."""
    z = np.uint64(key) + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inlined
def score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """The node's draw, and far behind it the best draw of the GPUs of which slot g is the only one offered."""
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    best = 0.0
    if problem.pod[cluster.env[i].slot, p].gpus == 1:
        for twin in range(gpus):
            if cluster.gpu_free[i, n, twin] == cluster.gpu_free[i, n, g]:
                best = max(best, noise(key, nodes + n * gpus + twin))
    return noise(key, n) + 1e-9 * best
