"""How good the policy is on generated instances that training never sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.evaluation.statistics import interquartile_mean
from dispatchgym.agents.playing import makespans, play
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.agents.training.config import TrainConfig
from dispatchgym.envs.jobshop.batch import ShopBatch
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule
from dispatchgym.solvers.jobshop import rules

POLICY = "policy"
"""What `Pictured.schedules` calls the learned policy's own schedule."""


@dataclass(frozen=True, slots=True)
class Pictured:
    """One instance of the set and who scheduled it how; `bound` is the lower bound that gaps are above."""

    name: str
    instance: Instance
    scenario: Scenario | None
    bound: float
    schedules: dict[str, Schedule] = field(default_factory=dict)


class Validation:
    """A fixed set of instances, and what rules reach on it.

    All figures are per cent above the lower bound at the start (longest job, fullest machine): not gaps to the
    optimum, which nobody knows here, but comparable with one another.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        chosen = config.validation
        source = replace(config.instances, sizes=chosen.sizes or config.instances.sizes)
        self.instances, self.scenarios = source.draw(chosen.instances, (chosen.seed, 1), config.shop)
        self.batch = ShopBatch.of(self.instances, config.shop, scenarios=self.scenarios)
        self.bound = self.batch.shop.bound.astype(np.float64)
        self.sizes = [f"{instance.num_jobs}x{instance.num_machines}" for instance in self.instances]
        self.pictured = [
            Pictured(f"{self.sizes[k]}, number {k}", instance, self.scenarios[k] if self.scenarios else None, bound)
            for k, (instance, bound) in enumerate(zip(self.instances, self.bound.tolist(), strict=True))
        ][: config.tracking.gantt]

    @property
    def digest(self) -> str:
        """Names the set: another one has other figures."""
        h = hashlib.sha256()
        for instance in self.instances:
            h.update(instance.digest.encode())
        return h.hexdigest()

    def gaps(self, makespan: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Per cent above the lower bound, shape (instances,)."""
        above: npt.NDArray[np.float64] = 100.0 * (makespan / self.bound - 1.0)
        return above

    def rules(self) -> dict[str, float]:
        """`validation/RULE`: interquartile mean of each rule's gaps, and the same of each size, `validation/RULE/SIZE`.

        Keeps each rule's schedules of the pictured instances.
        """
        found: dict[str, float] = {}
        for rule in self.config.validation.rules:
            found |= self._figures(rule, self.gaps(rules.play(self.batch, rule)))
            for k, each in enumerate(self.pictured):
                each.schedules[rule] = self.batch.schedule(k)
        return found

    def judge(self, network: GraphNetwork) -> dict[str, float]:
        """`validation/greedy` (interquartile mean; also by size), `validation/greedy_mean` and, with samples, `best`.

        Keeps the greedy schedules of the pictured instances.
        """
        shop, chosen, lanes = self.config.shop, self.config.validation, self.config.rollout.lanes
        runs = ShopRuns.of(
            self.instances, shop, network.spec.graph, 1, self.scenarios, lanes, next(network.parameters()).device
        )
        greedy = self.gaps(play(network, runs))
        for k, each in enumerate(self.pictured):
            each.schedules[POLICY] = runs.schedule(k)
        found = self._figures("greedy", greedy) | {"validation/greedy_mean": float(greedy.mean())}
        if chosen.samples:
            best = makespans(
                network, self.instances, shop, scenarios=self.scenarios, samples=chosen.samples, lanes=lanes
            )
            found |= self._figures("best", self.gaps(best))
        return found

    def _figures(self, name: str, gaps: npt.NDArray[np.float64]) -> dict[str, float]:
        found = {f"validation/{name}": interquartile_mean(gaps).item()}
        for size in dict.fromkeys(self.sizes):
            mine = gaps[[k for k, other in enumerate(self.sizes) if other == size]]
            found[f"validation/{name}/{size}"] = interquartile_mean(mine).item()
        return found
