"""fgd: fragmentation gradient descent, the node and GPU where the expected fragmentation rises least.

Source: Weng et al., Beware of Fragmentation, USENIX ATC 2023.
"""

from __future__ import annotations

import math

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.fitting import fragments
from dispatchgym.envs.packing.instance import WHOLE_GPU
from dispatchgym.envs.packing.state import Cluster, Problem

_WHOLE = WHOLE_GPU


@inlined
def score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """100 sigmoid of the fall of the node's expected fragments in GPUs, cut to a whole number as published.

    Needs an environment that keeps fragmentation up to date (`PackingConfig.fragments`).
    """
    k = cluster.env[i].slot
    need, milli = problem.pod[k, p].gpus, problem.pod[k, p].milli
    for slot in range(cluster.gpu_free.shape[2]):
        cluster.trial[slot] = cluster.gpu_free[i, n, slot]
        if need > 0 and slot >= g and cluster.trial[slot] >= milli:
            cluster.trial[slot] -= milli
            need -= 1
    after = fragments(problem, k, n, cluster.free[i, n, 0] - problem.request[k, p, 0], cluster.trial)
    fall = (cluster.node[i, n].frag - after) / float(_WHOLE)
    return float(int(100.0 / (1.0 + math.exp(-fall))))
