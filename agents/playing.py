"""A network plays: the greedy run, or the best of many sampled ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dispatchgym.agents.graph_tensors import GraphTensors, owner
from dispatchgym.agents.lookahead import BEHIND, WAIT_BEHIND
from dispatchgym.agents.policy import GraphNetwork, pick
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.agents.worlds import Runs
from dispatchgym.envs.api import GraphSpec
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.jobshop.graph import PILOT
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario


def play(network: GraphNetwork, runs: ShopRuns, temperature: float = 0.0, ahead: float = 0.0) -> npt.NDArray[np.int64]:
    """`play_out`, in shops; returns the makespans, shape (N,)."""
    play_out(network, runs, temperature, ahead)
    return runs.makespan


@torch.inference_mode()
def play_out(network: GraphNetwork, runs: Runs, temperature: float = 0.0, ahead: float = 0.0) -> None:
    """Play every environment to its end.

    Args:
        runs: started, of graph `pilot` if there is a look-ahead; over afterwards.
        temperature: 0 for the best candidate each time; else sampled, 1 as in training.
        ahead: weight of the look-ahead, see `lookahead`; 0 for none.
    """
    choices = np.zeros(runs.num_envs, np.int64)
    while True:
        obs = runs.observe()
        if obs["active"].shape[0] == 0:
            return
        graphs = GraphTensors.from_dict(obs)
        logits = network(shown_to(network.spec, graphs)).logits
        if ahead:
            logits = logits - ahead * behind_best(graphs)
        action = pick(logits, temperature)
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


def behind_best(graphs: GraphTensors) -> Tensor:
    """How much worse than the best each candidate turned out, mean durations, (G, most candidates); padding is inf."""
    count = graphs.candidate.shape[0]
    graph = owner(graphs.candidate_ptr, count)
    position = torch.arange(count, device=graph.device) - graphs.candidate_ptr[graph]
    own = torch.where(
        graphs.candidate < 0,
        graphs.x[PILOT.context][:, WAIT_BEHIND].min(1).values[graph],
        graphs.x[PILOT.candidate][:, BEHIND][graphs.candidate.clamp(min=0)],
    )
    size = graphs.most_of(PILOT.candidate).candidates
    grid = own.new_full((graphs.num_graphs * size,), torch.inf).index_copy(0, graph * size + position, own)
    return grid.view(graphs.num_graphs, size)


def shown_to(spec: GraphSpec, graphs: GraphTensors) -> GraphTensors:
    """The columns of graph `pilot` that `spec` has, which are its first ones."""
    return graphs._replace(x={node.name: graphs.x[node.name][:, : len(node.features)] for node in spec.nodes})
