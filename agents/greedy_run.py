"""A policy plays one shop, its best candidate every time: one graph at a time, on one thread, without torch."""

from __future__ import annotations

from typing import cast

import numpy as np

from dispatchgym.agents.forced_moves import step_to_choice
from dispatchgym.agents.lookahead import behind, own_columns
from dispatchgym.agents.runtime import Runtime
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.graph import PILOT
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario


def play_greedily(
    runtime: Runtime,
    instance: Instance,
    shop: ShopConfig,
    scenario: Scenario | None = None,
    ahead: float = 0.0,
) -> ShopBatch:
    """The environment, over; forced moves are made without asking. `ahead`: weight of the look-ahead, 0 for none."""
    scenarios = None if scenario is None else [scenario]
    graph = PILOT.graph if ahead else runtime.spec.graph
    batch = ShopBatch.of([instance], shop, cast(GraphName, graph), scenarios)
    action, reward = np.full(1, -1, np.int64), np.empty(1)
    step_to_choice(batch.problem, batch.shop, batch.mode, action, reward)
    while not batch.over[0]:
        seen = batch.observe()
        if ahead:
            logits = runtime.logits(own_columns(runtime.spec, seen))[0] - ahead * behind(seen)
            action[0] = seen.action[logits.argmax()]
        else:
            action[0] = seen.action[runtime.choose(seen)[0]]
        step_to_choice(batch.problem, batch.shop, batch.mode, action, reward)
    return batch
