"""Training runs: the same twice, exact after a crash, honest about divergence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dispatchgym.agents import bundle
from dispatchgym.agents.export_command import main as export
from dispatchgym.agents.train_command import main
from dispatchgym.agents.training import run as training
from dispatchgym.agents.training.checkpoint import load_checkpoint, save_checkpoint
from dispatchgym.agents.training.config import load
from dispatchgym.agents.training.run import TrainingDivergedError, train
from dispatchgym.envs.api import UnknownNameError, UsageError

TINY = [
    "name=tiny",
    "device=cpu",
    "iterations=4",
    "instances.sizes=[[4, 3], [3, 3]]",
    "rollout.instances=2",
    "rollout.rollouts=4",
    "policy.encoder.width=8",
    "policy.encoder.layers=1",
    "policy.encoder.heads=2",
    "validation.instances=3",
    "validation.every=2",
    "checkpoint_every=1",
    "shop.variant=isbjssp",
]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints")["policy"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main([*TINY, "--out", str(folder)]) == 0
    return folder


def test_a_run_directory_holds_what_it_promises(finished: Path) -> None:
    assert [row["iteration"] for row in rows(finished)] == [0, 1, 2, 3, 4]
    first, last = rows(finished)[0], rows(finished)[-1]
    assert first["validation/greedy"] == first["validation/lrpt"]  # before any update the policy is its rule
    assert {"rollout/return", "train/approx_kl", "train/clip_fraction", "train/learning_rate"} <= set(last)
    assert load(finished / "config.resolved.yaml").name == "tiny"
    assert (finished / "checkpoints" / "latest").read_text().strip() == "iteration-000004.pt"
    about = json.loads((finished / "best" / "about.json").read_text())
    assert about["validation/greedy"] == min(r["validation/greedy"] for r in rows(finished) if "validation/greedy" in r)
    assert load_file(finished / "best" / "weights.safetensors")


def test_the_same_seed_twice_gives_the_same_metrics_and_weights(finished: Path, tmp_path: Path) -> None:
    main([*TINY, "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert same(weights(tmp_path / "again"), weights(finished))
    main([*TINY, "seed=1", "--out", str(tmp_path / "other")])
    assert not same(weights(tmp_path / "other"), weights(finished))


def test_a_killed_run_resumes_to_the_same_result(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    code = "import sys; from dispatchgym.agents.train_command import main; main(sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", code, *TINY, "iterations=4", "--out", str(folder)]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.DEVNULL)
    try:
        while child.poll() is None and not (folder / "checkpoints" / "iteration-000001.pt").exists():
            time.sleep(0.01)  # a process is watched, nothing is measured
        child.send_signal(signal.SIGKILL)
    finally:
        child.wait()
    assert (folder / "checkpoints" / "latest").exists()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "rollout/re')  # the line that was being written
    assert main(["--resume", str(folder)]) == 0
    assert (folder / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert same(weights(folder), weights(finished))
    assert same(
        load_file(folder / "best" / "weights.safetensors"), load_file(finished / "best" / "weights.safetensors")
    )


def test_resuming_may_change_length_but_not_the_problem(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    main([*TINY, "iterations=1", "--out", str(folder)])
    assert main(["--resume", str(folder), "iterations=2"]) == 0
    assert [row["iteration"] for row in rows(folder)] == [0, 1, 2]
    assert json.loads((folder / "resumed.jsonl").read_text()) == {"overrides": ["iterations=2"]}
    with pytest.raises(UsageError, match="cannot change"):
        main(["--resume", str(folder), "seed=3"])


def test_a_diverged_run_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(iteration: int, row: dict[str, float], timing: dict[str, float]) -> None:
        if iteration == 2:
            with torch.no_grad():
                spoiled[0].policy.network.rule_scale.fill_(float("nan"))

    spoiled = []
    build = training.build
    monkeypatch.setattr(training, "build", lambda config: spoiled.append(build(config)) or spoiled[0])
    config = load(None, [*TINY, "validation.every=10"])
    with pytest.raises((TrainingDivergedError, ValueError)):
        train(config, tmp_path, spoil)
    assert load_checkpoint(tmp_path / "checkpoints")["iteration"] == 2
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_divergence_names_iteration_checkpoint_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(model: object) -> None:
        model.logger.record("train/loss", float("nan"))  # type: ignore[attr-defined]

    monkeypatch.setattr("stable_baselines3.PPO.train", explode)
    with pytest.raises(TrainingDivergedError, match=r"iteration 1 .*last good checkpoint.*learning_rate"):
        train(load(None, TINY), tmp_path, lambda *_: None)
    assert load_checkpoint(tmp_path / "checkpoints")["iteration"] == 0


def test_a_used_folder_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(UsageError, match="holds a run already"):
        main([*TINY, "--out", str(finished)])


def test_errors_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        main(["--resume", str(tmp_path)])
    with pytest.raises(UnknownNameError, match="did you mean 'seed'"):
        main(["sead=3"])
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    assert "ppo.entropy=0.002" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, {"a": torch.ones(2)})
    assert load_checkpoint(tmp_path)["a"].tolist() == [1, 1]
    (tmp_path / "iteration-000003.pt").write_bytes(os.urandom(100))
    with pytest.raises(UsageError, match="damaged"):
        load_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none")


def test_only_two_checkpoints_stay(tmp_path: Path) -> None:
    for iteration in range(5):
        save_checkpoint(tmp_path, iteration, {"iteration": iteration})
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["iteration-000003.pt", "iteration-000004.pt"]


def test_a_run_exports_to_a_bundle_that_remembers_it(finished: Path, tmp_path: Path) -> None:
    assert export([str(finished), "--out", str(tmp_path / "tiny")]) == 0
    loaded = bundle.load(tmp_path / "tiny")
    assert loaded.name == "tiny"
    assert loaded.shop.variant == "isbjssp"
    assert loaded.manifest["training"]["course"]["iterations"] == 4
    assert [row["iteration"] for row in loaded.manifest["training"]["course"]["validation"]] == [0, 2, 4]
    with pytest.raises(UsageError, match="no best weights"):
        export([str(tmp_path), "--out", str(tmp_path / "x")])
