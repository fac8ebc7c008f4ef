"""Which seeds of the 'Priority Matters' generator make an instance worth solving."""

from __future__ import annotations

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.batch import PackingConfig
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.solvers.packing.kube_scheduler import Settings, rollout

DETERMINISTIC = Settings(ties="first")
"""The default scheduler with ties to the first node; without leave to evict."""


MOST_TRIED = 200
"""Seeds tried for each instance asked for."""


def hard_instances(
    num_nodes: int, pods_per_node: int, priorities: int, usage: float, number: int, first_seed: int = 0
) -> list[PackingInstance]:
    """The first `number` instances of a cell, from `first_seed` on, as the paper selects them.

    Below usage 1, those where the deterministic default scheduler without preemption leaves a pod pending; from
    usage 1 on, all (arXiv 2511.08373).

    Raises:
        UsageError: such instances are too rare at this usage.
    """
    chosen: list[PackingInstance] = []
    for seed in range(first_seed, first_seed + MOST_TRIED * number):
        if len(chosen) == number:
            break
        instance = priority_matters(num_nodes, pods_per_node, priorities, usage, seed)
        if usage >= 1.0 or rollout(instance, DETERMINISTIC, PackingConfig()).metrics.pending > 0:
            chosen.append(instance)
    if len(chosen) < number:
        raise UsageError(
            f"{len(chosen)} of {MOST_TRIED * number} instances of {num_nodes} nodes at usage {usage} are hard, "
            f"{number} are asked for; raise the usage"
        )
    return chosen
