"""Least slack first."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.costs import prefills_s
from dispatchgym.solvers.llm.filling import Filling


class LeastSlack:
    """vLLM's steps; the queue goes by deadline minus the time that reading the prompt takes.

    Source: Mok, 1983. Departure: slack counts the prompt's time alone on the GPU.

    Args:
        hopeless_last: requests that cannot meet their deadline any more come last.
    """

    name = "least-slack"
    oracle = False

    def __init__(self, hopeless_last: bool = True) -> None:
        self.hopeless_last = hopeless_last

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._spec = spec

    def decide(self, view: EngineView) -> Plan:
        fill = Filling(view)
        fill.decode()
        fill.read_all()
        waiting, budget = view.waiting, self._spec.config.token_budget
        read_s = prefills_s(self._spec.profile, waiting.left, budget)
        slack = waiting.deadline_s - view.now_s - read_s
        if self.hopeless_last:
            slack = np.where(slack < 0, 1e12 + slack, slack)
        for k in np.argsort(slack, kind="stable").tolist():
            if not fill.let_in(k):
                break
        return fill.plan()
