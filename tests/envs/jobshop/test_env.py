"""The registered environments: Gymnasium's checker, padding against the ragged batch, rewards, errors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dispatchgym import envs
from dispatchgym.envs.api import GraphBatch, InvalidActionError, InvalidInstanceError, UnknownNameError, UsageError
from dispatchgym.envs.jobshop import generate, library, scenario
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.env import ShopEnv
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.schedule import Variant, validate

GRAPHS = ("jobs", "ops")
ENVS = {name: entry for name, entry in envs.ENVS.items() if "variant" in entry.arguments}


def small(rng: np.random.Generator) -> Instance:
    return generate.random_instance(rng, int(rng.integers(2, 7)), int(rng.integers(2, 5)))


def made(name: str, **arguments: Any) -> ShopEnv:
    env = gym.make(name, **arguments).unwrapped
    assert isinstance(env, ShopEnv)
    return env


def variant_of(name: str) -> Variant:
    return ENVS[name].arguments["variant"]  # type: ignore[return-value]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ENVS)
def test_gymnasium_accepts_the_environment(name: str, graph: str) -> None:
    env = made(name, graph=graph)

    def sample(mask: Any = None, probability: Any = None) -> np.int64:
        """The checker samples actions blindly; ours refuses illegal ones, so it is given the first legal one."""
        return np.int64(env._batch.mask[0].argmax())

    env.action_space.sample = sample  # type: ignore[method-assign]
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("name", ENVS)
def test_the_same_seed_gives_the_same_episode(name: str) -> None:
    def episode(seed: int) -> list[tuple[float, int, float]]:
        env = made(name, instance=small, capacity=(6, 4, 24))
        obs, info = env.reset(seed=seed)
        rng, log, over = np.random.default_rng(seed), [], False
        while not over:
            obs, reward, over, _, info = env.step(rng.choice(np.flatnonzero(obs["action_mask"])))
            log.append((reward, info["now"], float(obs["job"].sum())))
        return log

    assert episode(3) == episode(3)
    assert episode(3) != episode(4)


def padded_equals_ragged(obs: dict[str, Any], ragged: GraphBatch) -> None:
    assert obs["num_nodes"].tolist() == [len(x) for x in ragged.x.values()]
    for node, x in ragged.x.items():
        np.testing.assert_array_equal(obs[node][: len(x)], x)
        assert not obs[node][len(x) :].any()
    for link, target in ragged.link.items():
        np.testing.assert_array_equal(obs[link][: len(target)], target)
        assert (obs[link][len(target) :] == -1).all()
    np.testing.assert_array_equal(np.flatnonzero(obs["action_mask"]), ragged.action)
    np.testing.assert_array_equal(obs["candidate"][ragged.action], ragged.candidate)


@pytest.mark.parametrize("graph", [*GRAPHS, "pilot"])
@pytest.mark.parametrize("name", ENVS)
def test_padded_and_batched_observations_are_equal_at_every_step(name: str, graph: str) -> None:
    rng, variant = np.random.default_rng(7), variant_of(name)
    for seed in range(5):
        instance = small(rng)
        env = made(name, instance=instance, graph=graph)
        obs, _ = env.reset(seed=seed)
        shutdowns = [env.scenario] if env.scenario is not None else None
        batch = ShopBatch.of([instance], ShopConfig(variant), graph, shutdowns)  # type: ignore[arg-type]
        over = False
        while not over:
            padded_equals_ragged(obs, batch.observe())
            action = rng.choice(np.flatnonzero(obs["action_mask"]))
            obs, reward, over, _, _ = env.step(action)
            assert batch.step([int(action)])[0][0] == reward
        padded_equals_ragged(obs, batch.observe())


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("variant", ["jssp", "bws", "bns", "isbjssp"])
def test_a_batch_observes_what_its_members_observe_alone(variant: Variant, graph: str) -> None:
    rng = np.random.default_rng(8)
    instances = [small(rng) for _ in range(6)]
    shutdowns = [scenario.draw(i, 0.2, 1, "resume") for i in instances] if variant == "isbjssp" else None
    batch = ShopBatch.of(instances, ShopConfig(variant), graph, shutdowns)  # type: ignore[arg-type]
    alone = [
        ShopBatch.of([one], ShopConfig(variant), graph, [shutdowns[k]] if shutdowns else None)  # type: ignore[arg-type]
        for k, one in enumerate(instances)
    ]
    while not batch.over.all():
        whole = batch.observe()
        for i, single in enumerate(alone):
            part = single.observe()
            for node, x in part.x.items():
                np.testing.assert_array_equal(whole.x[node][whole.ptr[node][i] : whole.ptr[node][i + 1]], x)
            for link in batch.spec.links:
                rows = slice(whole.ptr[link.source][i], whole.ptr[link.source][i + 1])
                target = whole.link[link.name][rows]
                target = np.where(target >= 0, target - whole.ptr[link.target][i], -1)
                np.testing.assert_array_equal(target, part.link[link.name])
        actions = [int(rng.choice(np.flatnonzero(m))) if m.any() else 0 for m in batch.mask]
        batch.step(actions)
        for i, single in enumerate(alone):
            single.step([single.wait_action if actions[i] == batch.wait_action else actions[i]])


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("variant", ["jssp", "bws", "bns", "isbjssp"])
def test_features_are_finite_and_within_their_declared_ranges(variant: Variant, graph: str) -> None:
    instance = library.load("la21")
    shutdowns = [scenario.draw(instance, 0.2, 1, "resume")] if variant == "isbjssp" else None
    batch = ShopBatch.of([instance], ShopConfig(variant), graph, shutdowns)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    varied = {node.name: set[int]() for node in batch.spec.nodes}
    while not batch.over[0]:
        obs = batch.observe()
        for node in batch.spec.nodes:
            x = obs.x[node.name]
            low = np.array([f.low for f in node.features])
            high = np.array([f.high for f in node.features])
            assert np.isfinite(x).all()
            assert ((x >= low) & (x <= high)).all(), [
                f.name for f, bad in zip(node.features, ((x < low) | (x > high)).any(axis=0), strict=True) if bad
            ]
            varied[node.name] |= set(np.flatnonzero(x.any(axis=0)).tolist())
        batch.step([int(rng.choice(np.flatnonzero(batch.mask[0])))])
    if variant == "isbjssp":  # the richest shop: every declared column is used, but for the classic shop's own
        unused = {
            f"{node.name}.{f.name}"
            for node in batch.spec.nodes
            for c, f in enumerate(node.features)
            if c not in varied[node.name]
        }
        assert unused <= {"job.idle"}


def test_the_first_graph_of_two_jobs_is_as_by_hand() -> None:
    # Mean duration 2. Job 0: machine 0 for 4, then 1 for 1. Job 1: machine 1 for 2, then 0 for 1.
    pair = Instance.from_routes("pair", [[(0, 4), (1, 1)], [(1, 2), (0, 1)]])
    obs = ShopBatch.of([pair], ShopConfig(), "ops").observe()
    np.testing.assert_array_equal(obs.x["op"][:, 0], [2, 0.5, 1, 0.5])  # duration
    np.testing.assert_array_equal(obs.x["op"][:, 1], [0.5, 0, 0.5, 0])  # work after
    np.testing.assert_array_equal(obs.x["op"][:, 3], [0, 2, 0, 1])  # head
    np.testing.assert_array_equal(obs.x["op"][:, 5], [2.5, 1.5, 1.5, 2.5])  # machine load
    np.testing.assert_array_equal(obs.x["op"][:, 7], [0, 0, 1, 1])  # slack: bound 5, job 1 needs 3
    np.testing.assert_array_equal(obs.link["needs"], [0, 1, 1, 0])
    np.testing.assert_array_equal(obs.link["of"], [0, 0, 1, 1])
    np.testing.assert_array_equal(obs.link["then"], [1, -1, 3, -1])
    np.testing.assert_array_equal(obs.link["first"], [0, 2])
    np.testing.assert_array_equal(obs.candidate, [0, 1])


@pytest.mark.parametrize("name", ENVS)
def test_an_episode_ends_with_a_valid_schedule_and_its_makespan(name: str) -> None:
    env = made(name, instance=["ft06", "la01"])
    for seed in range(3):
        obs, info = env.reset(seed=seed)
        first, total, over = info["bound"], 0.0, False
        while not over:
            obs, reward, over, truncated, info = env.step(np.flatnonzero(obs["action_mask"])[0])
            assert not truncated
            total += reward
        assert env.instance is not None
        validate(env.schedule(), env.instance, variant_of(name), env.scenario)
        assert total == first - info["makespan"]
        with pytest.raises(InvalidActionError, match="no episode is running; call reset"):
            env.step(0)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ENVS)
def test_the_native_vector_environment_equals_single_ones_in_a_row(name: str, graph: str) -> None:
    arguments: dict[str, Any] = {"instance": small, "capacity": (6, 4, 24), "graph": graph}
    native = gym.make_vec(name, 3, vectorization_mode="vector_entry_point", **arguments)
    row = [made(name, **arguments) for _ in range(3)]
    rng = np.random.default_rng(0)
    obs, infos = native.reset(seed=5)
    alone = [env.reset(seed=5 + i) for i, env in enumerate(row)]
    over, episodes = [False] * 3, 0
    for _ in range(150):
        for i, (own, info) in enumerate(alone):
            assert native.single_observation_space.contains(own)
            for key, value in own.items():
                np.testing.assert_array_equal(obs[key][i], value)
            assert (infos["now"][i], infos["bound"][i]) == (info["now"], info["bound"])
        actions = [int(rng.choice(np.flatnonzero(m))) if m.any() else 0 for m in obs["action_mask"]]
        obs, rewards, terminations, truncations, infos = native.step(np.array(actions))
        for i, env in enumerate(row):
            if over[i]:
                alone[i], over[i] = env.reset(), False
                assert (rewards[i], terminations[i]) == (0, False)
                continue
            own, reward, over[i], _, info = env.step(actions[i])
            alone[i] = own, info
            assert (rewards[i], terminations[i], truncations[i]) == (reward, over[i], False)
            if over[i]:
                episodes += 1
                assert infos["makespan"][i] == info["makespan"]
    assert episodes > 3


def test_the_vector_environment_takes_a_seed_for_each_of_its_members() -> None:
    native = gym.make_vec(
        "dispatchgym/JobShop-v0", 2, vectorization_mode="vector_entry_point", instance=small, capacity=(6, 4, 24)
    )
    obs, _ = native.reset(seed=[9, 9])
    np.testing.assert_array_equal(obs["job"][0], obs["job"][1])
    assert native.unwrapped.wait_action == 6  # type: ignore[attr-defined]


def test_without_swaps_the_blocking_shop_offers_no_exchange() -> None:
    env = made("dispatchgym/BlockingJobShop-v0", instance="la01", swap=False)
    obs, _ = env.reset(seed=0)
    over, rng = False, np.random.default_rng(0)
    while not over:
        obs, _, over, _, _ = env.step(rng.choice(np.flatnonzero(obs["action_mask"])))
    validate(env.schedule(), library.load("la01"), "bns")


def test_a_recorded_scenario_can_be_replayed() -> None:
    env = made("dispatchgym/InterruptingJobShop-v0", shutdown_probability=0.3)
    _, _ = env.reset(seed=1)
    recorded = env.scenario
    assert recorded is not None
    env.reset(seed=2, options={"scenario": recorded})
    assert env.scenario is recorded
    env.reset(seed=2)
    assert env.scenario is not recorded


@pytest.mark.parametrize("name", ENVS)
@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_it_draws_itself_at_the_start_in_the_middle_and_at_the_end(name: str, mode: str) -> None:
    env = made(name, render_mode=mode)
    obs, _ = env.reset(seed=0)
    pictures, over, steps = [env.render()], False, 0
    while not over:
        obs, _, over, _, _ = env.step(np.flatnonzero(obs["action_mask"])[0])
        steps += 1
        if steps == 10 or over:
            pictures.append(env.render())
    if mode == "ansi":
        assert len({str(p) for p in pictures}) == 3
    else:
        assert all(p.dtype == np.uint8 and p.ndim == 3 and p.shape[2] == 3 for p in pictures)
        assert len({p.tobytes() for p in pictures}) == 3


def test_bad_requests_say_what_is_wrong() -> None:
    with pytest.raises(UnknownNameError, match="ft6"):
        made("dispatchgym/JobShop-v0", instance="ft6")
    with pytest.raises(UsageError, match="empty list"):
        made("dispatchgym/JobShop-v0", instance=[])
    with pytest.raises(UsageError, match="graph is 'cliques'"):
        made("dispatchgym/JobShop-v0", graph="cliques")
    with pytest.raises(UsageError, match=r"shutdown_probability is 0\.2, but variant 'bws' has no shutdowns"):
        made("dispatchgym/BlockingJobShop-v0", shutdown_probability=0.2)
    with pytest.raises(UsageError, match="swap=False exists in BlockingJobShop-v0 only"):
        made("dispatchgym/JobShop-v0", swap=False)
    with pytest.raises(UsageError, match="render_mode is 'human'"):
        ShopEnv("jssp", render_mode="human")
    env = made("dispatchgym/JobShop-v0")
    with pytest.raises(InvalidActionError, match="call reset"):
        env.step(0)
    with pytest.raises(UsageError, match="reset option 'instanse' is not known"):
        env.reset(options={"instanse": "ft10"})
    with pytest.raises(InvalidInstanceError, match="does not fit"):
        env.reset(options={"instance": "ft10"})
    with pytest.raises(UsageError, match="no shutdowns"):
        env.reset(options={"scenario": scenario.no_shutdowns(6)})
    env.reset()
    with pytest.raises(InvalidActionError, match="action 6 is not legal now; legal are: 0, 1, 2, 3, 4, 5"):
        env.step(env.wait_action)


def test_importing_the_package_makes_the_environments_known_to_gymnasium() -> None:
    code = (
        "import gymnasium, dispatchgym; print(gymnasium.make('dispatchgym/JobShop-v0').reset(seed=0)[0]['num_nodes'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[6 6 1]"
