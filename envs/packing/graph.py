"""Complete graphs of a batch of clusters: offsets, rows, and the padded form of a single environment."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.graph_rows import (
    GraphArrays,
    gpu_need,
    tier_of,
    write_choices,
    write_classes,
    write_gpus,
    write_nodes,
    write_pods,
    write_typical,
)
from dispatchgym.envs.packing.kernel import step
from dispatchgym.envs.packing.state import ASIDE, I32, QUEUED, RUNNING, Cluster, Mode, Problem

CHOICE, ITEM, NODE, KIND, CANDIDATE = range(5)  # rows of the offset arrays, shape (5, envs + 1)
NO_STEP = -1
RUNNING_ON, DONE, ILLEGAL = range(3)


@compiled
def count_all(problem: Problem, cluster: Cluster, gpus: bool, out: GraphArrays, ptr: I32) -> None:
    """Fill the offsets of every environment's rows."""
    for i in range(len(cluster.env)):
        count_rows(problem, cluster, gpus, i, out, ptr)


@compiled
def write_all(problem: Problem, cluster: Cluster, mode: Mode, gpus: bool, ptr: I32, out: GraphArrays) -> None:
    """Write the graph of every environment; `gpus` chooses that graph."""
    for i in range(len(cluster.env)):
        write_rows(problem, cluster, mode, gpus, i, ptr, out)


@compiled
def step_padded(
    problem: Problem,
    cluster: Cluster,
    mode: Mode,
    gpus: bool,
    i: int,
    action: int,
    ptr: I32,
    out: GraphArrays,
    node_of_action: I32,
    num_nodes: I32,
) -> tuple[float, int]:
    """Step environment i, the only one, (NO_STEP: do not) and write its graph into arrays that hold the one before.

    Rows that were real and no longer are become padding: 0 in features, -1 in links.

    Returns:
        (reward, state); with state ILLEGAL nothing has happened.
    """
    reward = 0.0
    if action != NO_STEP:
        if action < 0 or action >= cluster.mask.shape[1] or cluster.mask[i, action] == 0:
            return 0.0, ILLEGAL
        reward = step(problem, cluster, mode, i, action)
    choices, items, nodes, kinds = ptr[CHOICE, 1], ptr[ITEM, 1], ptr[NODE, 1], ptr[KIND, 1]
    count_rows(problem, cluster, gpus, i, out, ptr)
    write_rows(problem, cluster, mode, gpus, i, ptr, out)
    for row in range(ptr[CHOICE, 1], choices):
        for c in range(out.choice.shape[1]):
            out.choice[row, c] = 0
        out.host[row] = out.about[row] = -1
    for row in range(ptr[ITEM, 1], items):
        for c in range(out.item.shape[1]):
            out.item[row, c] = 0
        out.on[row] = -1
        if not gpus:
            out.of[row] = -1
    for row in range(ptr[NODE, 1], nodes):
        for c in range(out.node.shape[1]):
            out.node[row, c] = 0
    for row in range(ptr[KIND, 1], kinds):
        for c in range(out.kind.shape[1]):
            out.kind[row, c] = 0
    for a in range(len(node_of_action)):
        node_of_action[a] = -1
    for c in range(ptr[CANDIDATE, 1]):
        node_of_action[out.action[c]] = out.candidate[c]
    num_nodes[0] = ptr[CHOICE, 1]
    num_nodes[1] = ptr[ITEM, 1]
    num_nodes[2] = ptr[NODE, 1]
    num_nodes[3] = ptr[KIND, 1]
    num_nodes[4] = 1
    return reward, DONE if cluster.env[i].over == 1 else RUNNING_ON


