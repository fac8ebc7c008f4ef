"""The gym steps a real model: choices decide what its next step runs."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

import dispatchgym.envs  # noqa: F401 (registers the environments)
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.draws import Serving
from tests.envs.llm.helpers import PROFILE, random_workload


def test_an_episode_on_a_real_model_ends_with_every_request_served() -> None:
    config = EngineConfig(kv_blocks=60, max_seqs=8, token_budget=128, max_len=256, history=256)
    env = gym.make(
        "dispatchgym/LLMEngine-v0",
        problem=Serving(random_workload(3, 10, longest=60, rate=50.0), config, PROFILE),
        executor="torch",
        device="cpu",
    )
    rng = np.random.default_rng(0)
    for episode in range(2):  # the second on the same cache
        observation, _ = env.reset(seed=episode)
        over, info, elapsed = False, {}, 0.0
        while not over:
            action = rng.choice(np.flatnonzero(observation["action_mask"]))
            observation, _, over, _, info = env.step(action)
            elapsed += info["elapsed_s"]
        assert info["metrics"]["finished"] == 10
        assert elapsed > 0
    env.close()
