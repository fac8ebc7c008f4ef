"""The pilot method as a scheduler: every candidate is tried to the end under a few rules, the best one goes next.

The strongest baseline here that neither learns nor searches: one schedule, built in one pass. See
`envs.jobshop.pilot` for what is tried and for the source.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.kernel import is_over, reset, step
from dispatchgym.envs.jobshop.pilot import Pilots, best_action, pilots_of, rules_for, try_actions
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.state import Mode, Problem, Shop
from dispatchgym.solvers.jobshop.rules import Rollout, rule_code


@compiled
def _play(problem: Problem, shop: Shop, mode: Mode, pilots: Pilots) -> None:
    for i in range(len(shop.slot)):
        reset(problem, shop, mode, i)
        while not is_over(shop, i):
            legal = 0
            action = -1
            for a in range(shop.mask.shape[1]):
                if shop.mask[i, a] == 1:
                    legal += 1
                    action = a
            if legal > 1:
                try_actions(problem, shop, mode, i, pilots)
                action = best_action(shop, i, pilots)
            step(problem, shop, mode, i, action)


def rollout(
    instance: Instance,
    config: ShopConfig | None = None,
    *,
    rules: Sequence[tuple[str, float | None]] = (),
    scenario: Scenario | None = None,
) -> Rollout:
    """One run.

    Args:
        config: which shop and builder; default the classic shop, non-delay.
        rules: (name, cap) of those that play on, the best of them counts; default the three of the graph `pilot`.
        scenario: shutdowns of the interrupting shop; none of them is known before it happens.

    Raises:
        UnknownNameError: no such rule.
    """
    shop = config or ShopConfig()
    batch = ShopBatch.of([instance], shop, scenarios=None if scenario is None else [scenario])
    codes = [(rule_code(name), cap) for name, cap in rules] or rules_for(shop.is_blocking)
    _play(batch.problem, batch.shop, batch.mode, pilots_of(codes, batch.capacity))
    return Rollout(batch.schedule(0), int(batch.shop.decisions[0]))
