"""dot-product: the node whose free amounts align least with the request, on it the fullest GPU that fits.

Source: the alignment score of Tetris (Grandl et al., SIGCOMM 2014), ranked the other way round as in the published
FGD experiments (Weng et al., USENIX ATC 2023).
"""

from __future__ import annotations

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.state import Cluster, Problem
from dispatchgym.solvers.packing.best_fit import LARGEST_CPU, LARGEST_GPU


@inlined
def score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """100 minus the mean product of request and free, as shares of the largest node, cut to a whole number.

    CPU and GPUs; in a cluster without GPUs, CPU and memory as shares of the node itself.
    """
    k = cluster.env[i].slot
    cpu = float(cluster.free[i, n, 0]) * float(problem.request[k, p, 0])
    if problem.size[k].total_milli == 0:
        memory = float(cluster.free[i, n, 1]) * float(problem.request[k, p, 1])
        own_cpu, own_memory = float(problem.capacity[k, n, 0]), float(problem.capacity[k, n, 1])
        product = cpu / max(own_cpu * own_cpu, 1.0) + memory / max(own_memory * own_memory, 1.0)
        return float(int(100.0 * (1.0 - product / 2.0)))
    gpu = 0.0
    for slot in range(problem.node[k, n].gpus):
        gpu += float(cluster.gpu_free[i, n, slot])
    gpu *= float(problem.pod[k, p].gpus * problem.pod[k, p].milli)
    product = cpu / (LARGEST_CPU * LARGEST_CPU) + gpu / (LARGEST_GPU * LARGEST_GPU)
    return float(int(100.0 * (1.0 - product / 2.0)))
