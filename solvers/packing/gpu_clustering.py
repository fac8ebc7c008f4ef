"""gpu-clustering: pods of one GPU request size together on a node; the fullest GPU that fits.

Source: after Gandiva (Xiao et al., OSDI 2018), the baseline of that name in Weng et al., USENIX ATC 2023.
"""

from __future__ import annotations

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.state import Cluster, Problem
from dispatchgym.solvers.packing.best_fit import LARGEST_GPU


@inlined
def size_of(gpus: int, milli: int) -> int:
    """0 for a share of a GPU, the number of whole GPUs otherwise."""
    return 0 if milli < 1000 else gpus


@inlined
def score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """Whole numbers from 0 to 100, 0 for pods without GPUs; within each quarter, higher the fuller the node is.

    75 on: only pods of this size run there. 50 on: such pods among others. 25 on: no GPU pods. Below: only others.
    """
    k = cluster.env[i].slot
    if problem.pod[k, p].gpus == 0:
        return 0.0
    own = size_of(problem.pod[k, p].gpus, problem.pod[k, p].milli)
    same = other = False
    q = cluster.node[i, n].head
    while q >= 0:
        if problem.pod[k, q].gpus > 0:
            if size_of(problem.pod[k, q].gpus, problem.pod[k, q].milli) == own:
                same = True
            else:
                other = True
        q = cluster.pod[i, q].after
    left = 0
    for slot in range(problem.node[k, n].gpus):
        left += cluster.gpu_free[i, n, slot]
    base = 75.0 if same and not other else 50.0 if same else 25.0 if not other else 0.0
    return base + float(int(25.0 * (LARGEST_GPU - float(left)) / LARGEST_GPU))
