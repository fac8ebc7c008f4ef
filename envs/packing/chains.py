"""Which moves make room for a pod that fits nowhere: chains of one or two moves, as far as resources tell.

A chain of depth 1 is a running pod that can go to another node, and whose leaving makes room. Of depth 2: two pods of
one node that both can go; or a pod whose way is free once another has left its goal. Only resources, the number of
pods and the static filters are looked at, and pods without GPUs; the environment's own filters have the last word.
"""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.state import I64, RUNNING, Cluster, Problem

NO_CHAIN = 3
"""Depth where there is no chain of one or two moves."""
ALTERNATIVES = 3  # columns: a node other than its own where the pod fits, another one, how many there are


@inlined
def fits_after(problem: Problem, cluster: Cluster, i: int, p: int, n: int, away: int, too: int, comes: int) -> bool:
    """Pod p fits on node n once pods `away` and `too` have left it and pod `comes` has come (-1: nobody)."""
    k = cluster.env[i].slot
    if problem.allowed[k, problem.pod[k, p].workload, n] == 0:
        return False
    if cluster.node[i, n].room + (away >= 0) + (too >= 0) - (comes >= 0) < 1:
        return False
    for r in range(problem.request.shape[2]):
        free = cluster.free[i, n, r]
        if away >= 0:
            free += problem.request[k, away, r]
        if too >= 0:
            free += problem.request[k, too, r]
        if comes >= 0:
            free -= problem.request[k, comes, r]
        if problem.request[k, p, r] > free:
            return False
    return True


@compiled
def find_alternatives(problem: Problem, cluster: Cluster, i: int, elsewhere: I64) -> None:
    """Fill `elsewhere`, shape (pods, ALTERNATIVES): where else each running pod fits now."""
    k = cluster.env[i].slot
    for q in range(cluster.env[i].next_pod):
        elsewhere[q, 0] = elsewhere[q, 1] = -1
        elsewhere[q, 2] = 0
        if cluster.pod[i, q].status != RUNNING or problem.pod[k, q].gpus > 0:
            continue
        for n in range(problem.size[k].num_nodes):
            if n != cluster.pod[i, q].host and fits_after(problem, cluster, i, q, n, -1, -1, -1):
                if elsewhere[q, 2] < 2:
                    elsewhere[q, elsewhere[q, 2]] = n
                elsewhere[q, 2] += 1


@compiled
def find_chains(problem: Problem, cluster: Cluster, i: int, p: int, deepest: int, elsewhere: I64, depth: I64) -> int:
    """Label every running pod with the depth of the shortest chain for pod p that begins with it, 0 for none.

    Chains of depth 2 are looked for where there are none of depth 1 and `deepest` allows.

    Returns:
        The least depth, NO_CHAIN if there is none.
    """
    k = cluster.env[i].slot
    least = NO_CHAIN
    for q in range(cluster.env[i].next_pod):
        depth[q] = 0
    if problem.pod[k, p].gpus > 0:
        return least
    find_alternatives(problem, cluster, i, elsewhere)
    for n in range(problem.size[k].num_nodes):
        q = cluster.node[i, n].head
        while q >= 0:
            if elsewhere[q, 2] > 0 and fits_after(problem, cluster, i, p, n, q, -1, -1):
                depth[q] = least = 1
            q = cluster.pod[i, q].after
    if least == 1 or deepest < 2:
        return least
    for n in range(problem.size[k].num_nodes):
        q = cluster.node[i, n].head
        while q >= 0:
            if elsewhere[q, 2] > 0:
                found = pair_up(problem, cluster, i, p, n, q, elsewhere, depth)
            else:
                found = clear_way(problem, cluster, i, p, n, q, elsewhere, depth)
            if found:
                least = 2
            q = cluster.pod[i, q].after
    return least


@compiled
def pair_up(problem: Problem, cluster: Cluster, i: int, p: int, n: int, q: int, elsewhere: I64, depth: I64) -> bool:
    """Pods q and another of node n both go elsewhere, and p takes their place."""
    found = False
    r = cluster.pod[i, q].after
    while r >= 0:
        if elsewhere[r, 2] > 0 and fits_after(problem, cluster, i, p, n, q, r, -1):
            apart = elsewhere[q, 2] > 1 or elsewhere[r, 2] > 1 or elsewhere[q, 0] != elsewhere[r, 0]
            if apart or fits_after(problem, cluster, i, r, elsewhere[q, 0], -1, -1, q):
                depth[q] = depth[r] = 2
                found = True
        r = cluster.pod[i, r].after
    return found


@compiled
def clear_way(problem: Problem, cluster: Cluster, i: int, p: int, n: int, q: int, elsewhere: I64, depth: I64) -> bool:
    """Pod q of node n has nowhere to go until somebody leaves another node for a third one; then p takes its place."""
    k = cluster.env[i].slot
    if not fits_after(problem, cluster, i, p, n, q, -1, -1):
        return False
    found = False
    for m in range(problem.size[k].num_nodes):
        r = cluster.node[i, m].head if m != n else -1
        while r >= 0:
            is_free = elsewhere[r, 2] > 1 or (elsewhere[r, 2] == 1 and elsewhere[r, 0] != n)
            if is_free and fits_after(problem, cluster, i, q, m, r, -1, -1):
                depth[r] = 2
                found = True
            r = cluster.pod[i, r].after
    return found


@compiled
def depth_after_binding(
    problem: Problem, cluster: Cluster, i: int, q: int, n: int, p: int, elsewhere: I64, depth: I64
) -> int:
    """Depth of the shortest chain for pod p once the picked up pod q is on node n; 0 if p fits then.

    Nothing has changed afterwards. Chains of depth 2 are not looked for.
    """
    k = cluster.env[i].slot
    for r in range(problem.request.shape[2]):
        cluster.free[i, n, r] -= problem.request[k, q, r]
    cluster.node[i, n].room -= 1
    found = -1
    for m in range(problem.size[k].num_nodes):
        if fits_after(problem, cluster, i, p, m, -1, -1, -1):
            found = 0
            break
    if found < 0:
        found = find_chains(problem, cluster, i, p, 1, elsewhere, depth)
    for r in range(problem.request.shape[2]):
        cluster.free[i, n, r] += problem.request[k, q, r]
    cluster.node[i, n].room += 1
    return int(found)


def scratch(pods: int) -> tuple[I64, I64]:
    """Room for `elsewhere` and `depth`."""
    return np.zeros((pods, ALTERNATIVES), np.int64), np.zeros(pods, np.int64)
