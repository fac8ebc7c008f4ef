"""The ragged buffer gives back what was put in, every decision once, with the right advantage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.logger import Logger
from torch import nn

from dispatchgym.agents.policy import GraphActorCriticPolicy
from dispatchgym.agents.rollout_buffer import RaggedRolloutBuffer, group_relative, minibatch_sizes
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.batch import GraphName
from dispatchgym.envs.jobshop.schedule import Variant
from tests.agents.helpers import network, tiny_config, vec_env


def ppo(
    variant: Variant = "jssp",
    graph: GraphName = "jobs",
    *,
    advantage: str = "group",
    lanes: int = 1,
    share: float = 1.0,
    epochs: int = 2,
) -> PPO:
    env = vec_env(variant, graph, lanes=lanes)
    spec = env.runs.spec
    model = PPO(
        GraphActorCriticPolicy,
        env,
        n_steps=env.length,
        batch_size=env.num_envs * env.length,
        n_epochs=epochs,
        vf_coef=0.5 if advantage == "gae" else 0.0,
        normalize_advantage=False,
        rollout_buffer_class=RaggedRolloutBuffer,
        rollout_buffer_kwargs={
            "spec": spec,
            "group": 4,
            "advantage": advantage,
            "node_budget": 700,
            "minibatch": 60,
            "share": share,
        },
        policy_kwargs={"spec": spec, "config": tiny_config(graph)},
        seed=0,
        device="cpu",
    )
    model.policy.network.load_state_dict(network(graph, trained=True).state_dict())
    return model


def filled(model: PPO) -> RaggedRolloutBuffer:
    _, callback = model._setup_learn(10**9)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert isinstance(model.rollout_buffer, RaggedRolloutBuffer)
    return model.rollout_buffer


@pytest.mark.parametrize(("variant", "graph"), [("jssp", "jobs"), ("jssp", "ops"), ("isbjssp", "jobs"), ("bws", "ops")])
def test_replaying_a_full_buffer_gives_the_stored_values_and_log_probabilities(
    variant: Variant, graph: GraphName
) -> None:
    model = ppo(variant, graph)
    buffer = filled(model)
    with torch.no_grad():
        for part in buffer.get():
            value, log_prob, entropy = model.policy.evaluate_actions(part.observations, part.actions)
            torch.testing.assert_close(value, part.old_values, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(log_prob, part.old_log_prob, atol=1e-5, rtol=1e-5)
            assert (entropy >= 0).all()


def test_minibatches_cover_every_decision_once_within_the_node_budget() -> None:
    buffer = filled(ppo("bws"))
    parts = list(buffer.get())
    assert len(parts) > 1
    assert sum(len(part.actions) for part in parts) == buffer.num_decisions
    for part in parts:
        assert int(part.observations.nodes_per_graph().sum()) <= 700
        assert len(part.actions) <= 60
    # every decision's pair of log-probability and graph size occurs as often as it was stored
    seen = torch.cat([part.old_log_prob for part in parts]).sort().values
    stored = buffer.log_probs.reshape(-1)[torch.cat(buffer._env).numpy()]
    np.testing.assert_array_equal(seen.numpy(), np.sort(stored))


def test_minibatches_know_the_sizes_of_their_graphs() -> None:
    parts = [part.observations for part in filled(ppo("bws", "ops")).get()]
    assert len({part.most for part in parts}) > 1
    for part in parts:
        assert part.most is not None
        assert part.most.candidates == int(part.candidate_ptr.diff().max())
        cells, before = part.ptr["job"].diff() + 1, 0
        for graphs, size in part.most.blocks:
            assert int(((cells > before) & (cells <= size)).sum()) == graphs
            before = size
        assert before == int(cells.max())
        assert int(part.candidate_ptr[-1]) == len(part.candidate)
        for name, x in part.x.items():
            assert int(part.ptr[name][-1]) == len(x)


def test_decisions_with_one_candidate_are_not_stored() -> None:
    for part in filled(ppo("bws")).get():
        assert int(part.observations.candidate_ptr.diff().min()) >= 2


def test_group_advantages_are_standardised_within_each_instance() -> None:
    buffer = filled(ppo())
    by_group = buffer.rewards.sum(axis=0).reshape(-1, 4)
    differ = by_group.std(1) > 1e-6
    assert differ.any()
    expected = np.zeros_like(by_group)  # where all did equally well there is nothing to learn
    kept = by_group[differ]
    expected[differ] = (kept - kept.mean(1, keepdims=True)) / kept.std(1, keepdims=True)
    np.testing.assert_allclose(buffer.advantages[0].reshape(-1, 4), expected, rtol=1e-4, atol=1e-5)
    assert (buffer.advantages == buffer.advantages[0]).all()


def test_group_relative_by_hand() -> None:
    returns = np.array([1, 3, 5, 5], np.float32)
    np.testing.assert_allclose(group_relative(returns, 2), [-1, 1, 0, 0])
    np.testing.assert_allclose(group_relative(returns, 2, leader=0.5), [-1, 1.5, 0, 0])
    np.testing.assert_allclose(group_relative(returns, 2, least_spread=4.0), [-0.25, 0.25, 0, 0])


def test_gae_with_lambda_one_is_return_to_go_minus_value() -> None:
    model = ppo(advantage="gae")
    model.rollout_buffer.gae_lambda = model.rollout_buffer.gamma = 1.0
    buffer = filled(model)
    to_go = buffer.rewards[::-1].cumsum(axis=0)[::-1]
    cell = torch.cat(buffer._env).numpy()
    np.testing.assert_allclose(
        buffer.advantages.reshape(-1)[cell], (to_go - buffer.values).reshape(-1)[cell], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("variant", ["jssp", "bws"])
def test_gae_of_ragged_episodes_is_that_of_each_episode_by_itself(variant: Variant) -> None:
    model = ppo(variant, advantage="gae")
    gamma = model.rollout_buffer.gamma = 0.95
    lam = model.rollout_buffer.gae_lambda = 0.8
    filled(model)
    _, callback = model._setup_learn(10**9, reset_num_timesteps=False)  # a second rollout, right after the first
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    buffer = model.rollout_buffer
    decided = np.zeros(buffer.rewards.size, bool)
    decided[torch.cat(buffer._env).numpy()] = True
    decided = decided.reshape(buffer.rewards.shape)
    lengths = decided.sum(axis=0)
    assert len(set(lengths)) > 1
    assert (lengths < len(decided)).any()
    for i, length in enumerate(lengths):
        assert decided[:length, i].all()  # a decision every step until the end, and none after it
        expected = np.zeros(length)
        ahead = value_ahead = 0.0
        for t in range(length - 1, -1, -1):
            value = float(buffer.values[t, i])
            surprise = float(buffer.rewards[t, i]) + gamma * value_ahead - value
            expected[t] = ahead = surprise + gamma * lam * ahead
            value_ahead = value
        assert np.ptp(expected) > 0
        np.testing.assert_allclose(buffer.advantages[:length, i], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            buffer.returns[:length, i], expected + buffer.values[:length, i], rtol=1e-4, atol=1e-5
        )
        assert not buffer.rewards[length:, i].any()
        assert not buffer.values[length:, i].any()


def test_gae_advantages_are_standardised_over_the_decisions_of_the_rollout() -> None:
    buffer = filled(ppo(advantage="gae"))
    cell = torch.cat(buffer._env).numpy()
    raw = np.sort(buffer.advantages.reshape(-1)[cell])
    used = torch.cat([part.advantages for part in buffer.get()]).sort().values.numpy()
    np.testing.assert_allclose(used, (raw - raw.mean()) / raw.std(), rtol=1e-4, atol=1e-5)


def test_explained_variance_counts_decisions_only() -> None:
    model = ppo(advantage="gae", epochs=1)
    model.set_logger(Logger(None, []))
    buffer = filled(model)
    cell = torch.cat(buffer._env).numpy()
    value, target = (column.reshape(-1)[cell].copy() for column in (buffer.values, buffer.returns))
    everywhere = 1 - np.var(buffer.returns - buffer.values) / np.var(buffer.returns)
    model.train()
    found = model.logger.name_to_value["train/explained_variance"]
    assert found == pytest.approx(1 - np.var(target - value) / np.var(target), rel=1e-5)
    assert found != pytest.approx(everywhere, rel=1e-3)


def test_a_critic_learns_the_returns_of_a_rollout() -> None:
    model = ppo(advantage="gae", epochs=30)
    model.set_logger(Logger(None, []))
    model.lr_schedule = lambda _: 1e-2
    buffer = filled(model)
    assert _explained(model, buffer) < 0.2
    model.train()
    assert _explained(model, buffer) > 0.6


def _explained(model: PPO, buffer: RaggedRolloutBuffer) -> float:
    """Share of the variance of the returns that the critic explains now."""
    with torch.no_grad():
        pairs = [(model.policy.evaluate_actions(p.observations, p.actions)[0], p.returns) for p in buffer.get()]
    value, target = (torch.cat(column) for column in zip(*pairs, strict=True))
    return 1 - float((target - value).var() / target.var())


def test_an_epoch_uses_a_share_of_the_decisions_each_at_most_once() -> None:
    def drawn(seed: int) -> list[list[float]]:
        model = ppo(share=0.4)
        buffer = filled(model)
        buffer.log_probs[:] = np.arange(buffer.log_probs.size).reshape(buffer.log_probs.shape)  # names of the cells
        torch.manual_seed(seed)
        epochs = [[int(n) for part in buffer.get() for n in part.old_log_prob] for _ in range(2)]
        stored = set(torch.cat(buffer._env).tolist())
        for epoch in epochs:
            assert len(epoch) == len(set(epoch)) == round(0.4 * buffer.num_decisions)
            assert set(epoch) < stored
        assert set(epochs[0]) != set(epochs[1])
        return epochs

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    with pytest.raises(UsageError, match=r"share is 1.5"):
        ppo(share=1.5)


def test_groups_need_company() -> None:
    with pytest.raises(UsageError, match="groups of 1"):
        RaggedRolloutBuffer(
            4, vec_env().observation_space, vec_env().action_space, n_envs=4, spec=vec_env().runs.spec, group=1
        )


@pytest.mark.parametrize("decisions", [1, 7, 1000])
@pytest.mark.parametrize("budget", [10, 60, 10_000])
def test_minibatch_sizes_add_up_and_respect_both_limits(decisions: int, budget: int) -> None:
    nodes = torch.from_numpy(np.random.default_rng(0).integers(1, 30, 200))
    sizes = minibatch_sizes(nodes, decisions, budget)
    assert sum(sizes) == 200
    assert min(sizes) >= 1
    for part in nodes.split(sizes):
        assert len(part) <= decisions
        assert int(part.sum()) <= budget or len(part) == 1


def test_save_and_load_of_stable_baselines_keep_working(tmp_path: Path) -> None:
    model = ppo()
    callback = CheckpointCallback(save_freq=10, save_path=str(tmp_path), name_prefix="ppo")
    model.learn(model.n_envs * model.n_steps, callback=callback)
    model.save(tmp_path / "model.zip", exclude=["_last_obs"])
    again = PPO.load(tmp_path / "model.zip", env=vec_env(), device="cpu")
    for name, value in model.policy.state_dict().items():
        assert torch.equal(again.policy.state_dict()[name], value), name
    obs = vec_env().reset()
    assert (again.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()
    again.learn(model.n_envs * model.n_steps, reset_num_timesteps=False)
    assert again.num_timesteps == 2 * model.n_envs * model.n_steps
    assert list(tmp_path.glob("ppo_*_steps.zip"))


def test_an_update_moves_the_policy_towards_better_episodes() -> None:
    model = ppo()
    model.policy.network.score = nn.Linear(16, 1, bias=False)
    buffer = filled(model)
    before = _score(model, buffer)
    model.policy.optimizer = torch.optim.AdamW(model.policy.parameters(), lr=3e-3)
    model.lr_schedule = lambda _: 3e-3
    model.set_logger(Logger(None, []))
    model.train()
    assert _score(model, buffer) > before


def _score(model: PPO, buffer: RaggedRolloutBuffer) -> float:
    """Sum of advantage x log-probability: what the policy gradient raises."""
    with torch.no_grad():
        return sum(
            float((model.policy.evaluate_actions(p.observations, p.actions)[1] * p.advantages).sum())
            for p in buffer.get()
        )
