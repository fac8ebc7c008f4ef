"""A network plays shops: the greedy run, or the best of many sampled ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.agents.graph_tensors import GraphTensors
from dispatchgym.agents.policy import GraphNetwork, pick
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario


@torch.inference_mode()
def play(network: GraphNetwork, runs: ShopRuns, temperature: float = 0.0) -> npt.NDArray[np.int64]:
    """Play every environment to its end.

    Args:
        runs: started; over afterwards.
        temperature: 0 for the best candidate each time; else sampled, 1 as in training.

    Returns:
        Makespans, shape (N,).
    """
    choices = np.zeros(runs.num_envs, np.int64)
    while True:
        obs = runs.observe()
        if obs["active"].shape[0] == 0:
            return runs.makespan
        action = pick(network(GraphTensors.from_dict(obs)).logits, temperature)
        choices[obs["active"].cpu().numpy()] = action.cpu().numpy()
        runs.step(choices)


def makespans(
    network: GraphNetwork,
    instances: Sequence[Instance],
    shop: ShopConfig,
    *,
    scenarios: Sequence[Scenario] | None = None,
    samples: int = 0,
    temperature: float = 1.0,
    lanes: int = 1,
) -> npt.NDArray[np.int64]:
    """Makespan of every instance, shape (instances,): greedy, or with `samples` the best of so many draws."""
    device = next(network.parameters()).device
    runs = ShopRuns.of(
        instances,
        shop,
        network.spec.graph,
        max(samples, 1),
        scenarios,
        lanes,
        device,
    )
    found = play(network, runs, temperature if samples else 0.0)
    best: npt.NDArray[np.int64] = found.reshape(len(instances), -1).min(axis=1)
    return best
