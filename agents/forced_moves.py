"""Steps from one real choice to the next: moves that are the only legal one make themselves."""

from __future__ import annotations

from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.jobshop.kernel import is_over, step
from dispatchgym.envs.jobshop.state import F64, I64, Mode, Problem, Shop


@compiled
def step_to_choice(problem: Problem, shop: Shop, mode: Mode, actions: I64, reward: F64) -> None:
    """Carry out an action in every environment (-1: none), then every move that is the only one."""
    wait = shop.mask.shape[1] - 1
    for i in range(len(actions)):
        reward[i] = 0.0
        if actions[i] >= 0 and not is_over(shop, i):
            reward[i] = step(problem, shop, mode, i, actions[i])
        while not is_over(shop, i):
            legal = 0
            only = -1
            for action in range(wait + 1):
                if shop.mask[i, action] == 1:
                    legal += 1
                    only = action
                    if legal > 1:
                        break
            if legal != 1:
                break
            reward[i] += step(problem, shop, mode, i, only)
