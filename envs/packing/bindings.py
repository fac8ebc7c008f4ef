"""Shortlist for GPU clusters: the bindings of the pod at hand that look best to a linear rule.

A pod that fits somewhere is bound: WAIT is no choice then. Besides FGD's measure, the columns tell how well the CPU
and the GPUs that stay free on the node match each other: of a node without CPU the GPUs are lost, and the other way
round.
"""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.api import Feature, GraphSpec, NodeType
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing import columns
from dispatchgym.envs.packing.choices import Choices
from dispatchgym.envs.packing.columns import FLAG, SHARE
from dispatchgym.envs.packing.fitting import fragments
from dispatchgym.envs.packing.instance import WHOLE_GPU
from dispatchgym.envs.packing.state import Cluster, Problem

_EIGHT = "GPUs of 8"
_NEED = "GPUs"

SPEC = GraphSpec(
    family="packing",
    graph="bindings",
    version=0,
    nodes=(
        NodeType(
            "choice",
            (
                Feature("gathered", "GPUs", -32, 32, "fall of the node's expected fragments (FGD)"),
                Feature("slot_after", "GPUs", 0, 1, "free on the last GPU that it takes, afterwards"),
                Feature("slot_square", "GPUs squared", 0, 1, "the square of it"),
                Feature("filled", FLAG, 0, 1, "a shared GPU is full afterwards"),
                Feature("idle_taken", "GPUs", 0, 32, "idle GPUs that it takes"),
                Feature("opened", FLAG, 0, 1, "all GPUs of the node were idle"),
                Feature("gpus", _EIGHT, 0, 4, "GPUs of the node"),
                Feature("gpu_after", _EIGHT, 0, 4, "GPUs free on the node afterwards"),
                Feature("cpu_after", "128 cores", 0, 1e3, "CPU free on the node afterwards"),
                Feature("memory_after", SHARE, 0, 1, "memory free on the node afterwards"),
                Feature("left_over", SHARE, 0, 1e3, "mean of GPUs of 8 and CPU of 128 cores free afterwards"),
                Feature("short", _NEED, 0, 32, "free GPUs for which the node lacks the usual CPU, afterwards"),
                Feature("short_fall", _NEED, -32, 32, "fall of that"),
                Feature("spare", _NEED, 0, 1e3, "free CPU for which the node lacks free GPUs, in the usual CPU of one"),
                Feature("spare_fall", _NEED, -1e3, 1e3, "fall of that"),
                Feature("mismatch", SHARE, 0, 1, "CPU more or less than what is usual for the free GPUs, cut at 100"),
                Feature("lost", SHARE, 0, 1, "expected fragments, of what is free on the node afterwards"),
                Feature("starved", FLAG, 0, 1, "GPUs are free afterwards, and less than 3 cores"),
                Feature("no_memory", SHARE, 0, 1, "memory below a tenth afterwards"),
                Feature("sought", "ratio", 0, 1e3, "typical pods bound to this GPU model, over its share of the GPUs"),
                columns.MERIT,
            ),
        ),
        NodeType(
            "cluster",
            (
                columns.LOG_CHOICES,
                columns.CLUSTER_CPU_FREE,
                columns.CLUSTER_GPU_FREE,
                columns.CLUSTER_FRAGMENTS,
                columns.ASKED,
                Feature("cpu", "16 cores", 0, 1e3, "CPU that the pod at hand asks for"),
                Feature("whole", _EIGHT, 0, 4, "whole GPUs that it asks for"),
                Feature("part", "GPUs", 0, 1, "share of a GPU that it asks for"),
                Feature("no_gpu", FLAG, 0, 1, "it asks for none"),
                Feature("usual_cpu", "16 cores", 0, 1e3, "CPU a GPU of the typical pods"),
                Feature("usual_part", SHARE, 0, 1, "of the typical pods, those that ask for a share of a GPU"),
                Feature("usual_several", SHARE, 0, 1, "of the typical pods, those that ask for several GPUs"),
                Feature("usual_none", SHARE, 0, 1, "of the typical pods, those that ask for none"),
                Feature("usual_bound", SHARE, 0, 1, "of the typical pods, those that are bound to GPU models"),
                columns.LOG_NODES,
            ),
        ),
    ),
    links=(),
    candidate="choice",
    context="cluster",
)

CPU_ONLY, PART, WHOLE = range(3)
"""Kinds of pods, in the order of the weights' rows."""

_COLUMNS = [feature.name for feature in SPEC.node("choice").features]

WEIGHTS = np.zeros((3, len(_COLUMNS) - 1))
WEIGHTS[:, _COLUMNS.index("gathered")] = 1.0
"""FGD's rule, without its rounding."""

_FULL = WHOLE_GPU
_FEW_CPU = 3000
_SCARCE = 0.1


@inlined
def usual_cpu(problem: Problem, k: int) -> float:
    """Milli-CPU that typical pods ask for with a GPU, those without GPUs left out."""
    cpu = gpus = 0.0
    for m in range(problem.size[k].num_typical):
        one = problem.typical[k, m]
        if one.gpus > 0:
            cpu += one.share * one.cpu
            gpus += one.share * one.gpus * one.milli / 1000.0
    return cpu / gpus if gpus > 0.0 else 1.0


@compiled
def sought(problem: Problem, k: int, model: int) -> float:
    """Typical pods that only run on some models, this one among them, over the model's share of the GPUs."""
    wanted = 0.0
    for m in range(problem.size[k].num_typical):
        models = problem.typical[k, m].models
        if models != 0 and model >= 0 and (models >> np.uint64(max(model, 0))) & np.uint64(1) == 1:
            wanted += problem.typical[k, m].share
    if wanted == 0.0:
        return 0.0
    gpus = 0
    for n in range(problem.size[k].num_nodes):
        if problem.node[k, n].model == model:
            gpus += problem.node[k, n].gpus
    return float(wanted * problem.size[k].total_milli / (1000.0 * max(gpus, 1)))


