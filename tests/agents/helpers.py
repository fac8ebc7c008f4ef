"""Small shops, networks and environments that several test files of this folder use."""

from __future__ import annotations

import numpy as np
import torch

from dispatchgym.agents.architecture import EncoderConfig, PolicyConfig
from dispatchgym.agents.graph_vec_env import GraphVecEnv, RolloutConfig
from dispatchgym.agents.policy import GraphActorCriticPolicy, GraphNetwork
from dispatchgym.agents.shop_world import InstanceSource, ShopWorld
from dispatchgym.envs.jobshop.batch import GraphName, ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.graph import SPECS
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.schedule import Variant

torch.set_num_threads(1)  # on graphs of this size more threads only wait for one another, and tests run side by side

RIVALS = {"jobs": ("next",), "ops": ("first", "needs")}


def tiny_config(graph: GraphName = "jobs", rule: str | None = "lrpt", **encoder: bool | int) -> PolicyConfig:
    options = {"width": 16, "layers": 2, "heads": 4, **encoder}
    return PolicyConfig(EncoderConfig(rivals=RIVALS[graph], **options), rule)  # type: ignore[arg-type]


def network(graph: GraphName = "jobs", *, trained: bool = False, seed: int = 0, **encoder: bool | int) -> GraphNetwork:
    """A tiny network; "trained" means that no weight is zero any more."""
    torch.manual_seed(seed)
    net = GraphNetwork(SPECS[graph], tiny_config(graph, **encoder))
    if trained:
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return net


def vec_env(variant: Variant = "jssp", graph: GraphName = "jobs", *, lanes: int = 1, seed: int = 0) -> GraphVecEnv:
    """4 instances of 5x4 and 6x3, 4 environments on each."""
    source = InstanceSource(sizes=((5, 4), (6, 3)))
    return GraphVecEnv(ShopWorld(ShopConfig(variant), source, graph), RolloutConfig(4, 4, lanes=lanes), seed=seed)


def policy_of(env: GraphVecEnv, net: GraphNetwork) -> GraphActorCriticPolicy:
    policy = GraphActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, spec=net.spec, config=net.config
    )
    policy.network.load_state_dict(net.state_dict())
    return policy


def instances(count: int = 6, seed: int = 0, jobs: int = 6, machines: int = 4) -> list[Instance]:
    rng = np.random.default_rng(seed)
    return [random_instance(rng, jobs + i % 3, machines, name=f"random-{i}") for i in range(count)]
