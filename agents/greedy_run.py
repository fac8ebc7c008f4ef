"""A policy plays one shop, its best candidate every time: one graph at a time, on one thread, without torch."""

from __future__ import annotations

from typing import cast

import numpy as np

from dispatchgym.agents.forced_moves import step_to_choice
from dispatchgym.agents.runtime import Runtime
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario


def play_greedily(
    runtime: Runtime, instance: Instance, shop: ShopConfig, scenario: Scenario | None = None
) -> ShopBatch:
    """The environment, over; forced moves are made without asking."""
    scenarios = None if scenario is None else [scenario]
    batch = ShopBatch.of([instance], shop, cast(GraphName, runtime.spec.graph), scenarios)
    action, reward = np.full(1, -1, np.int64), np.empty(1)
    step_to_choice(batch.problem, batch.shop, batch.mode, action, reward)
    while not batch.over[0]:
        seen = batch.observe()
        action[0] = seen.action[runtime.choose(seen)[0]]
        step_to_choice(batch.problem, batch.shop, batch.mode, action, reward)
    return batch