@compiled
def write_choices(problem: Problem, cluster: Cluster, i: int, choices: Choices) -> int:
    """Write the legal bindings into scratch, or WAIT where there is none; returns how many."""
    k, p = cluster.env[i].slot, cluster.env[i].hand
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    usual = usual_cpu(problem, k)
    kind = CPU_ONLY
    if problem.pod[k, p].gpus > 0:
        kind = PART if problem.pod[k, p].milli < _FULL else WHOLE
    last_model, last_sought = -2, 0.0
    found = 0
    for c in range(cluster.env[i].num_options):
        action = cluster.options[i, c]
        if action >= nodes * gpus:
            break
        n = action // gpus
        if problem.node[k, n].model != last_model:
            last_model = problem.node[k, n].model
            last_sought = sought(problem, k, last_model)
        choices.found_action[found] = action
        write_bind(problem, cluster, i, p, n, action % gpus, usual, last_sought, found, choices)
        last = choices.found.shape[1] - 1
        merit = 0.0
        for x in range(last):
            merit += choices.weights[kind, x] * choices.found[found, x]
        choices.found[found, last] = merit
        found += 1
    if found == 0:
        choices.found_action[0] = cluster.mask.shape[1] - 1
        for x in range(choices.found.shape[1]):
            choices.found[0, x] = 0.0
        return 1
    return found


@inlined
def write_bind(
    problem: Problem,
    cluster: Cluster,
    i: int,
    p: int,
    n: int,
    g: int,
    usual: float,
    model_sought: float,
    row: int,
    choices: Choices,
) -> None:
    k = cluster.env[i].slot
    need, milli = problem.pod[k, p].gpus, problem.pod[k, p].milli
    own = problem.node[k, n].gpus
    before = after = idle = taken = 0
    slot = 0.0
    for s in range(cluster.gpu_free.shape[2]):
        free = cluster.gpu_free[i, n, s]
        before += free
        idle += free == _FULL
        cluster.trial[s] = free
        if need > 0 and s >= g and free >= milli:
            taken += free == _FULL
            cluster.trial[s] = free - milli
            slot = (free - milli) / 1000.0
            need -= 1
        after += cluster.trial[s]
    cpu = cluster.free[i, n, 0]
    cpu_after = cpu - problem.request[k, p, 0]
    broken = fragments(problem, k, n, cpu_after, cluster.trial)
    matched, matched_after = before / 1000.0 * usual, after / 1000.0 * usual
    x = choices.found[row]
    x[0] = (cluster.node[i, n].frag - broken) / 1000.0
    x[1] = slot
    x[2] = slot * slot
    x[3] = problem.pod[k, p].gpus > 0 and milli < _FULL and slot == 0.0
    x[4] = taken
    x[5] = problem.pod[k, p].gpus > 0 and idle == own
    x[6] = own / 8.0
    x[7] = after / 8000.0
    x[8] = cpu_after / 128000.0
    x[9] = (cluster.free[i, n, 1] - problem.request[k, p, 1]) / float(max(problem.capacity[k, n, 1], 1))
    x[10] = (cpu_after / 128000.0 + after / 8000.0) / 2.0
    x[11] = max(matched_after - cpu_after, 0.0) / usual
    x[12] = (max(matched - cpu, 0.0) - max(matched_after - cpu_after, 0.0)) / usual
    x[13] = max(cpu_after - matched_after, 0.0) / usual
    x[14] = (max(cpu - matched, 0.0) - max(cpu_after - matched_after, 0.0)) / usual
    x[15] = min(abs(cpu_after - matched_after) / 100000.0, 1.0)
    x[16] = broken / max(float(after), 1.0)
    x[17] = cpu_after < _FEW_CPU and after > 0
    x[18] = max(_SCARCE - x[9], 0.0)
    x[19] = model_sought


@compiled
def write_context(problem: Problem, cluster: Cluster, i: int, choices: Choices) -> None:
    """The cluster, the pod at hand and the typical pods in a row."""
    k, p = cluster.env[i].slot, cluster.env[i].hand
    nodes = problem.size[k].num_nodes
    cpu = free = 0
    for n in range(nodes):
        cpu += problem.capacity[k, n, 0]
        free += cluster.free[i, n, 0]
    total = max(float(problem.size[k].total_milli), 1.0)
    x = choices.context[i]
    x[0] = np.log1p(float(choices.length[i]))
    x[1] = free / float(max(cpu, 1))
    x[2] = (problem.size[k].total_milli - cluster.env[i].gpu_used) / total
    x[3] = max(cluster.env[i].frag_sum, 0.0) / total
    x[4] = cluster.env[i].gpu_asked / total
    milli = problem.pod[k, p].milli
    x[5] = problem.request[k, p, 0] / 16000.0
    x[6] = problem.pod[k, p].gpus / 8.0 if milli == _FULL else 0.0
    x[7] = milli / 1000.0 if milli < _FULL else 0.0
    x[8] = problem.pod[k, p].gpus == 0
    x[9] = usual_cpu(problem, k) / 16000.0
    for c in range(10, 14):
        x[c] = 0.0
    for m in range(problem.size[k].num_typical):
        one = problem.typical[k, m]
        x[10] += one.share if 0 < one.milli < _FULL else 0.0
        x[11] += one.share if one.gpus > 1 else 0.0
        x[12] += one.share if one.gpus == 0 else 0.0
        x[13] += one.share if one.models != 0 else 0.0
    x[14] = np.log1p(float(nodes))
