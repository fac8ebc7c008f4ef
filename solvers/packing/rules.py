"""The rules by name: their scores for a view of a cluster, and whole runs at full speed.

A rule scores every binding that is legal; the highest wins. Ties go to the lowest node number; on a node, to the GPU
that the rule's column in `RULES` says, and to the lowest of these. A rule never waits while the pod at hand fits
somewhere, and evicts and moves nothing (kube-scheduler, which evicts, has a file of its own).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.batch import Metrics, PackingBatch, PackingConfig
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.kernel import step
from dispatchgym.envs.packing.log import Log
from dispatchgym.envs.packing.state import F64, I64, POD_COLUMN, Cluster, Mode, Problem
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.packing import (
    best_fit,
    dot_product,
    ffd,
    fgd,
    gpu_clustering,
    gpu_packing,
    random_node,
    worst_fit,
)

RANDOM, FIRST_FIT, FFD, BEST_FIT, WORST_FIT, DOT_PRODUCT, GPU_PACKING, GPU_CLUSTERING, FGD = range(9)

MEANING = {
    "random": "a uniform draw among the nodes that fit",
    "first-fit": "the first node that fits",
    "ffd": "first-fit, pods that arrive together by falling size",
    "best-fit": "least CPU and GPU left over on the node",
    "worst-fit": "most CPU and GPU left over on the node",
    "dot-product": "free amounts that align least with the request",
    "gpu-packing": "shared GPUs first, then used nodes, then empty ones",
    "gpu-clustering": "GPU requests of one size together",
    "fgd": "least rise of the expected fragmentation (Weng et al. 2023)",
}
RULES = tuple(MEANING)
"""Names, in the order of the codes above."""


@inlined
def score(rule: int, problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """What a rule thinks of binding pod p to node n, slot g; the highest is taken."""
    if rule == RANDOM:
        return random_node.score(problem, cluster, i, p, n, g, key)
    if rule == BEST_FIT:
        return best_fit.score(problem, cluster, i, p, n, g, key)
    if rule == WORST_FIT:
        return worst_fit.score(problem, cluster, i, p, n, g, key)
    if rule == DOT_PRODUCT:
        return dot_product.score(problem, cluster, i, p, n, g, key)
    if rule == GPU_PACKING:
        return gpu_packing.score(problem, cluster, i, p, n, g, key)
    if rule == GPU_CLUSTERING:
        return gpu_clustering.score(problem, cluster, i, p, n, g, key)
    if rule == FGD:
        return fgd.score(problem, cluster, i, p, n, g, key)
    return 0.0


@inlined
def best_binding(rule: int, problem: Problem, cluster: Cluster, i: int, key: int) -> int:
    """The legal binding that the rule prefers, -1 if there is none."""
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    p = cluster.env[i].hand
    best, best_node, best_free, highest = -1, -1, 0, 0.0
    for c in range(cluster.env[i].num_options):
        action = cluster.options[i, c]
        if action >= nodes * gpus:
            break
        n, g = action // gpus, action % gpus
        value = score(rule, problem, cluster, i, p, n, g, key)
        free = cluster.gpu_free[i, n, g]
        better = best < 0 or value > highest
        if not better and value == highest and n == best_node and rule != FGD:
            better = free > best_free if rule == WORST_FIT else free < best_free
        if better:
            best, best_node, best_free, highest = action, n, free, value
    return best


@compiled
def _play(problem: Problem, cluster: Cluster, mode: Mode, rule: int, seeds: I64, reward: F64, margin: int) -> bool:
    """Play until all are over; False if the log must grow first."""
    for i in range(len(seeds)):
        while cluster.env[i].over == 0:
            if cluster.env[i].logged + margin > cluster.log.shape[1]:
                return False
            key = seeds[i] + cluster.env[i].decisions * 1_000_003
            action = best_binding(rule, problem, cluster, i, key)
            if action < 0:
                action = cluster.mask.shape[1] - 1
            reward[i] += step(problem, cluster, mode, i, action)
    return True


@compiled
def _scores(rule: int, problem: Problem, cluster: Cluster, i: int, key: int, out: F64) -> None:
    gpus = cluster.gpu_free.shape[2]
    for c in range(len(out)):
        action = cluster.options[i, c]
        out[c] = score(rule, problem, cluster, i, cluster.env[i].hand, action // gpus, action % gpus, key)


def rule_code(name: str) -> int:
    """The kernel's number for a rule; the closest names in the error otherwise."""
    if name not in MEANING:
        raise unknown_name("rule", name, RULES)
    return RULES.index(name)


def scores(rule: str, batch: PackingBatch, i: int = 0, seed: int = 0) -> tuple[I64, npt.NDArray[np.float64]]:
    """The legal bindings of environment i and what a rule thinks of each; the highest is taken.

    Returns:
        (actions, scores), each of shape (bindings,).

    Raises:
        UnknownNameError: no such rule.
        UsageError: fgd without `PackingConfig.fragments`.
    """
    code = _code_for(rule, batch)
    binds = batch.capacity.nodes * batch.capacity.gpus
    actions = batch.cluster.options[i, : int(batch.cluster.env["num_options"][i])].astype(np.int64)
    actions = actions[actions < binds]
    out = np.empty(len(actions))
    key = seed + int(batch.cluster.env["decisions"][i]) * 1_000_003
    _scores(code, batch.problem, batch.cluster, i, key, out)
    return actions, out


def play(batch: PackingBatch, rule: str, seed: int = 0) -> npt.NDArray[np.float64]:
    """Play all environments of a batch from where they stand to their end under a rule.

    Args:
        batch: loaded and reset.
        seed: of the rule "random"; environment i draws with seed + i.

    Returns:
        Sums of the rewards, shape (N,).

    Raises:
        UnknownNameError: no such rule.
        UsageError: fgd without `PackingConfig.fragments`.
    """
    code = _code_for(rule, batch)
    seeds = np.arange(batch.num_envs, dtype=np.int64) + seed
    reward = np.zeros(batch.num_envs)
    margin = 2 * batch.capacity.pods + 8
    batch.make_log_room()
    while not _play(batch.problem, batch.cluster, batch.mode, code, seeds, reward, margin):
        batch.make_log_room()
    return reward


@dataclass(frozen=True, slots=True)
class Rollout:
    """One run: where the cluster stands at its end, what happened, and how many decisions that took."""

    metrics: Metrics
    log: Log
    decisions: int
    reward: float


def rollout(instance: PackingInstance, rule: str, config: PackingConfig | None = None, *, seed: int = 0) -> Rollout:
    """One run of a rule on one instance. "ffd" sorts the pods; its log names them as the instance does.

    Raises:
        UnknownNameError: no such rule.
    """
    order = None
    if rule == "ffd":
        instance, order = ffd.decreasing(instance)
    settings = config or PackingConfig()
    if rule == "fgd" and not settings.mode.fragments:
        settings = replace(settings, fragments=True)
    batch = PackingBatch.of([instance], settings)
    reward = float(play(batch, rule, seed)[0])
    log = batch.log(0)
    if order is not None:
        log.rows[:, POD_COLUMN] = order[log.rows[:, POD_COLUMN]]
    return Rollout(batch.metrics(0), log, int(batch.cluster.env["decisions"][0]), reward)


def _code_for(rule: str, batch: PackingBatch) -> int:
    code = rule_code(rule)
    if code == FGD and not batch.mode.fragments:
        raise UsageError("rule 'fgd' needs the fragmentation; make the batch with PackingConfig(fragments=True)")
    return code
