"""Graph observations of a cluster: what the nodes and columns are, and the kernel that writes them.

A decision is a choice among `choice` nodes: each stands for one legal action and points at the machine, and the pod
or GPU, that it concerns. Shares are of the machine's own capacity where nothing else is said; "mean node" is the
mean capacity of the cluster's machines. Pods that have not arrived do not appear.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dispatchgym.envs.api import Feature, GraphSpec, Link, NodeType
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.instance import WHOLE_GPU
from dispatchgym.envs.packing.kernel import choose_victims, fits, fragments, slots_from, step
from dispatchgym.envs.packing.state import ASIDE, F32, I32, I64, QUEUED, RUNNING, Cluster, Mode, Problem

_SHARE = "share"
_FLAG = "0 or 1"
_MEAN = "mean nodes"
_WHOLE = WHOLE_GPU

_CHOICE = (
    Feature("bind", _FLAG, 0, 1, "binds the pod at hand"),
    Feature("evict", _FLAG, 0, 1, "evicts pods of lower priority and binds the pod at hand"),
    Feature("pick_up", _FLAG, 0, 1, "picks up a running pod, to move it"),
    Feature("stay", _FLAG, 0, 1, "puts a picked up pod back on the node it came from"),
    Feature("cpu_after", _SHARE, -1e3, 1, "CPU free on the node afterwards"),
    Feature("memory_after", _SHARE, -1e3, 1, "memory free on the node afterwards"),
    Feature("uneven_after", _SHARE, 0, 1e3, "difference of the two"),
    Feature("least_after", _SHARE, -1e3, 1, "the scarcest resource free on the node afterwards"),
    Feature("pods_after", _SHARE, -1e3, 1, "pods that may still come afterwards"),
    Feature("slot_after", "GPUs", 0, 1, "free on the GPU it takes, afterwards; 0 without GPU"),
    Feature("gpu_after", "GPUs of 8", 0, 4, "free on the node afterwards"),
    Feature("idle_taken", "GPUs of 8", 0, 4, "idle GPUs that it takes"),
    Feature("twins", "GPUs of 8", 0, 4, "equally free GPUs of the node for which it stands"),
    Feature("fragments", "GPUs", -32, 32, "rise of the node's expected fragments (FGD); 0 if they are not kept"),
    Feature("siblings", "pods", 0, 1e6, "pods of the same ReplicaSet on the node"),
    Feature("victims", "pods", 0, 1e6, "pods that it evicts"),
    Feature("victim_tier", _SHARE, 0, 1, "highest tier among them, of all tiers; 0 without"),
    Feature("pod_cpu", _SHARE, 0, 1e3, "CPU that the pod asks for"),
    Feature("pod_memory", _SHARE, 0, 1e3, "memory that the pod asks for"),
)
_NODE = (
    Feature("cpu_free", _SHARE, 0, 1, "CPU free"),
    Feature("memory_free", _SHARE, 0, 1, "memory free"),
    Feature("cpu", _MEAN, 0, 1e3, "CPU capacity"),
    Feature("memory", _MEAN, 0, 1e3, "memory capacity"),
    Feature("room", _SHARE, 0, 1, "pods that may still come"),
    Feature("gpus", "GPUs of 8", 0, 4, "GPUs"),
    Feature("gpu_free", "GPUs of 8", 0, 4, "GPUs free, shares added up"),
    Feature("gpu_idle", "GPUs of 8", 0, 4, "GPUs that nobody uses"),
    Feature("fragments", "GPUs", 0, 32, "expected fragments (FGD); 0 if they are not kept"),
    Feature("fits", _FLAG, 0, 1, "the pod at hand fits"),
    Feature("cpu_lower", _SHARE, 0, 1, "CPU held by pods of lower priority than the one at hand"),
    Feature("memory_lower", _SHARE, 0, 1, "memory held by them"),
    Feature("cpu_short", _SHARE, 0, 1e3, "CPU that the pod at hand lacks here"),
    Feature("memory_short", _SHARE, 0, 1e3, "memory that it lacks"),
)
_POD = (
    Feature("at_hand", _FLAG, 0, 1, "it is to be decided on"),
    Feature("running", _FLAG, 0, 1, "it runs"),
    Feature("queued", _FLAG, 0, 1, "it will be decided on at this moment"),
    Feature("aside", _FLAG, 0, 1, "it waits for a change"),
    Feature("tier", _SHARE, 0, 1, "rank of its priority, of all tiers"),
    Feature("lower", _FLAG, 0, 1, "its priority is below that of the pod at hand"),
    Feature("cpu", _MEAN, 0, 1e3, "CPU that it asks for"),
    Feature("memory", _MEAN, 0, 1e3, "memory that it asks for"),
    Feature("gpu", "GPUs", 0, 32, "GPUs that it asks for, shares included"),
    Feature("log_age", "log(1 + seconds)", 0, 50, "since it was bound; 0 if it does not run"),
)
_CLASS = (
    Feature("cpu", _MEAN, 0, 1e3, "CPU that its pods ask for"),
    Feature("memory", _MEAN, 0, 1e3, "memory that they ask for"),
    Feature("gpu", "GPUs", 0, 32, "GPUs that they ask for, shares included"),
    Feature("tier", _SHARE, 0, 1, "rank of their priority, of all tiers"),
    Feature("running", _SHARE, 0, 1, "of the pods that have arrived"),
    Feature("pending", _SHARE, 0, 1, "of the pods that have arrived"),
    Feature("at_hand", _FLAG, 0, 1, "the pod at hand is one of them"),
)
_GPU = (
    Feature("free", "GPUs", 0, 1, "free"),
    Feature("idle", _FLAG, 0, 1, "nobody uses it"),
    Feature("fits", _FLAG, 0, 1, "it has what the pod at hand asks of a GPU"),
    Feature("after", "GPUs", -1, 1, "free minus what the pod at hand asks of a GPU"),
)
_TYPICAL = (
    Feature("cpu", _MEAN, 0, 1e3, "CPU asked for"),
    Feature("gpus", "GPUs of 8", 0, 4, "GPUs asked for"),
    Feature("share", "GPUs", 0, 1, "of each of them"),
    Feature("frequency", _SHARE, 0, 1, "of the typical pods"),
    Feature("like_hand", _FLAG, 0, 1, "the pod at hand asks for the same"),
    Feature("fits", _SHARE, 0, 1, "nodes that have the CPU, the GPUs and the model for it"),
)
_CLUSTER = (
    Feature("wait", _FLAG, 0, 1, "WAIT is legal"),
    Feature("log_choices", "log(1 + choices)", 0, 25, "legal actions but WAIT"),
    Feature("cpu_free", _SHARE, 0, 1, "CPU free in the cluster"),
    Feature("memory_free", _SHARE, 0, 1, "memory free in the cluster"),
    Feature("gpu_free", _SHARE, 0, 1, "GPUs free in the cluster"),
    Feature("fragments", _SHARE, 0, 1, "expected fragments, of the cluster's GPUs"),
    Feature("asked", _SHARE, 0, 1e3, "GPUs that the pods so far asked for, of the cluster's"),
    Feature("pending", "pods per node", 0, 1e6, "pods that have arrived and do not run"),
    Feature("running", "pods per node", 0, 1e6, "pods that run"),
    Feature("cpu", _MEAN, 0, 1e3, "CPU that the pod at hand asks for"),
    Feature("memory", _MEAN, 0, 1e3, "memory that it asks for"),
    Feature("gpu", "GPUs", 0, 32, "GPUs that it asks for, shares included"),
    Feature("tier", _SHARE, 0, 1, "rank of its priority, of all tiers"),
    Feature("lifted", _FLAG, 0, 1, "it has been picked up and must be put down"),
    Feature("log_moves_left", "log(1 + moves)", 0, 50, "moves that may still be made"),
    Feature("log_nodes", "log(1 + nodes)", 0, 25, "machines of the cluster"),
)

PODS = GraphSpec(
    family="packing",
    graph="pods",
    version=0,
    nodes=(
        NodeType("choice", _CHOICE),
        NodeType("pod", _POD),
        NodeType("node", _NODE),
        NodeType("class", _CLASS),
        NodeType("cluster", _CLUSTER),
    ),
    links=(
        Link("host", "choice", "node"),
        Link("about", "choice", "pod"),
        Link("on", "pod", "node"),
        Link("of", "pod", "class"),
        Link("hand", "cluster", "pod"),
    ),
    candidate="choice",
    context="cluster",
)
"""A node a pod that runs or waits, with machine and workload-class hubs."""

GPUS = GraphSpec(
    family="packing",
    graph="gpus",
    version=0,
    nodes=(
        NodeType("choice", _CHOICE),
        NodeType("gpu", _GPU),
        NodeType("node", _NODE),
        NodeType("typical", _TYPICAL),
        NodeType("cluster", _CLUSTER),
    ),
    links=(
        Link("host", "choice", "node"),
        Link("about", "choice", "gpu"),
        Link("on", "gpu", "node"),
        Link("hand", "cluster", "typical"),
    ),
    candidate="choice",
    context="cluster",
)
"""A node a GPU with something free, machine hubs, and the request classes that are typical of the workload."""

SPECS = {"pods": PODS, "gpus": GPUS}


class GraphArrays(NamedTuple):
    """Where the kernel writes; rows of environment i begin at the offsets it is given."""

    choice: F32
    item: F32  # pods: pod; gpus: gpu
    node: F32
    kind: F32  # pods: class; gpus: typical
    cluster: F32
    host: I32
    about: I32
    on: I32
    of: I32  # pods only
    hand: I32
    candidate: I32
    action: I32
    row: I32  # scratch, (pods or nodes x gpus,): row of the item's node or -1
    kind_row: I32  # scratch, (pods or typical,)
    class_count: I64  # scratch, (2, classes): pods of the class that run, that wait


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


@inlined
def gpu_need(problem: Problem, k: int, p: int) -> float:
    """GPUs that pod p asks for, shares included."""
    return float(problem.pod[k, p].gpus * problem.pod[k, p].milli) / 1000.0


@inlined
def tier_of(problem: Problem, k: int, p: int) -> float:
    """Rank of the pod's priority from 0 to 1; 1 where there is only one."""
    tiers = problem.size[k].num_tiers
    return float(problem.pod[k, p].tier) / (tiers - 1) if tiers > 1 else 1.0


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


