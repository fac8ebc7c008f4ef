"""How good the policy is on generated instances that training never sees."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.evaluation.statistics import interquartile_mean
from dispatchgym.agents.playing import makespans
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.training.config import TrainConfig
from dispatchgym.envs.jobshop.batch import ShopBatch
from dispatchgym.solvers.jobshop import rules


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
        """`validation/RULE`: interquartile mean of each rule's gaps."""
        found = {}
        for rule in self.config.validation.rules:
            found[f"validation/{rule}"] = interquartile_mean(self.gaps(rules.play(self.batch, rule))).item()
        return found

    def judge(self, network: GraphNetwork) -> dict[str, float]:
        """`validation/greedy` (interquartile mean), `validation/greedy_mean` and, with samples, `validation/best`."""
        shop, lanes = self.config.shop, self.config.rollout.lanes
        greedy = self.gaps(makespans(network, self.instances, shop, scenarios=self.scenarios, lanes=lanes))
        found = {
            "validation/greedy": interquartile_mean(greedy).item(),
            "validation/greedy_mean": float(greedy.mean()),
        }
        if self.config.validation.samples:
            best = makespans(
                network,
                self.instances,
                shop,
                scenarios=self.scenarios,
                samples=self.config.validation.samples,
                lanes=lanes,
            )
            found["validation/best"] = interquartile_mean(self.gaps(best)).item()
        return found
