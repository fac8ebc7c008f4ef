"""Shortlist for pods that may be moved: bind where it fits, else make room by a chain of moves, else evict, else wait.

Which actions come into question:
    the pod at hand fits somewhere: its bindings;
    it does not: pods whose leaving begins the shortest chain of moves that makes room (see `chains`), and evictions;
    a pod has been picked up: bindings after which the chain goes on, or where it came from if there is none;
    nothing of all this: WAIT, which is no choice then.
"""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.api import Feature, GraphSpec, NodeType
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing import chains, columns
from dispatchgym.envs.packing.choices import Choices
from dispatchgym.envs.packing.columns import FLAG, SHARE
from dispatchgym.envs.packing.state import Cluster, Problem
from dispatchgym.envs.packing.victims import choose_victims
from dispatchgym.envs.packing.waiting import first_in_queue

SPEC = GraphSpec(
    family="packing",
    graph="repack",
    version=0,
    nodes=(
        NodeType(
            "choice",
            (
                columns.BIND,
                Feature("pick_up", FLAG, 0, 1, "picks up a running pod, to make room for the pod at hand"),
                columns.EVICT,
                Feature("depth", "moves", 0, 3, "moves until the pod that waits fits, this one included; 0 if none"),
                Feature("cpu_after", SHARE, -1e3, 1, "CPU free on the node afterwards, with the pod at hand on it"),
                Feature("memory_after", SHARE, -1e3, 1, "memory free there"),
                columns.UNEVEN_AFTER,
                Feature("lean_after", SHARE, -1e3, 1e3, "CPU minus memory free afterwards"),
                Feature("goal_cpu", SHARE, 0, 1, "CPU left on a node that the picked up pod can go to"),
                Feature("goal_memory", SHARE, 0, 1, "memory left there"),
                Feature("alternatives", "log(1 + nodes)", 0, 25, "nodes that the picked up pod can go to"),
                columns.VICTIMS,
                Feature("victim_tier", SHARE, 0, 1, "highest tier among them, of all tiers"),
                Feature("victim_cpu", SHARE, 0, 1, "CPU that they hold"),
                Feature("victim_memory", SHARE, 0, 1, "memory that they hold"),
                columns.POD_CPU,
                columns.POD_MEMORY,
                Feature("fit_after", SHARE, 0, 1, "pods so far whose like would fit on the node afterwards"),
                Feature("fit_lost", SHARE, -1, 1, "pods so far whose like would fit before and not afterwards"),
                columns.MERIT,
            ),
        ),
        NodeType(
            "cluster",
            (
                columns.LOG_CHOICES,
                columns.CLUSTER_CPU_FREE,
                columns.CLUSTER_MEMORY_FREE,
                Feature("cpu_spread", SHARE, 0, 1, "standard deviation of the nodes' free CPU"),
                Feature("memory_spread", SHARE, 0, 1, "standard deviation of the nodes' free memory"),
                columns.PENDING,
                columns.RUNNING,
                columns.HAND_CPU,
                columns.HAND_MEMORY,
                Feature("tier", SHARE, 0, 1, "rank of its priority, of all tiers; 1 where there is one"),
                columns.LIFTED,
                columns.LOG_NODES,
            ),
        ),
    ),
    links=(),
    candidate="choice",
    context="cluster",
)

BIND, PUT_DOWN, PICK_UP, EVICT = range(4)
"""Kinds of choices, in the order of the weights' rows."""

_COLUMNS = [feature.name for feature in SPEC.node("choice").features]


def _weights(**rows: dict[str, float]) -> np.ndarray:
    table = np.zeros((len(rows), len(_COLUMNS) - 1))
    for row, named in enumerate(rows.values()):
        for name, weight in named.items():
            table[row, _COLUMNS.index(name)] = weight
    return table


WEIGHTS = _weights(
    bind={"cpu_after": 1.0, "memory_after": 1.0, "uneven_after": -1.0},
    put_down={"cpu_after": 1.0, "memory_after": 1.0, "uneven_after": -1.0},
    pick_up={"pick_up": 4.0, "cpu_after": -1.0, "memory_after": -1.0, "uneven_after": -1.0},
    evict={"victim_tier": -4.0, "victims": -0.5, "victim_cpu": -1.0, "victim_memory": -1.0},
)
"""The starting rule: even nodes and room on all of them, as kube-scheduler has it; moves before evictions."""

_NOBODY = -1
_NO_CHAIN = chains.NO_CHAIN
_FAR = 9


