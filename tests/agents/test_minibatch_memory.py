"""The node budget bounds what an update keeps in memory, whatever the sizes of the shops."""

from __future__ import annotations

import pytest
import torch
from stable_baselines3 import PPO
from torch import Tensor

from dispatchgym.agents.graph_tensors import GraphTensors
from dispatchgym.agents.graph_vec_env import GraphVecEnv, RolloutConfig
from dispatchgym.agents.policy import GraphActorCriticPolicy
from dispatchgym.agents.rollout_buffer import Minibatch, RaggedRolloutBuffer
from dispatchgym.agents.shop_world import InstanceSource, ShopWorld
from dispatchgym.envs.jobshop.batch import GraphName, ShopConfig
from tests.agents.helpers import tiny_config

STEPS = 24
BUDGETS = {"jobs": (4_000, 1_000), "ops": (24_000, 6_000)}


def filled(graph: GraphName) -> tuple[GraphActorCriticPolicy, RaggedRolloutBuffer]:
    """Decisions of two 100x20 shops and of two of 10x5 beside them."""
    source = InstanceSource(sizes=((100, 20), (10, 5)))
    env = GraphVecEnv(ShopWorld(ShopConfig(), source, graph), RolloutConfig(2, 2, steps=STEPS))
    model = PPO(
        GraphActorCriticPolicy,
        env,
        n_steps=STEPS,
        batch_size=env.num_envs * STEPS,
        rollout_buffer_class=RaggedRolloutBuffer,
        rollout_buffer_kwargs={"spec": env.runs.spec, "group": 2},
        policy_kwargs={"spec": env.runs.spec, "config": tiny_config(graph)},
        device="cpu",
    )
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(env, callback, model.rollout_buffer, STEPS)
    assert isinstance(model.policy, GraphActorCriticPolicy)
    assert isinstance(model.rollout_buffer, RaggedRolloutBuffer)
    return model.policy, model.rollout_buffer


def kept_bytes(policy: GraphActorCriticPolicy, part: Minibatch) -> int:
    """What a forward pass keeps for its backward pass: each piece of memory once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value, log_prob, entropy = policy.evaluate_actions(part.observations, part.actions)
        assert (value + log_prob + entropy).requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("graph", ["jobs", "ops"])
def test_memory_follows_the_node_budget(graph: GraphName) -> None:
    policy, buffer = filled(graph)
    most = []
    for budget in BUDGETS[graph]:
        buffer.node_budget = budget
        parts = list(buffer.get())
        nodes = [int(part.observations.nodes_per_graph().sum()) for part in parts]
        assert max(nodes) <= budget
        assert sum(nodes) == sum(total_nodes(part.observations) for part in parts)
        most.append(max(kept_bytes(policy, part) for part in parts))
    large, small = most
    assert 0.15 < small / large < 0.4  # a quarter of the budget, a quarter of the memory


def total_nodes(graphs: GraphTensors) -> int:
    return sum(len(x) for x in graphs.x.values())
