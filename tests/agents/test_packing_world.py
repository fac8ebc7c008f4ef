"""Packing as a world to train in: runs, training that resumes exactly, bundles, policies by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.evaluation.packing import suites
from dispatchgym.agents.evaluation.packing.policies import parse_policy
from dispatchgym.agents.example_graphs import examples
from dispatchgym.agents.export_command import main as export
from dispatchgym.agents.graph_vec_env import GraphVecEnv, RolloutConfig
from dispatchgym.agents.learned_policy import parse_bundle
from dispatchgym.agents.packing_world import FIRST_SEED, PackingSource, PackingWorld, PodSource, TwinSource
from dispatchgym.agents.train_command import main as train
from dispatchgym.agents.training.config import TrainConfig, load
from dispatchgym.agents.training.run import build, fit_scale
from dispatchgym.agents.training.run import train as run_training
from dispatchgym.agents.training.validation import Validation
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.shortlist import ShortName
from dispatchgym.envs.packing.validate import validate

ROOT = Path(__file__).parents[2]
RECIPES = {"repack": ROOT / "configs/packing/priority.yaml", "bindings": ROOT / "configs/packing/gpu.yaml"}
TINY = [
    "device=cpu", "packing.pods.nodes=[4]", "packing.twins.scales=[0.003]", "rollout.instances=2",
    "rollout.rollouts=3", "rollout.lanes=1", "policy.encoder.width=8", "policy.encoder.layers=1",
    "policy.encoder.heads=2", "validation.instances=4", "validation.every=1", "checkpoint_every=1",
    "ppo.minibatch=512", "tracking.wandb=disabled",
]  # fmt: skip
SOURCE = PackingSource(pods=PodSource((4, 5)), twins=TwinSource((0.003,)))


def play_round(env: GraphVecEnv) -> tuple[np.ndarray, list[dict[str, torch.Tensor]], list[float]]:
    rng = np.random.default_rng(0)
    obs, total, seen, losses = env.reset(), np.zeros(env.num_envs), [], []
    for _ in range(env.length):
        seen.append(obs)
        choices = np.zeros(env.num_envs, np.int64)
        choices[obs["active"].numpy()] = rng.integers(obs["candidate_ptr"].diff().numpy())
        obs, reward, _, infos = env.step(choices)
        total += reward
        losses += [info["loss"] for info in infos if info]
    return total, seen, losses


@pytest.mark.parametrize("graph", ["repack", "bindings"])
def test_every_environment_ends_once_and_lanes_change_nothing(graph: ShortName) -> None:
    one, two = (
        play_round(GraphVecEnv(PackingWorld(graph, SOURCE), RolloutConfig(4, 2, lanes=lanes))) for lanes in (1, 4)
    )
    np.testing.assert_array_equal(one[0], two[0])
    assert len(one[2]) == 8
    for a, b in zip(one[1], two[1], strict=True):
        for name in a:
            assert torch.equal(a[name], b[name]), name
    if graph == "bindings":  # what was won before the first choice is no part of the return
        assert (one[0] <= 100 - np.array(sorted(one[2])[0]) + 1e-3).all()


@pytest.mark.parametrize("graph", ["repack", "bindings"])
def test_a_round_that_is_cut_short_is_finished_by_merit(graph: ShortName) -> None:
    total, _, losses = play_round(GraphVecEnv(PackingWorld(graph, SOURCE), RolloutConfig(2, 2, steps=2)))
    assert len(losses) == 4
    assert (total > 0).all()


@pytest.mark.parametrize("graph", ["repack", "bindings"])
def test_an_untrained_network_plays_as_the_merit(graph: ShortName) -> None:
    config = load(RECIPES[graph], TINY)
    model = build(config)
    fit_scale(model.policy, config)  # type: ignore[arg-type]
    exam = Validation(config).exam
    np.testing.assert_allclose(exam.greedy(model.policy.network), exam.by_rule("merit"))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["repack", "bindings"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ShortName, Path]:
    """A run of two iterations."""
    folder = tmp_path_factory.mktemp("run") / request.param
    assert train([str(RECIPES[request.param]), *TINY, "iterations=2", "--out", str(folder)]) == 0
    return request.param, folder


def test_a_killed_training_resumes_exactly(run: tuple[ShortName, Path], tmp_path: Path) -> None:
    graph, whole = run

    def stop(iteration: int, row: object, timing: object) -> None:
        if iteration == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(load(RECIPES[graph], [*TINY, "iterations=2"]), tmp_path, stop)
    assert train(["--resume", str(tmp_path)]) == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert "Finished: 2 iterations" in (tmp_path / "report.html").read_text()


def test_a_bundle_says_the_same_in_every_runtime_and_plays_by_the_rules(
    run: tuple[ShortName, Path], tmp_path: Path
) -> None:
    graph, folder = run
    assert export([str(folder), "--out", str(tmp_path / "b"), "--no-onnx"]) == 0
    by_torch, by_numpy = (bundles.load(tmp_path / "b", runtime) for runtime in ("torch", "numpy"))  # type: ignore[arg-type]
    for _, shown in examples(by_numpy.runtime.spec, by_numpy.setting, [(5, 4), (9, 6)], seed=9):
        off = bundles.distance(by_torch.runtime.one(shown), by_numpy.runtime.one(shown))
        assert off <= bundles.TOLERANCE
    policy = parse_policy(f"bundle:{tmp_path / 'b'}")
    sampled = parse_policy(f"bundle:{tmp_path / 'b'}@3")
    world = "pods" if graph == "repack" else "gpus"
    assert world in policy.variants
    problem = next(p for p in SMALL if p.variant == world)
    greedy, best = (each.prepare(problem)(problem.scenario(0), 7) for each in (policy, sampled))
    for answer in (greedy, best):
        assert answer.decisions > 0
        validate(answer.events, problem.instance)
    with pytest.raises(UsageError, match="is for packing, not for job shops"):
        parse_bundle(f"bundle:{tmp_path / 'b'}")


def small_problems() -> list[suites.PackingProblem]:
    drawn = [SOURCE.draw(graph, 1, (3, 3))[1][0] for graph in ("repack", "bindings")]
    return [
        suites.PackingProblem("test", "small", instance, world)
        for instance, world in zip(drawn, ("pods", "gpus"), strict=True)
    ]


SMALL = small_problems()


@pytest.mark.parametrize("path", RECIPES.values(), ids=lambda path: path.stem)
def test_no_recipe_trains_on_what_policies_are_tested_on(path: Path) -> None:
    """Tests draw from seeds that training cannot reach; and what is drawn differs from them, and within itself."""
    assert suites.FIRST_SEED >= 2**31
    config = load(path, ["packing.pods.nodes=[8]", "packing.twins.scales=[0.01]"])
    graph: ShortName = "bindings" if config.graph == "bindings" else "repack"
    drawn = [
        instance.digest
        for rollout in range(5)
        for instance in config.packing.draw(graph, config.rollout.instances, (config.seed, 0, rollout))[1]
    ]
    validated = [instance.digest for instance in config.packing.draw(graph, 40, (config.validation.seed, 1))[1]]
    tested = [problem.instance.digest for problem in suites.suite("packing/smoke").build()]
    assert len(set(drawn)) == len(drawn) >= 80
    assert not set(drawn) & {*validated, *tested}
    assert FIRST_SEED > 1000


def test_sources_and_graphs_that_cannot_be_are_refused() -> None:
    for override, message in (
        ("packing.pods.usage=[]", "give at least one"),
        ("packing.twins.scales=[2]", "up to 1"),
        ("packing.twins.published=2", "share from 0 to 1"),
        ("packing.choices.most=1", "at least 2"),
        ("graph=pods", "must be one of"),
        ("packing.twin.scales=[1]", "did you mean"),
    ):
        with pytest.raises((UsageError, KeyError), match=message):
            load(None, [override])
    with pytest.raises(UsageError, match="cannot follow"):
        load(RECIPES["repack"], ["warm_start.teacher=pilot"])
    assert isinstance(load(RECIPES["bindings"]), TrainConfig)