@compiled
def write_choices(problem: Problem, cluster: Cluster, i: int, choices: Choices) -> int:
    """Write the actions that come into question into scratch; returns how many."""
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    p = cluster.env[i].hand
    binds = 0
    while binds < cluster.env[i].num_options and cluster.options[i, binds] < nodes * gpus:
        binds += 1
    if cluster.env[i].lifted == 1:
        return write_goals(problem, cluster, i, p, binds, choices)
    found = 0
    for c in range(binds):
        found = write_bind(problem, cluster, i, p, cluster.options[i, c], BIND, 0, found, choices)
    if found > 0:
        return found
    if cluster.env[i].moves_left > 1:
        least = chains.find_chains(problem, cluster, i, p, 2, choices.elsewhere, choices.depth)
        if least < _NO_CHAIN:
            for q in range(cluster.env[i].next_pod):
                if choices.depth[q] == least:
                    found = write_pick_up(problem, cluster, i, p, q, found, choices)
    for n in range(nodes):
        if cluster.mask[i, nodes * gpus + n] == 1:
            found = write_evict(problem, cluster, i, p, n, found, choices)
    if found == 0:
        choices.found_action[0] = cluster.mask.shape[1] - 1
        for c in range(choices.found.shape[1]):
            choices.found[0, c] = 0.0
        return 1
    return found


@compiled
def write_goals(problem: Problem, cluster: Cluster, i: int, q: int, binds: int, choices: Choices) -> int:
    """Where to put pod q down: the nodes after which the pod that waits is nearest to fitting."""
    gpus = cluster.gpu_free.shape[2]
    waits = first_in_queue(problem, cluster, i) if cluster.env[i].queued > 0 else _NOBODY
    nearest = _FAR
    for c in range(binds):
        n = cluster.options[i, c] // gpus
        depth = _FAR
        if waits >= 0 and n != cluster.env[i].origin:
            depth = chains.depth_after_binding(problem, cluster, i, q, n, waits, choices.elsewhere, choices.depth)
        choices.state[c] = depth
        nearest = min(nearest, depth)
    found = 0
    for c in range(binds):
        depth = choices.state[c]
        is_origin = cluster.options[i, c] // gpus == cluster.env[i].origin
        if depth == nearest and (depth < _NO_CHAIN or is_origin):
            found = write_bind(problem, cluster, i, q, cluster.options[i, c], PUT_DOWN, depth, found, choices)
    if found == 0:  # no way goes on: back to where it was
        for c in range(binds):
            if cluster.options[i, c] // gpus == cluster.env[i].origin:
                found = write_bind(problem, cluster, i, q, cluster.options[i, c], PUT_DOWN, 0, found, choices)
    return found


@inlined
def clear(row: int, action: int, choices: Choices) -> None:
    choices.found_action[row] = action
    for c in range(choices.found.shape[1]):
        choices.found[row, c] = 0.0


@inlined
def rank(row: int, kind: int, choices: Choices) -> None:
    """Fill the merit, the last column."""
    last = choices.found.shape[1] - 1
    total = 0.0
    for c in range(last):
        total += choices.weights[kind, c] * choices.found[row, c]
    choices.found[row, last] = total


@inlined
def write_node_after(
    problem: Problem, cluster: Cluster, i: int, n: int, cpu: int, memory: int, row: int, choices: Choices
) -> None:
    """Columns about node n when `cpu` and `memory` are free there afterwards."""
    k = cluster.env[i].slot
    own_cpu, own_memory = float(max(problem.capacity[k, n, 0], 1)), float(max(problem.capacity[k, n, 1], 1))
    x = choices.found[row]
    x[4] = cpu / own_cpu
    x[5] = memory / own_memory
    x[6] = abs(x[4] - x[5])
    x[7] = x[4] - x[5]
    seen = after = before = 0
    last = -1
    for q in range(cluster.env[i].next_pod):
        if problem.pod[k, q].workload == last:  # like the one before
            continue
        last = problem.pod[k, q].workload
        seen += 1
        asked_cpu, asked_memory = problem.request[k, q, 0], problem.request[k, q, 1]
        after += asked_cpu <= cpu and asked_memory <= memory
        before += asked_cpu <= cluster.free[i, n, 0] and asked_memory <= cluster.free[i, n, 1]
    x[17] = after / float(max(seen, 1))
    x[18] = (before - after) / float(max(seen, 1))


@compiled
def write_bind(
    problem: Problem, cluster: Cluster, i: int, p: int, action: int, kind: int, depth: int, row: int, choices: Choices
) -> int:
    """Pod p to a node; returns the next row."""
    k, n = cluster.env[i].slot, action // cluster.gpu_free.shape[2]
    clear(row, action, choices)
    x = choices.found[row]
    x[0] = 1.0
    x[3] = depth if kind == PUT_DOWN else 0
    cpu, memory = problem.request[k, p, 0], problem.request[k, p, 1]
    write_node_after(problem, cluster, i, n, cluster.free[i, n, 0] - cpu, cluster.free[i, n, 1] - memory, row, choices)
    x[15] = cpu / float(max(problem.capacity[k, n, 0], 1))
    x[16] = memory / float(max(problem.capacity[k, n, 1], 1))
    rank(row, kind, choices)
    return row + 1