@inlined
def write_gpus(problem: Problem, cluster: Cluster, i: int, at: int, node_at: int, out: GraphArrays) -> None:
    k, p = cluster.env[i].slot, cluster.env[i].hand
    milli = problem.pod[k, p].milli if p >= 0 else 0
    width = cluster.gpu_free.shape[2]
    for n in range(problem.size[k].num_nodes):
        for g in range(width):
            free = cluster.gpu_free[i, n, g]
            out.row[n * width + g] = -1
            if free == 0:
                continue
            out.row[n * width + g] = at
            x = out.item[at]
            x[0] = free / 1000.0
            x[1] = free == _WHOLE
            x[2] = milli > 0 and free >= milli
            x[3] = (free - milli) / 1000.0
            out.on[at] = node_at + n
            at += 1


@inlined
def write_typical(problem: Problem, cluster: Cluster, i: int, at: int, mean_cpu: float, out: GraphArrays) -> None:
    k, p = cluster.env[i].slot, cluster.env[i].hand
    nodes = problem.size[k].num_nodes
    for m in range(problem.size[k].num_typical):
        cpu, need = problem.typical[k, m].cpu, problem.typical[k, m].gpus
        milli, models = problem.typical[k, m].milli, problem.typical[k, m].models
        able = 0
        for n in range(nodes):
            if cluster.free[i, n, 0] < cpu:
                continue
            if models != 0 and (models >> np.uint64(max(problem.node[k, n].model, 0))) & np.uint64(1) == 0:
                continue
            fit = 0
            for g in range(problem.node[k, n].gpus):
                fit += cluster.gpu_free[i, n, g] >= milli
            able += fit >= need
        x = out.kind[at]
        x[0] = cpu / mean_cpu
        x[1] = need / 8.0
        x[2] = milli / 1000.0
        x[3] = problem.typical[k, m].share
        x[4] = 0
        if p >= 0:
            x[4] = (
                problem.request[k, p, 0] == cpu and problem.pod[k, p].gpus == need and problem.pod[k, p].milli == milli
            )
        x[5] = able / float(nodes)
        at += 1


