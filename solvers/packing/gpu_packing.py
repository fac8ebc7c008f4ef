"""gpu-packing: shared GPUs first, then free GPUs of a used node, then an empty node; the fullest GPU that fits.

Source: the baseline of that name in Weng et al., USENIX ATC 2023.
"""

from __future__ import annotations

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.instance import WHOLE_GPU
from dispatchgym.envs.packing.state import Cluster, Problem

_WHOLE = WHOLE_GPU


@inlined
def score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """Whole numbers from 0 to 100, 0 for pods without GPUs.

    Above 90: the share goes onto a GPU in use, higher the fuller it is. 50 less the idle GPUs taken on a node in
    use, at least 33. 33 less the GPUs of an empty node.
    """
    k = cluster.env[i].slot
    need, milli, gpus = problem.pod[k, p].gpus, problem.pod[k, p].milli, problem.node[k, n].gpus
    if need == 0:
        return 0.0
    idle = 0
    least = _WHOLE + 1  # the fullest GPU that fits
    for slot in range(gpus):
        free = cluster.gpu_free[i, n, slot]
        idle += free == _WHOLE
        if free >= milli and free < least:
            least = free
    if idle == gpus:
        return float(max(33 - idle, idle))
    if least == _WHOLE:
        return float(max(50 - need, 33))
    return float(max(100 - least * 100 // _WHOLE // 10, 50))
