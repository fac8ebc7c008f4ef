"""Fine-tuning on a real executor: its clock is what is paid by, one episode at a time; weights begin as a bundle's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dispatchgym.agents import bundle
from dispatchgym.agents.evaluation.command import main as evaluate
from dispatchgym.agents.export_command import main as export
from dispatchgym.agents.graph_vec_env import GraphVecEnv
from dispatchgym.agents.train_command import main
from dispatchgym.agents.training.checkpoint import load_checkpoint
from dispatchgym.agents.training.config import load
from dispatchgym.agents.training.run import train
from dispatchgym.agents.training.world import world_of
from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.llm.batch import EngineBatch, Room
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.draws import DrawConfig, draw, largest_engine
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.profile import PROFILES
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.steps import emit
from dispatchgym.envs.llm.workload import Workload

RECIPE = Path(__file__).parents[3] / "configs" / "llm" / "engine.yaml"
START = "start=bundle:llm-engine"
SMALL = [
    "device=cpu", "iterations=2", "checkpoint_every=1", "llm.draw.requests=[6, 10]", "llm.draw.longest=64",
    "llm.draw.profile=cpu-tiny", "rollout.instances=2", "rollout.rollouts=2", "rollout.lanes=1",
    "ppo.schedule=constant", "validation.instances=2", "validation.every=1", "tracking.wandb=disabled",
]  # fmt: skip


class Scripted:
    """A backend whose steps last as many quarters of a second as it is written here, in turn."""

    script = (1, 3, 2)
    facts: Mapping[str, str] = {}
    latest: ScriptedExecutor | None = None

    def __init__(self, model: str, device: str) -> None:
        assert (model, device) == ("mine", "auto")

    def fit(self, config: EngineConfig, workload: Workload) -> EngineConfig:
        return config

    def executor(self, state: State, workload: Workload) -> ScriptedExecutor:
        Scripted.latest = ScriptedExecutor(state)
        return Scripted.latest


class ScriptedExecutor:
    def __init__(self, state: State) -> None:
        self.state = state
        self.steps = 0

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        assert Scripted.latest is self  # nobody has taken the cache away
        emit(self.state)
        rows = self.state.batch[: self.state.eng["batch"][0]]
        seconds = 0.25 * Scripted.script[self.steps % 3]
        self.steps += 1
        return StepResult(seconds, rows["emitted"].copy(), rows["stopped"].copy())


SCRIPTED = [f"llm.executor={__name__}:Scripted", "llm.model=mine"]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    policy: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoints")["policy"]
    return {name.removeprefix("network."): value for name, value in policy.items()}


def test_a_bundle_is_tuned_on_a_real_model_exported_and_evaluated_there(tmp_path: Path) -> None:
    model = ["llm.executor=torch", "llm.model=random:tiny", "llm.device=cpu", "iterations=1", "validation.rules=[]"]
    assert main([str(RECIPE), *SMALL, START, *model, "--out", str(tmp_path / "run")]) == 0
    first, last = rows(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "best" / "about.json").read_text())
    assert about["validation/greedy"] == min(first["validation/greedy"], last["validation/greedy"])
    assert last["rollout/decisions"] >= 4 * 6
    before = bundle.stored_weights(bundle.find("llm-engine"))
    after = weights(tmp_path / "run")
    assert not np.array_equal(before["score.weight"], after["score.weight"].numpy())
    assert np.array_equal(before["encoder.mean_request"], after["encoder.mean_request"].numpy())
    assert set(before) <= set(load_file(tmp_path / "run" / "best" / "weights.safetensors"))

    assert export([str(tmp_path / "run"), "--out", str(tmp_path / "tuned"), "--no-onnx"]) == 0
    config = bundle.manifest_of(tmp_path / "tuned")["training"]["config"]
    assert (config["start"], config["llm"]["executor"]) == ("bundle:llm-engine", "torch")
    command = ["llm/smoke", "--executor", "torch", "--device", "cpu", "--requests", "3", "--seeds", "1"]
    policies = ["--policies", f"bundle:{tmp_path / 'tuned'}", "--out", str(tmp_path / "evaluation")]
    assert evaluate([*command, *policies]) == 0
    judged = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert judged["entries"]


def test_the_clock_that_is_paid_by_is_the_executors() -> None:
    timed = ["llm.draw.offline=1", "llm.reward={credit: 0, crowd: 0, recompute: 0, lasting: 1}"]
    config = load(RECIPE, [*SMALL, *SCRIPTED, *timed])
    env = GraphVecEnv(world_of(config), config.rollout, seed=3)
    seen, played, clock = env.reset(), [], np.zeros(4)
    problems = config.llm.problems(2, (3, 0, 0))
    while len(played) < 4:
        at = seen["active"].tolist()
        assert at == [len(played)]  # one at a time, in order
        seen, _, over, infos = env.step(np.zeros(4, np.int64))  # never to wait: what is there runs
        assert (seen["now"].numpy() >= clock).all()
        clock = seen["now"].numpy()
        if over[at[0]]:
            assert Scripted.latest is not None
            lasted = 0.25 * sum(Scripted.script[k % 3] for k in range(Scripted.latest.steps))
            reference_s = problems[at[0] // 2].reference_s
            assert clock[at[0]] == pytest.approx(lasted)
            assert infos[at[0]]["episode"]["r"] == pytest.approx(-100 * lasted / reference_s, rel=1e-4)
            played.append(infos[at[0]]["episode"]["l"])
        assert (clock[len(played) + 1 :] == 0).all()
    assert played[0] == played[1]
    assert played[2] == played[3]


def test_an_episode_of_too_many_decisions_is_finished_by_the_merit() -> None:
    config = load(RECIPE, [*SMALL, *SCRIPTED, "llm.steps=3"])
    env = GraphVecEnv(world_of(config), config.rollout)
    env.reset()
    lengths = []
    for _ in range(env.length):
        _, _, _, infos = env.step(np.zeros(4, np.int64))
        lengths += [info["episode"]["l"] for info in infos if info]
    assert (env.length, lengths, env.rounds) == (12, [3] * 4, 1)


def test_a_run_that_validates_between_its_rollouts_stops_and_goes_on_to_the_same_result(tmp_path: Path) -> None:
    def stop(iteration: int, row: Mapping[str, float], timing: Mapping[str, float]) -> None:
        if iteration == 1:
            raise KeyboardInterrupt

    config = [*SMALL, *SCRIPTED, START, "validation.samples=2", "validation.rules=[vllm, merit]"]
    assert main([str(RECIPE), *config, "--out", str(tmp_path / "whole")]) == 0
    with pytest.raises(KeyboardInterrupt):
        train(load(RECIPE, config), tmp_path / "stopped", stop)
    assert main(["--resume", str(tmp_path / "stopped")]) == 0
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")
    first_row, *_, last_row = rows(tmp_path / "whole")
    assert {"validation/vllm", "validation/merit"} <= first_row.keys()
    assert {"validation/greedy", "validation/best", "train/approx_kl"} <= last_row.keys()
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_step_runs_before_the_first_choice() -> None:
    """So an engine may be shown while another one still has the executor."""

    def refuse(state: State) -> ScriptedExecutor:
        raise AssertionError

    problems = [draw(np.random.default_rng(seed), DrawConfig(requests=(5, 30))) for seed in range(60)]
    batch = EngineBatch(len(problems), Room.of(problems))
    for i, problem in enumerate(problems):
        batch.load(i, problem)
        batch.run_elsewhere(i, refuse)
    batch.begin()
    assert (batch.count > 1).all()


def test_traffic_suits_the_speed_of_the_profile(tmp_path: Path) -> None:
    fast = json.loads((PROFILES / "cpu-tiny.json").read_text())
    slow = {
        name: 3 * value if name.endswith("_s") and name != "swap_bytes_per_s" else value for name, value in fast.items()
    }
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    for seed in range(20):
        one, other = (
            draw(np.random.default_rng(seed), DrawConfig(profile=name))
            for name in ("cpu-tiny", str(tmp_path / "slow.json"))
        )
        assert one.profile.name == "cpu-tiny"
        assert one.engine == other.engine
        for column in ("arrival_s", "ttft_slo_s", "tpot_slo_s"):
            np.testing.assert_allclose(getattr(other.workload, column), 3 * getattr(one.workload, column))


def test_no_drawn_engine_is_larger_than_the_largest() -> None:
    largest = largest_engine(256)
    for seed in range(50):
        engine = draw(np.random.default_rng(seed), DrawConfig(longest=256)).engine
        for name in ("kv_blocks", "max_seqs", "token_budget"):
            assert getattr(engine, name) <= getattr(largest, name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["llm.model=random:tiny"], "go with llm.executor=torch"),
        (["llm.device=cpu"], "go with llm.executor=torch"),
        ([*SCRIPTED, "rollout.lanes=2"], "rollout.lanes=1"),
        ([*SCRIPTED, "llm.draw.profile=null"], "llm.draw.profile"),
        (["start=llm-engine"], "write bundle:NAME"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(RECIPE, [*SMALL, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["llm.executor=tourch"], "executor 'tourch'"),
        ([START, "policy.encoder.width=16"], "its policy is not the run's"),
        ([START, "llm.choices.most=32"], "its setting is not the run's"),
        (["start=bundle:jobshop-classic"], "its graph is not the run's"),
        (["start=bundle:llm-engin"], "did you mean 'llm-engine'"),
    ],
)
def test_what_cannot_be_begun_says_why(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=message):
        main([str(RECIPE), *SMALL, *overrides, "--out", str(tmp_path / "run")])


def test_an_unknown_profile_offers_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cpu-tiny'"):
        load(RECIPE, ["llm.draw.profile=cpu-tini"])
