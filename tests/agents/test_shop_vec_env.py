"""The training environment: whole episodes, true returns, the same whatever the number of lanes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from dispatchgym.agents.graph_vec_env import GraphVecEnv, RolloutConfig
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.agents.shop_world import InstanceSource, ShopWorld
from dispatchgym.agents.training.config import load
from dispatchgym.envs.jobshop.batch import GraphName, ShopConfig
from dispatchgym.envs.jobshop.schedule import Variant
from tests.agents.helpers import instances, vec_env


def random_choices(obs: dict[str, torch.Tensor], rng: np.random.Generator) -> np.ndarray:
    choices = np.zeros(len(obs["over"]), np.int64)
    choices[obs["active"].numpy()] = rng.integers(obs["candidate_ptr"].diff().numpy())
    return choices


Round = tuple[np.ndarray, dict[int, dict[str, float]], list[dict[str, torch.Tensor]]]
"""Return of every environment, what each reported at its end, and all observations."""


def play_round(env: GraphVecEnv, seed: int = 0) -> Round:
    rng = np.random.default_rng(seed)
    obs, total, ended, seen = env.reset(), np.zeros(env.num_envs), {}, []
    for _ in range(env.length):
        seen.append(obs)
        obs, reward, done, infos = env.step(random_choices(obs, rng))
        total += reward
        for i, info in enumerate(infos):
            if info:
                assert done[i]
                ended[i] = {**info["episode"], "makespan": info["makespan"]}
    return total, ended, seen


@pytest.mark.parametrize("variant", ["jssp", "bws", "bns", "isbjssp"])
def test_every_environment_ends_once_and_its_return_is_its_makespan(variant: Variant) -> None:
    env = vec_env(variant)
    env.reset()
    bound = np.concatenate([b.shop.bound for b in env.runs.batches])
    world = env.world
    assert isinstance(world, ShopWorld)
    drawn, shutdowns = world.source.draw(4, (0, 0, 0), world.shop)
    start = ShopRuns.of(drawn, world.shop, rollouts=4, scenarios=shutdowns)
    initial = start.start(drawn, shutdowns)
    forced = (initial - bound) / initial  # earned by forced moves before the first decision
    total, ended, _ = play_round(env)
    assert sorted(ended) == list(range(16))
    for i, episode in ended.items():
        assert episode["r"] == pytest.approx(total[i], abs=1e-5)
        assert episode["r"] + forced[i] == pytest.approx(1 - episode["makespan"] / initial[i], abs=1e-5)
    assert env.rounds == 1


@pytest.mark.parametrize("graph", ["jobs", "ops"])
def test_lanes_change_nothing(graph: GraphName) -> None:
    one, many = play_round(vec_env("isbjssp", graph)), play_round(vec_env("isbjssp", graph, lanes=4))
    np.testing.assert_array_equal(one[0], many[0])
    for a, b in zip(one[2], many[2], strict=True):
        for name in a:
            assert torch.equal(a[name], b[name]), name


def test_environments_of_a_group_share_their_instance_and_scenario() -> None:
    env = vec_env("isbjssp")
    env.reset()
    shop = env.runs.batches[0].shop
    assert (shop.slot == np.repeat(np.arange(4), 4)).all()
    assert (shop.down_ptr.reshape(4, 4, -1) == shop.down_ptr.reshape(4, 4, -1)[:, :1]).all()


def test_a_round_can_be_restored_by_its_number() -> None:
    env = vec_env()
    play_round(env)
    play_round(env, seed=1)  # now in round 2, just begun
    fresh = vec_env()
    fresh.rounds = env.rounds
    later, again = env.reset(), fresh.reset()
    assert env.rounds == 2
    for name in later:
        assert torch.equal(later[name], again[name])
    assert not torch.equal(vec_env().reset()["x/job"], again["x/job"])


def test_episodes_longer_than_the_rollout_are_finished_by_the_rule() -> None:
    env = GraphVecEnv(ShopWorld(ShopConfig("bws"), InstanceSource(sizes=((5, 4),))), RolloutConfig(2, 2, steps=3))
    total, ended, _ = play_round(env)
    assert sorted(ended) == [0, 1, 2, 3]
    assert all(episode["l"] <= 3 and episode["makespan"] > 0 for episode in ended.values())
    assert (total < 0).all()


def test_every_decision_has_a_choice() -> None:
    for obs in play_round(vec_env("bws"))[2]:
        if obs["active"].shape[0]:
            assert int(obs["candidate_ptr"].diff().min()) >= 2


def test_observations_do_not_change_afterwards() -> None:
    env = vec_env()
    obs = env.reset()
    kept = {name: value.clone() for name, value in obs.items()}
    env.step(random_choices(obs, np.random.default_rng(0)))
    for name, value in obs.items():
        assert torch.equal(value, kept[name])


def test_shipped_configurations_train_on_generated_sizes_only_up_to_20x15() -> None:
    folder = Path(__file__).parents[2] / "configs" / "jobshop"
    for path in sorted(folder.glob("*.yaml")):
        config = load(path)
        room = config.instances.capacity  # of all stages of a curriculum
        assert room.jobs <= 20, path.name
        assert room.machines <= 15, path.name


def test_it_is_a_vec_env_with_the_usual_attributes() -> None:
    env = vec_env()
    assert isinstance(env, VecEnv)
    assert env.get_attr("render_mode") == [None] * 16
    assert env.env_is_wrapped(VecEnv) == [False] * 16
    env.close()


def test_finished_environments_leave_the_observation() -> None:
    runs = ShopRuns.of(instances(3), ShopConfig())
    rng = np.random.default_rng(0)
    sizes = set()
    while not runs.over.all():
        obs = runs.observe()
        sizes.add(int(obs["active"].shape[0]))
        assert obs["x/shop"].shape[0] == obs["active"].shape[0] == int((~obs["over"]).sum())
        runs.step(random_choices(obs, rng))
    assert sizes >= {1, 3}
    assert runs.observe()["active"].shape[0] == 0
