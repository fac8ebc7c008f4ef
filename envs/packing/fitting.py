"""What fits on a node, on which of its GPUs, and what is left there that nobody can use.

Every function works on environment `i` of a batch.
"""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.instance import WHOLE_GPU
from dispatchgym.envs.packing.state import I64, Cluster, Problem

_FULL = WHOLE_GPU


@inlined
def fits(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> bool:
    """Node n passes every filter for pod p as things stand."""
    k = cluster.env[i].slot
    w = problem.pod[k, p].workload
    if problem.allowed[k, w, n] == 0 or cluster.node[i, n].room < 1:
        return False
    for r in range(problem.request.shape[2]):
        if problem.request[k, p, r] > cluster.free[i, n, r]:
            return False
    need, milli = problem.pod[k, p].gpus, problem.pod[k, p].milli
    if need > 0:
        for g in range(problem.node[k, n].gpus):
            need -= cluster.gpu_free[i, n, g] >= milli
        if need > 0:
            return False
    for t in range(problem.size[k].num_anti):
        d = problem.anti_domain[k, t, n]
        if d >= 0 and (
            (problem.anti_owner[k, t, w] == 1 and cluster.domain[i, t, d].anti_match > 0)
            or (problem.anti_match[k, t, w] == 1 and cluster.domain[i, t, d].anti_owner > 0)
        ):
            return False
    for t in range(problem.size[k].num_spread):
        if problem.spread[k, t].owner != w:
            continue
        d = problem.spread_domain[k, t, n]
        if d < 0:
            return False
        least = cluster.domain[i, t, 0].spread
        for other in range(1, problem.spread[k, t].domains):
            least = min(least, cluster.domain[i, t, other].spread)
        if cluster.domain[i, t, d].spread + problem.spread_match[k, t, w] - least > problem.spread[k, t].skew:
            return False
    return True


@compiled
def fits_now(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> bool:
    """`fits`, compiled once: for callers that ask about few nodes."""
    return fits(problem, cluster, i, p, n)


@compiled
def best_slot(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> int:
    """The slot of a binding that leaves the choice to us: the fullest GPU that has the share, the first idle one."""
    k = cluster.env[i].slot
    milli = problem.pod[k, p].milli
    best, least = 0, _FULL + 1
    if problem.pod[k, p].gpus > 0:
        for g in range(problem.node[k, n].gpus):
            free = cluster.gpu_free[i, n, g]
            if free >= milli and free < least:
                best, least = g, free
    return int(best)


@inlined
def lowest(slots: int) -> int:
    """Number of the lowest bit that is set; 0 for none."""
    g = 0
    while slots != 0 and (slots >> g) & 1 == 0:
        g += 1
    return g


@inlined
def slots_from(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int) -> int:
    """Bit set of the GPUs that pod p gets on node n: slot g, or the first whole ones from g on."""
    k = cluster.env[i].slot
    need = problem.pod[k, p].gpus
    milli = problem.pod[k, p].milli
    slots = 0
    while need > 0:
        if cluster.gpu_free[i, n, g] >= milli:
            slots |= 1 << g
            need -= 1
        g += 1
    return slots


@compiled
def fragments(problem: Problem, k: int, n: int, cpu: int, free: I64) -> float:
    """Expected fragments of node n with `cpu` milli-CPU and GPUs `free`, in GPU thousandths (FGD's F_n).

    Source: Weng et al., USENIX ATC 2023. For a typical pod that cannot run on the node, all that is free; for one
    that can, what is free on GPUs too full for it. A pod without GPUs makes a fragment of all.
    """
    gpus = problem.node[k, n].gpus
    total = 0
    for g in range(gpus):
        total += free[g]
    if total == 0:
        return 0.0
    result = 0.0
    for m in range(problem.size[k].num_typical):
        milli, need, models = problem.typical[k, m].milli, problem.typical[k, m].gpus, problem.typical[k, m].models
        lost = 0
        fit = 0
        for g in range(gpus):
            if free[g] < milli:
                lost += free[g]
            else:
                fit += 1
        model_ok = models == 0 or (models >> np.uint64(max(problem.node[k, n].model, 0))) & np.uint64(1) == 1
        if need == 0 or fit < need or cpu < problem.typical[k, m].cpu or not model_ok:
            lost = total
        result += problem.typical[k, m].share * lost
    return float(result)