@inlined
def write_classes(
    problem: Problem, cluster: Cluster, i: int, at: int, mean_cpu: float, mean_memory: float, out: GraphArrays
) -> None:
    k, hand = cluster.env[i].slot, cluster.env[i].hand
    arrived = max(cluster.env[i].next_pod, 1)
    for c in range(problem.size[k].num_classes):
        out.class_count[0, c] = out.class_count[1, c] = 0
        out.kind_row[c] = -1
    for p in range(cluster.env[i].next_pod):
        status = cluster.pod[i, p].status
        if status == RUNNING:
            out.class_count[0, problem.pod[k, p].kind] += 1
        elif status in (QUEUED, ASIDE):
            out.class_count[1, problem.pod[k, p].kind] += 1
    for c in range(problem.size[k].num_classes):
        if out.class_count[0, c] + out.class_count[1, c] == 0:
            continue
        p = problem.classes[k, c].example
        out.kind_row[c] = at
        x = out.kind[at]
        x[0] = problem.request[k, p, 0] / mean_cpu
        x[1] = problem.request[k, p, 1] / mean_memory
        x[2] = gpu_need(problem, k, p)
        x[3] = tier_of(problem, k, p)
        x[4] = out.class_count[0, c] / float(arrived)
        x[5] = out.class_count[1, c] / float(arrived)
        x[6] = hand >= 0 and problem.pod[k, hand].kind == c
        at += 1


