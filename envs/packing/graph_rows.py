"""Rows of the complete graphs: one function a node type; `graph_specs` says what the columns are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.fitting import fits, fragments, slots_from
from dispatchgym.envs.packing.instance import WHOLE_GPU
from dispatchgym.envs.packing.state import ASIDE, F32, I32, I64, QUEUED, RUNNING, Cluster, Mode, Problem
from dispatchgym.envs.packing.victims import choose_victims

_WHOLE = WHOLE_GPU


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


@inlined
def gpu_need(problem: Problem, k: int, p: int) -> float:
    """GPUs that pod p asks for, shares included."""
    return float(problem.pod[k, p].gpus * problem.pod[k, p].milli) / 1000.0


@inlined
def tier_of(problem: Problem, k: int, p: int) -> float:
    """Rank of the pod's priority from 0 to 1; 1 where there is only one."""
    tiers = problem.size[k].num_tiers
    return float(problem.pod[k, p].tier) / (tiers - 1) if tiers > 1 else 1.0


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
