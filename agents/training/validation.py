"""How good the policy is on generated instances that training never sees."""

from __future__ import annotations

import numpy as np

from dispatchgym.agents.evaluation.statistics import interquartile_mean
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.training.config import TrainConfig
from dispatchgym.agents.training.world import world_of
from dispatchgym.agents.worlds import Losses


class Validation:
    """The world's exam, and what rules and the policy lose in it, per cent."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        chosen = config.validation
        self.exam = world_of(config).exam(chosen.instances, chosen.seed, config.rollout.lanes)

    def rules(self) -> dict[str, float]:
        """`validation/RULE`: average of each rule's losses, and of each group, `validation/RULE/GROUP`."""
        found: dict[str, float] = {}
        for rule in self.config.validation.rules:
            found |= self._figures(rule, self.exam.by_rule(rule))
        return found

    def judge(self, network: GraphNetwork) -> dict[str, float]:
        """`validation/greedy` (average; also by group), `validation/greedy_mean`, with samples `best`."""
        greedy = self.exam.greedy(network)
        found = self._figures("greedy", greedy) | {"validation/greedy_mean": float(greedy.mean())}
        if samples := self.config.validation.samples:
            found |= self._figures("best", self.exam.best_of(network, samples))
        return found

    def _figures(self, name: str, losses: Losses) -> dict[str, float]:
        average = interquartile_mean if self.config.validation.average == "interquartile" else np.mean
        found = {f"validation/{name}": float(average(losses))}
        for group in dict.fromkeys(self.exam.groups):
            mine = losses[[k for k, other in enumerate(self.exam.groups) if other == group]]
            found[f"validation/{name}/{group}"] = float(average(mine))
        return found