@inlined
def write_pods(
    problem: Problem,
    cluster: Cluster,
    i: int,
    at: int,
    node_at: int,
    mean_cpu: float,
    mean_memory: float,
    out: GraphArrays,
) -> None:
    k, hand = cluster.env[i].slot, cluster.env[i].hand
    for p in range(cluster.env[i].next_pod):
        status = cluster.pod[i, p].status
        out.row[p] = -1
        if status != RUNNING and status != QUEUED and status != ASIDE:
            continue
        out.row[p] = at
        x = out.item[at]
        x[0] = p == hand
        x[1] = status == RUNNING
        x[2] = status == QUEUED
        x[3] = status == ASIDE
        x[4] = tier_of(problem, k, p)
        x[5] = hand >= 0 and problem.pod[k, p].priority < problem.pod[k, hand].priority
        x[6] = problem.request[k, p, 0] / mean_cpu
        x[7] = problem.request[k, p, 1] / mean_memory
        x[8] = gpu_need(problem, k, p)
        x[9] = np.log1p(float(cluster.env[i].now - cluster.pod[i, p].bound_at)) if status == RUNNING else 0.0
        host = cluster.pod[i, p].host
        out.on[at] = node_at + host if host >= 0 else -1
        out.of[at] = out.kind_row[problem.pod[k, p].kind]
        at += 1


@inlined
def write_nodes(
    problem: Problem, cluster: Cluster, i: int, at: int, mean_cpu: float, mean_memory: float, out: GraphArrays
) -> None:
    k, p = cluster.env[i].slot, cluster.env[i].hand
    for n in range(problem.size[k].num_nodes):
        own_cpu, own_memory = max(problem.capacity[k, n, 0], 1), max(problem.capacity[k, n, 1], 1)
        free = idle = 0
        for g in range(problem.node[k, n].gpus):
            free += cluster.gpu_free[i, n, g]
            idle += cluster.gpu_free[i, n, g] == _WHOLE
        x = out.node[at]
        x[0] = cluster.free[i, n, 0] / float(own_cpu)
        x[1] = cluster.free[i, n, 1] / float(own_memory)
        x[2] = problem.capacity[k, n, 0] / mean_cpu
        x[3] = problem.capacity[k, n, 1] / mean_memory
        x[4] = cluster.node[i, n].room / float(max(problem.node[k, n].max_pods, 1))
        x[5] = problem.node[k, n].gpus / 8.0
        x[6] = free / 8000.0
        x[7] = idle / 8.0
        x[8] = cluster.node[i, n].frag / 1000.0
        for c in range(9, 14):
            x[c] = 0
        if p >= 0:
            cpu = memory = 0
            q = cluster.node[i, n].head
            while q >= 0:
                if problem.pod[k, q].priority < problem.pod[k, p].priority:
                    cpu += problem.request[k, q, 0]
                    memory += problem.request[k, q, 1]
                q = cluster.pod[i, q].after
            x[9] = fits(problem, cluster, i, p, n)
            x[10] = cpu / float(own_cpu)
            x[11] = memory / float(own_memory)
            x[12] = max(problem.request[k, p, 0] - cluster.free[i, n, 0], 0) / float(own_cpu)
            x[13] = max(problem.request[k, p, 1] - cluster.free[i, n, 1], 0) / float(own_memory)
        at += 1