@compiled
def write_pick_up(problem: Problem, cluster: Cluster, i: int, p: int, q: int, row: int, choices: Choices) -> int:
    """Pod q leaves its node, so that in the end p can run; returns the next row."""
    k, n = cluster.env[i].slot, cluster.pod[i, q].host
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    action = nodes * gpus + nodes + q
    if cluster.mask[i, action] == 0:
        return row
    clear(row, action, choices)
    x = choices.found[row]
    x[1] = 1.0
    x[3] = choices.depth[q]
    free_cpu = cluster.free[i, n, 0] + problem.request[k, q, 0]
    free_memory = cluster.free[i, n, 1] + problem.request[k, q, 1]
    if choices.depth[q] == 1:
        free_cpu -= problem.request[k, p, 0]
        free_memory -= problem.request[k, p, 1]
    write_node_after(problem, cluster, i, n, free_cpu, free_memory, row, choices)
    goal = choices.elsewhere[q, 0]
    if goal >= 0:
        x[8] = (cluster.free[i, goal, 0] - problem.request[k, q, 0]) / float(max(problem.capacity[k, goal, 0], 1))
        x[9] = (cluster.free[i, goal, 1] - problem.request[k, q, 1]) / float(max(problem.capacity[k, goal, 1], 1))
    x[10] = np.log1p(float(choices.elsewhere[q, 2]))
    x[15] = problem.request[k, q, 0] / float(max(problem.capacity[k, n, 0], 1))
    x[16] = problem.request[k, q, 1] / float(max(problem.capacity[k, n, 1], 1))
    rank(row, PICK_UP, choices)
    return row + 1


@compiled
def write_evict(problem: Problem, cluster: Cluster, i: int, p: int, n: int, row: int, choices: Choices) -> int:
    """Pods of lower priority leave node n for p; returns the next row."""
    k = cluster.env[i].slot
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    clear(row, nodes * gpus + n, choices)
    x = choices.found[row]
    x[2] = 1.0
    count = choose_victims(problem, cluster, i, p, n)
    own_cpu, own_memory = float(max(problem.capacity[k, n, 0], 1)), float(max(problem.capacity[k, n, 1], 1))
    cpu = memory = top = 0
    for v in range(count):
        q = cluster.victims[0, v]
        cpu += problem.request[k, q, 0]
        memory += problem.request[k, q, 1]
        top = max(top, problem.pod[k, q].tier)
    asked_cpu, asked_memory = problem.request[k, p, 0], problem.request[k, p, 1]
    write_node_after(
        problem,
        cluster,
        i,
        n,
        cluster.free[i, n, 0] + cpu - asked_cpu,
        cluster.free[i, n, 1] + memory - asked_memory,
        row,
        choices,
    )
    x[11] = count
    x[12] = top / float(max(problem.size[k].num_tiers - 1, 1))
    x[13] = cpu / own_cpu
    x[14] = memory / own_memory
    x[15] = asked_cpu / own_cpu
    x[16] = asked_memory / own_memory
    rank(row, EVICT, choices)
    return row + 1


@compiled
def write_context(problem: Problem, cluster: Cluster, i: int, choices: Choices) -> None:
    """The cluster in a row."""
    k, p = cluster.env[i].slot, cluster.env[i].hand
    nodes = problem.size[k].num_nodes
    total_cpu = total_memory = free_cpu = free_memory = 0
    cpu = memory = cpu_2 = memory_2 = 0.0
    for n in range(nodes):
        total_cpu += problem.capacity[k, n, 0]
        total_memory += problem.capacity[k, n, 1]
        free_cpu += cluster.free[i, n, 0]
        free_memory += cluster.free[i, n, 1]
        a = cluster.free[i, n, 0] / float(max(problem.capacity[k, n, 0], 1))
        b = cluster.free[i, n, 1] / float(max(problem.capacity[k, n, 1], 1))
        cpu += a
        memory += b
        cpu_2 += a * a
        memory_2 += b * b
    tiers = problem.size[k].num_tiers
    x = choices.context[i]
    x[0] = np.log1p(float(choices.length[i]))
    x[1] = free_cpu / float(max(total_cpu, 1))
    x[2] = free_memory / float(max(total_memory, 1))
    x[3] = np.sqrt(max(cpu_2 / nodes - (cpu / nodes) ** 2, 0.0))
    x[4] = np.sqrt(max(memory_2 / nodes - (memory / nodes) ** 2, 0.0))
    x[5] = (cluster.env[i].queued + cluster.env[i].aside) / float(nodes)
    x[6] = cluster.env[i].running / float(nodes)
    x[7] = problem.request[k, p, 0] * nodes / float(max(total_cpu, 1))
    x[8] = problem.request[k, p, 1] * nodes / float(max(total_memory, 1))
    x[9] = problem.pod[k, p].tier / float(tiers - 1) if tiers > 1 else 1.0
    x[10] = cluster.env[i].lifted
    x[11] = np.log1p(float(nodes))