@inlined
def count_rows(problem: Problem, cluster: Cluster, gpus: bool, i: int, out: GraphArrays, ptr: I32) -> None:
    k = cluster.env[i].slot
    options = cluster.env[i].num_options
    waits = cluster.mask[i, cluster.mask.shape[1] - 1]
    items = kinds = 0
    if gpus:
        for n in range(problem.size[k].num_nodes):
            for g in range(problem.node[k, n].gpus):
                items += cluster.gpu_free[i, n, g] > 0
        kinds = problem.size[k].num_typical
    else:
        for c in range(problem.size[k].num_classes):
            out.class_count[0, c] = 0
        for p in range(cluster.env[i].next_pod):
            status = cluster.pod[i, p].status
            if status in (RUNNING, QUEUED, ASIDE):
                items += 1
                kind = problem.pod[k, p].kind
                kinds += out.class_count[0, kind] == 0
                out.class_count[0, kind] = 1
    ptr[CHOICE, i + 1] = ptr[CHOICE, i] + options - waits
    ptr[ITEM, i + 1] = ptr[ITEM, i] + items
    ptr[NODE, i + 1] = ptr[NODE, i] + problem.size[k].num_nodes
    ptr[KIND, i + 1] = ptr[KIND, i] + kinds
    ptr[CANDIDATE, i + 1] = ptr[CANDIDATE, i] + options


@compiled
def write_rows(problem: Problem, cluster: Cluster, mode: Mode, gpus: bool, i: int, ptr: I32, out: GraphArrays) -> None:
    k = cluster.env[i].slot
    nodes = problem.size[k].num_nodes
    cpu = memory = cpu_free = memory_free = 0.0
    for n in range(nodes):
        cpu += problem.capacity[k, n, 0]
        memory += problem.capacity[k, n, 1]
        cpu_free += cluster.free[i, n, 0]
        memory_free += cluster.free[i, n, 1]
    mean_cpu, mean_memory = max(cpu / nodes, 1.0), max(memory / nodes, 1.0)
    if gpus:
        write_gpus(problem, cluster, i, ptr[ITEM, i], ptr[NODE, i], out)
        write_typical(problem, cluster, i, ptr[KIND, i], mean_cpu, out)
    else:
        write_classes(problem, cluster, i, ptr[KIND, i], mean_cpu, mean_memory, out)
        write_pods(problem, cluster, i, ptr[ITEM, i], ptr[NODE, i], mean_cpu, mean_memory, out)
    write_nodes(problem, cluster, i, ptr[NODE, i], mean_cpu, mean_memory, out)
    write_choices(problem, cluster, mode, gpus, i, ptr[CHOICE, i], ptr[NODE, i], ptr[CANDIDATE, i], out)

    p = cluster.env[i].hand
    x = out.cluster[i]
    waits = cluster.mask[i, cluster.mask.shape[1] - 1]
    total = max(float(problem.size[k].total_milli), 1.0)
    x[0] = waits
    x[1] = np.log1p(float(cluster.env[i].num_options - waits))
    x[2] = cpu_free / max(cpu, 1.0)
    x[3] = memory_free / max(memory, 1.0)
    x[4] = (problem.size[k].total_milli - cluster.env[i].gpu_used) / total
    x[5] = max(cluster.env[i].frag_sum, 0.0) / total
    x[6] = cluster.env[i].gpu_asked / total
    x[7] = (cluster.env[i].queued + cluster.env[i].aside) / float(nodes)
    x[8] = cluster.env[i].running / float(nodes)
    for c in range(9, 13):
        x[c] = 0
    if p >= 0:
        x[9] = problem.request[k, p, 0] / mean_cpu
        x[10] = problem.request[k, p, 1] / mean_memory
        x[11] = gpu_need(problem, k, p)
        x[12] = tier_of(problem, k, p)
    x[13] = cluster.env[i].lifted
    x[14] = np.log1p(float(cluster.env[i].moves_left))
    x[15] = np.log1p(float(nodes))
    out.hand[i] = -1
    if p >= 0:
        if gpus:
            for m in range(problem.size[k].num_typical):
                if out.kind[ptr[KIND, i] + m, 4] == 1:
                    out.hand[i] = ptr[KIND, i] + m
        else:
            out.hand[i] = out.row[p]
