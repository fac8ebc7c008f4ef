"""best-fit: the node with the least left over afterwards, on it the fullest GPU that fits."""

from __future__ import annotations

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.state import Cluster, Problem

LARGEST_CPU = 128_000.0  # milli-CPU of the largest node, as the published runs have it
LARGEST_GPU = 8_000.0  # GPU thousandths


@inlined
def leftover(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> float:
    """Half CPU, half GPUs left on node n after pod p, as shares of the largest node.

    In a cluster without GPUs, half CPU and half memory as shares of the node itself.
    """
    k = cluster.env[i].slot
    cpu = float(cluster.free[i, n, 0] - problem.request[k, p, 0])
    if problem.size[k].total_milli == 0:
        memory = float(cluster.free[i, n, 1] - problem.request[k, p, 1])
        own_cpu, own_memory = float(problem.capacity[k, n, 0]), float(problem.capacity[k, n, 1])
        return 0.5 * cpu / max(own_cpu, 1.0) + 0.5 * memory / max(own_memory, 1.0)
    gpu = -float(problem.pod[k, p].gpus * problem.pod[k, p].milli)
    for g in range(problem.node[k, n].gpus):
        gpu += float(cluster.gpu_free[i, n, g])
    return 0.5 * cpu / LARGEST_CPU + 0.5 * gpu / LARGEST_GPU


@inlined
def score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """100 minus the leftover in per cent, cut to a whole number as the published scheduler does."""
    return float(int((1.0 - leftover(problem, cluster, i, p, n)) * 100.0))