@inlined
def write_choices(
    problem: Problem,
    cluster: Cluster,
    mode: Mode,
    graph_gpus: bool,
    i: int,
    at: int,
    node_at: int,
    candidate_at: int,
    out: GraphArrays,
) -> None:
    k = cluster.env[i].slot
    nodes, width = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    wait = cluster.mask.shape[1] - 1
    for c in range(cluster.env[i].num_options):
        action = cluster.options[i, c]
        out.action[candidate_at + c] = action
        if action == wait:
            out.candidate[candidate_at + c] = -1
            continue
        out.candidate[candidate_at + c] = at
        p = cluster.env[i].hand
        evicts = picks = False
        g = -1
        if action < nodes * width:
            n, g = action // width, action % width
        elif action < nodes * width + nodes:
            n = action - nodes * width
            evicts = True
        else:
            p = action - nodes * width - nodes
            n = cluster.pod[i, p].host
            picks = True
        x = out.choice[at]
        for column in range(len(x)):
            x[column] = 0
        own_cpu = float(max(problem.capacity[k, n, 0], 1))
        own_memory = float(max(problem.capacity[k, n, 1], 1))
        cpu, memory, room = cluster.free[i, n, 0], cluster.free[i, n, 1], cluster.node[i, n].room
        gpu = 0
        for slot in range(problem.node[k, n].gpus):
            gpu += cluster.gpu_free[i, n, slot]
        sign = 1 if picks else -1
        need = problem.pod[k, p].gpus * problem.pod[k, p].milli
        if evicts:
            count = choose_victims(problem, cluster, i, p, n)
            x[15] = count
            x[16] = tier_of(problem, k, cluster.victims[0, 0])
            for v in range(count):
                q = cluster.victims[0, v]
                cpu += problem.request[k, q, 0]
                memory += problem.request[k, q, 1]
                room += 1
                gpu += problem.pod[k, q].gpus * problem.pod[k, q].milli
        cpu += sign * problem.request[k, p, 0]
        memory += sign * problem.request[k, p, 1]
        x[0] = not evicts and not picks
        x[1] = evicts
        x[2] = picks
        x[3] = cluster.env[i].lifted == 1 and n == cluster.env[i].origin
        x[4] = cpu / own_cpu
        x[5] = memory / own_memory
        x[6] = abs(x[4] - x[5])
        least = min(x[4], x[5])
        for r in range(2, problem.request.shape[2]):
            left = cluster.free[i, n, r] + sign * problem.request[k, p, r]
            if problem.capacity[k, n, r] > 0 and not evicts:
                least = min(least, np.float32(left / float(problem.capacity[k, n, r])))
        x[7] = least
        x[8] = (room + sign) / float(max(problem.node[k, n].max_pods, 1))
        x[10] = (gpu + sign * need) / 8000.0
        x[17] = problem.request[k, p, 0] / own_cpu
        x[18] = problem.request[k, p, 1] / own_memory
        if g >= 0 and need > 0:
            free = cluster.gpu_free[i, n, g]
            x[9] = (free - problem.pod[k, p].milli) / 1000.0
            x[11] = problem.pod[k, p].gpus / 8.0 if free == _WHOLE else 0.0
            twins = 0
            for slot in range(problem.node[k, n].gpus):
                twins += cluster.gpu_free[i, n, slot] == free
            x[12] = twins / 8.0
        if g >= 0 and mode.fragments:
            slots = slots_from(problem, cluster, i, p, n, g)
            for slot in range(width):
                taken = problem.pod[k, p].milli if (slots >> slot) & 1 == 1 else 0
                cluster.trial[slot] = cluster.gpu_free[i, n, slot] - taken
            x[13] = (fragments(problem, k, n, cpu, cluster.trial) - cluster.node[i, n].frag) / 1000.0
        siblings = 0
        q = cluster.node[i, n].head
        while q >= 0:
            siblings += problem.pod[k, q].workload == problem.pod[k, p].workload and q != p
            q = cluster.pod[i, q].after
        x[14] = siblings
        out.host[at] = node_at + n
        if graph_gpus:
            out.about[at] = out.row[n * width + g] if g >= 0 and need > 0 else -1
        else:
            out.about[at] = out.row[p]
        at += 1
