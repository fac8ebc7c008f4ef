"""What running pods hold: counts of nodes, GPUs and domains, and the list of pods on every node.

Every function works on environment `i` of a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.packing.fitting import fragments
from dispatchgym.envs.packing.state import RUNNING, Cluster, Mode, Problem

ADD: Any = np.int64(1)  # typed: with plain numbers numba would compile `change` once for each
TAKE: Any = np.int64(-1)


@compiled
def hold(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int, n: int, slots: int) -> None:
    """Take what pod p needs from node n and these GPUs; the pod runs."""
    change(problem, cluster, i, p, n, slots, ADD)
    if mode.fragments:
        refragment(problem, cluster, i, n)
    cluster.pod[i, p].status = RUNNING
    cluster.pod[i, p].host = n
    cluster.pod[i, p].slots = slots
    first = cluster.node[i, n].head
    cluster.pod[i, p].after = first
    cluster.pod[i, p].before = -1
    if first >= 0:
        cluster.pod[i, first].before = p
    cluster.node[i, n].head = p


@compiled
def release(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int) -> None:
    """Give back what pod p holds; the caller sets its status."""
    n = cluster.pod[i, p].host
    change(problem, cluster, i, p, n, cluster.pod[i, p].slots, TAKE)
    if mode.fragments:
        refragment(problem, cluster, i, n)
    ahead, behind = cluster.pod[i, p].before, cluster.pod[i, p].after
    if ahead >= 0:
        cluster.pod[i, ahead].after = behind
    else:
        cluster.node[i, n].head = behind
    if behind >= 0:
        cluster.pod[i, behind].before = ahead
    cluster.pod[i, p].host = -1
    cluster.pod[i, p].slots = 0


@compiled
def refragment(problem: Problem, cluster: Cluster, i: int, n: int) -> None:
    """Bring the fragmentation of node n up to date."""
    for g in range(cluster.gpu_free.shape[2]):
        cluster.trial[g] = cluster.gpu_free[i, n, g]
    before = cluster.node[i, n].frag
    cluster.node[i, n].frag = fragments(problem, cluster.env[i].slot, n, cluster.free[i, n, 0], cluster.trial)
    cluster.env[i].frag_sum += cluster.node[i, n].frag - before


@compiled
def change(problem: Problem, cluster: Cluster, i: int, p: int, n: int, slots: int, sign: int) -> None:
    """Add (1) or take away (-1) pod p in every count of node n."""
    k = cluster.env[i].slot
    w = problem.pod[k, p].workload
    for r in range(problem.request.shape[2]):
        cluster.free[i, n, r] -= sign * problem.request[k, p, r]
    cluster.node[i, n].room -= sign
    cluster.env[i].running += sign
    if slots != 0:
        milli = problem.pod[k, p].milli
        for g in range(problem.node[k, n].gpus):
            if (slots >> g) & 1 == 1:
                cluster.gpu_free[i, n, g] -= sign * milli
        cluster.env[i].gpu_used += sign * milli * problem.pod[k, p].gpus
    for t in range(problem.size[k].num_anti):
        d = problem.anti_domain[k, t, n]
        if d >= 0:
            cluster.domain[i, t, d].anti_match += sign * problem.anti_match[k, t, w]
            cluster.domain[i, t, d].anti_owner += sign * problem.anti_owner[k, t, w]
    for t in range(problem.size[k].num_spread):
        d = problem.spread_domain[k, t, n]
        if d >= 0:
            cluster.domain[i, t, d].spread += sign * problem.spread_match[k, t, w]
