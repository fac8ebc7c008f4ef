"""The registered packing environments: Gymnasium's checker, padding against the ragged batch, rewards, errors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dispatchgym.envs.api import GraphBatch, InvalidActionError, InvalidInstanceError, UsageError
from dispatchgym.envs.packing import episodes, generate
from dispatchgym.envs.packing.batch import PLACED, GraphName, PackingBatch, PackingConfig
from dispatchgym.envs.packing.env import PackingEnv
from dispatchgym.envs.packing.instance import Nodes, PackingInstance, Pods
from dispatchgym.envs.packing.state import Capacity
from dispatchgym.envs.packing.validate import validate

IDS = ("dispatchgym/PodPacking-v0", "dispatchgym/GpuPacking-v0")
GRAPHS: tuple[GraphName, ...] = ("pods", "gpus")
ROOM = Capacity(nodes=6, pods=14, resources=3, gpus=4, workloads=4, terms=4, domains=6, typical=14)
RICH = PackingConfig(evict=True, moves=3, reward=PLACED, fragments=True)


def some(rng: np.random.Generator) -> PackingInstance:
    nodes, pods = int(rng.integers(2, 7)), int(rng.integers(3, 15))
    return generate.random_cluster(rng, nodes, pods, gpus=True, departures=bool(rng.integers(2)))


def made(name: str, **arguments: Any) -> PackingEnv:
    env = gym.make(name, **arguments).unwrapped
    assert isinstance(env, PackingEnv)
    return env


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_accepts_the_environment(name: str) -> None:
    env = made(name)

    def sample(mask: Any = None, probability: Any = None) -> np.int64:
        """The checker samples actions blindly; ours refuses illegal ones, so it is given the first legal one."""
        return np.int64(env._batch.mask[0].argmax())

    env.action_space.sample = sample  # type: ignore[method-assign]
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("name", IDS)
def test_the_default_instances_fit_the_default_room(name: str) -> None:
    world = episodes.WORLDS["pods" if "Pod" in name else "gpus"]
    for seed in range(200 if "Pod" in name else 30):
        need = Capacity.of([world.source(np.random.default_rng(seed))])
        assert all(a <= b for a, b in zip(need, world.capacity, strict=True)), need


@pytest.mark.parametrize("name", IDS)
def test_the_same_seed_gives_the_same_episode(name: str) -> None:
    def episode(seed: int) -> list[tuple[float, int, float]]:
        env = made(name, instance=some, capacity=ROOM, config=RICH)
        obs, info = env.reset(seed=seed)
        rng, log, over = np.random.default_rng(seed), [], False
        while not over:
            obs, reward, over, _, info = env.step(rng.choice(np.flatnonzero(obs["action_mask"])))
            log.append((reward, info["now"], float(obs["choice"].sum())))
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
    np.testing.assert_array_equal(np.flatnonzero(obs["action_mask"]), np.sort(ragged.action))
    np.testing.assert_array_equal(obs["candidate"][ragged.action], ragged.candidate)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("seed", range(4))
def test_padded_and_batched_observations_are_equal_at_every_step(seed: int, graph: GraphName) -> None:
    rng = np.random.default_rng(seed)
    instance = some(rng)
    env = made(IDS[0], instance=instance, config=RICH, graph=graph, capacity=ROOM)
    obs, _ = env.reset(seed=seed)
    batch = PackingBatch(1, ROOM, RICH, graph)
    batch.load([0], [instance])
    batch.reset()
    over = False
    while not over:
        assert obs in env.observation_space
        padded_equals_ragged(obs, batch.observe())
        action = rng.choice(np.flatnonzero(obs["action_mask"]))
        obs, reward, over, _, _ = env.step(action)
        assert batch.step([int(action)])[0][0] == reward
    padded_equals_ragged(obs, batch.observe())


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_batch_observes_what_its_members_observe_alone(graph: GraphName) -> None:
    rng = np.random.default_rng(8)
    instances = [some(rng) for _ in range(4)]
    whole = PackingBatch(4, ROOM, RICH, graph)
    whole.load(range(4), instances)
    whole.reset()
    alone = []
    for instance in instances:
        one = PackingBatch(1, ROOM, RICH, graph)
        one.load([0], [instance])
        one.reset()
        alone.append(one)
    while not whole.over.all():
        obs = whole.observe()
        for i, single in enumerate(alone):
            part = single.observe()
            for node, x in part.x.items():
                np.testing.assert_array_equal(obs.x[node][obs.ptr[node][i] : obs.ptr[node][i + 1]], x)
            for link in whole.spec.links:
                target = obs.link[link.name][obs.ptr[link.source][i] : obs.ptr[link.source][i + 1]]
                target = np.where(target >= 0, target - obs.ptr[link.target][i], -1)
                np.testing.assert_array_equal(target, part.link[link.name])
        actions = [int(rng.choice(np.flatnonzero(m))) if m.any() else 0 for m in whole.mask]
        whole.step(actions)
        for i, single in enumerate(alone):
            single.step([actions[i]])


@pytest.mark.parametrize("graph", GRAPHS)
def test_features_stay_in_their_ranges_and_every_column_is_used(graph: GraphName) -> None:
    rng = np.random.default_rng(0)
    batch = PackingBatch(1, ROOM, RICH, graph)
    unused = {f"{node.name}.{f.name}" for node in batch.spec.nodes for f in node.features}
    for _ in range(25):
        batch.load([0], [some(rng)])
        batch.reset()
        while not batch.over[0]:
            obs = batch.observe()
            for node in batch.spec.nodes:
                x = obs.x[node.name]
                assert np.isfinite(x).all()
                for c, f in enumerate(node.features):
                    if len(x):
                        assert f.low - 1e-6 <= x[:, c].min(), f.name
                        assert x[:, c].max() <= f.high + 1e-6, f.name
                        if x[:, c].any():
                            unused.discard(f"{node.name}.{f.name}")
            batch.step([int(rng.choice(np.flatnonzero(batch.mask[0])))])
    assert not unused


def test_the_first_graph_of_two_pods_is_as_by_hand() -> None:
    # Nodes of 10 and 30; pod 0 (4, 2) of the higher priority is at hand, pod 1 (5, 5) behind it.
    instance = PackingInstance(
        "hand", Nodes(np.array([[10, 10], [30, 30]])), Pods(np.array([[4, 2], [5, 5]]), priority=np.array([7, 3]))
    )
    obs = PackingBatch.of([instance], PackingConfig()).observe()
    names = [f.name for f in PackingBatch.of([instance]).spec.node("choice").features]
    choice = {name: obs.x["choice"][:, c].tolist() for c, name in enumerate(names)}
    assert choice["bind"] == [1, 1]
    assert choice["cpu_after"] == pytest.approx([0.6, 26 / 30])
    assert choice["uneven_after"] == pytest.approx([0.2, 2 / 30])
    assert choice["pods_after"] == pytest.approx([109 / 110] * 2)
    assert obs.link["host"].tolist() == [0, 1]
    assert obs.link["about"].tolist() == [0, 0]
    assert obs.link["hand"].tolist() == [0]
    assert obs.link["on"].tolist() == [-1, -1]
    np.testing.assert_allclose(obs.x["pod"][:, :8], [[1, 0, 1, 0, 1, 0, 0.2, 0.1], [0, 0, 1, 0, 0, 1, 0.25, 0.25]])
    np.testing.assert_allclose(obs.x["node"][:, :4], [[1, 1, 0.5, 0.5], [1, 1, 1.5, 1.5]])
    assert (obs.candidate.tolist(), obs.action.tolist()) == ([0, 1, -1], [0, 1, 6])


@pytest.mark.parametrize("name", IDS)
def test_an_episode_ends_with_a_valid_log_and_its_metrics(name: str) -> None:
    env = made(name, instance=some, capacity=ROOM, config=RICH, render_mode="ansi")
    for seed in range(4):
        obs, info = env.reset(seed=seed)
        over, total = False, 0.0
        while not over:
            assert "metrics" not in info
            obs, reward, over, truncated, info = env.step(np.flatnonzero(obs["action_mask"])[0])
            assert not truncated
            total += reward
        assert env.instance is not None
        validate(env.log().events(), env.instance)
        metrics = info["metrics"]
        worth = sum(n * 4.0**tier for tier, n in enumerate(reversed(metrics["placed"])))
        assert total == pytest.approx(worth - 0.1 * metrics["evictions"] - 0.1 * metrics["moves"])
        lines = env.render().splitlines()
        assert len(lines) == env.instance.num_nodes
        with pytest.raises(InvalidActionError, match="no episode is running; call reset"):
            env.step(0)


@pytest.mark.parametrize("name", IDS)
def test_the_native_vector_environment_equals_single_ones_in_a_row(name: str) -> None:
    arguments: dict[str, Any] = {"instance": some, "capacity": ROOM, "config": RICH}
    native = gym.make_vec(name, 3, vectorization_mode="vector_entry_point", **arguments)
    row = [made(name, **arguments) for _ in range(3)]
    rng = np.random.default_rng(0)
    obs, infos = native.reset(seed=5)
    alone = [env.reset(seed=5 + i) for i, env in enumerate(row)]
    over, ended = [False] * 3, 0
    for _ in range(120):
        for i, (own, info) in enumerate(alone):
            for key, value in own.items():
                np.testing.assert_array_equal(obs[key][i], value)
            assert infos["now"][i] == info["now"]
        actions = [int(rng.choice(np.flatnonzero(m))) if m.any() else 0 for m in obs["action_mask"]]
        obs, rewards, terminations, _, infos = native.step(np.array(actions))
        for i, env in enumerate(row):
            if over[i]:
                alone[i], over[i] = env.reset(), False
                assert (rewards[i], terminations[i]) == (0, False)
                continue
            own, reward, over[i], _, info = env.step(actions[i])
            alone[i] = own, info
            assert (rewards[i], terminations[i]) == (reward, over[i])
            if over[i]:
                ended += 1
                assert infos["placed"][i] == sum(info["metrics"]["placed"])
    assert ended > 3


def test_bad_requests_say_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="empty list"):
        made(IDS[0], instance=[])
    with pytest.raises(UsageError, match="graph is 'cliques'"):
        made(IDS[0], graph="cliques")
    with pytest.raises(UsageError, match="render_mode is 'human'"):
        PackingEnv("pods", render_mode="human")
    with pytest.raises(UsageError, match="moves is -1"):
        PackingConfig(moves=-1)
    env = made(IDS[0])
    with pytest.raises(UsageError, match="reset option 'instanse' is not known"):
        env.reset(options={"instanse": 1})
    with pytest.raises(InvalidInstanceError, match="raise the capacity"):
        env.reset(options={"instance": generate.priority_matters(16, 4, 1, 0.9, 0)})
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match="is not legal now; legal are"):
        env.step(env.action_space.n)
