"""Pods that wait: in the queue, or set aside until something changes.

Every function works on environment `i` of a batch.
"""

from __future__ import annotations

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.fitting import fits_now
from dispatchgym.envs.packing.state import ASIDE, QUEUED, Cluster, Mode, Problem


@inlined
def push(cluster: Cluster, i: int, p: int) -> None:
    """Put pod p into the queue, behind those of its priority."""
    cluster.pod[i, p].status = QUEUED
    cluster.pod[i, p].stamp = cluster.env[i].ticks
    cluster.env[i].ticks += 1
    cluster.queue[i, cluster.env[i].queued] = p
    cluster.env[i].queued += 1


@inlined
def drop_from_queue(cluster: Cluster, i: int, p: int) -> None:
    last = cluster.env[i].queued - 1
    for at in range(last + 1):
        if cluster.queue[i, at] == p:
            cluster.queue[i, at] = cluster.queue[i, last]
            cluster.env[i].queued = last
            return


@inlined
def set_aside(cluster: Cluster, i: int, p: int, declined: int) -> None:
    drop_from_queue(cluster, i, p)
    cluster.pod[i, p].declined = declined
    cluster.pod[i, p].status = ASIDE
    cluster.env[i].aside += 1


@compiled
def recall(problem: Problem, cluster: Cluster, mode: Mode, i: int, n: int) -> None:
    """Put pods set aside back into the queue if what has just left node n may make room for them.

    Where pods can be evicted or moved, or rules look beyond the node, that is any of them; and so it is of a pod
    that had a choice and was told to wait.
    """
    if cluster.env[i].aside == 0:
        return
    k = cluster.env[i].slot
    every = mode.evict or mode.moves > 0 or problem.size[k].num_anti > 0 or problem.size[k].num_spread > 0
    for p in range(cluster.env[i].next_pod):
        if cluster.pod[i, p].status != ASIDE:
            continue
        if every or cluster.pod[i, p].declined == 1 or fits_now(problem, cluster, i, p, n):
            cluster.env[i].aside -= 1
            push(cluster, i, p)


@compiled
def first_in_queue(problem: Problem, cluster: Cluster, i: int) -> int:
    """The queued pod of the highest priority, the longest queued among equals."""
    k = cluster.env[i].slot
    best = cluster.queue[i, 0]
    for at in range(1, cluster.env[i].queued):
        p = cluster.queue[i, at]
        ahead = problem.pod[k, p].priority - problem.pod[k, best].priority
        if ahead > 0 or (ahead == 0 and cluster.pod[i, p].stamp < cluster.pod[i, best].stamp):
            best = p
    return int(best)
