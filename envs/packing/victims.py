"""Which pods are evicted for another one."""

from __future__ import annotations

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.fitting import fits_now
from dispatchgym.envs.packing.holding import ADD, TAKE, change
from dispatchgym.envs.packing.state import Cluster, Problem


@compiled
def choose_victims(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> int:
    """Write the pods to evict from node n for pod p into `victims`; returns how many, 0 if it cannot be.

    As kube-scheduler's DefaultPreemption: take away all pods of lower priority; if p fits then, put them back
    from the highest priority on (the longest running first), keeping each with which p still fits.
    Nothing has changed afterwards.
    """
    k = cluster.env[i].slot
    count = 0
    q = cluster.node[i, n].head
    while q >= 0:
        behind = cluster.pod[i, q].after
        if problem.pod[k, q].priority < problem.pod[k, p].priority:
            cluster.victims[0, count] = q
            cluster.victims[1, count] = cluster.pod[i, q].slots
            count += 1
        q = behind
    if count == 0:
        return 0
    for v in range(1, count):  # the order in which they are put back
        q, slots = cluster.victims[0, v], cluster.victims[1, v]
        at = v
        while at > 0 and goes_back_before(problem, cluster, i, q, cluster.victims[0, at - 1]):
            cluster.victims[0, at] = cluster.victims[0, at - 1]
            cluster.victims[1, at] = cluster.victims[1, at - 1]
            at -= 1
        cluster.victims[0, at] = q
        cluster.victims[1, at] = slots
    for v in range(count):
        change(problem, cluster, i, cluster.victims[0, v], n, cluster.victims[1, v], TAKE)
    possible = fits_now(problem, cluster, i, p, n)
    chosen = 0
    for v in range(count):
        q, slots = cluster.victims[0, v], cluster.victims[1, v]
        change(problem, cluster, i, q, n, slots, ADD)
        if possible and not fits_now(problem, cluster, i, p, n):
            change(problem, cluster, i, q, n, slots, TAKE)
            cluster.victims[0, chosen] = q
            cluster.victims[1, chosen] = slots
            chosen += 1
    for v in range(chosen):
        change(problem, cluster, i, cluster.victims[0, v], n, cluster.victims[1, v], ADD)
    return chosen if possible else 0


@inlined
def goes_back_before(problem: Problem, cluster: Cluster, i: int, p: int, q: int) -> bool:
    """Pod p is more important than q: higher priority, then bound earlier, then the lower number."""
    k = cluster.env[i].slot
    ahead = problem.pod[k, p].priority - problem.pod[k, q].priority
    if ahead != 0:
        return bool(ahead > 0)
    earlier = cluster.pod[i, q].bound_at - cluster.pod[i, p].bound_at
    return bool(earlier > 0 or (earlier == 0 and p < q))
