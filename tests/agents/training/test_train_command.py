"""Training runs: the same twice, exact after a crash, honest about divergence."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dispatchgym import cli
from dispatchgym.agents import bundle
from dispatchgym.agents.export_command import main as export
from dispatchgym.agents.train_command import Watch, main
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
    "tracking.wandb=disabled",
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
    assert main([*TINY, "tracking.wandb=offline", "tracking.tensorboard=true", "--out", str(folder)]) == 0
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


def test_tensorboard_is_told_the_same_figures(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    for name in ("train/approx_kl", "rollout/return", "validation/greedy/4x3"):
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == pytest.approx({row["iteration"]: row[name] for row in rows(finished) if name in row})
    assert [event.step for event in events.Scalars("ahead/all")] == [0, 2, 4]


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stable_baselines3.common.logger.SummaryWriter", None)
    with pytest.raises(UsageError, match=r"pip install 'dispatchgym\[tensorboard\]'"):
        main([*TINY, "tracking.tensorboard=true", "--out", str(tmp_path / "run")])


def test_validation_is_told_by_size(finished: Path) -> None:
    last = rows(finished)[-1]
    assert {"validation/greedy/4x3", "validation/greedy/3x3"} <= set(last)
    assert {"validation/lrpt/4x3", "validation/fdd/mwkr/3x3"} <= set(rows(finished)[0])
    # of one or two instances nothing is dropped, so that the size's mean is that of its instances
    by_size = [last["validation/greedy/4x3"], last["validation/greedy/3x3"]]
    means = [(2 * a + b) / 3 for a, b in (by_size, by_size[::-1])]  # three instances, sizes in turn
    assert any(last["validation/greedy_mean"] == pytest.approx(mean) for mean in means)


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


def test_a_run_stopped_before_its_first_checkpoint_resumes_to_the_same_result(finished: Path, tmp_path: Path) -> None:
    def stop(iteration: int, row: Mapping[str, float], timing: Mapping[str, float]) -> None:
        if iteration == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load(None, [*TINY, "checkpoint_every=2"]), tmp_path, stop)
    assert "Interrupted after iteration 1 of 4" in (tmp_path / "report.html").read_text()
    assert load_checkpoint(tmp_path / "checkpoints")["iteration"] == 0
    assert main(["--resume", str(tmp_path)]) == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_a_new_validation_set_judges_the_rules_anew(tmp_path: Path) -> None:
    main([*TINY, "iterations=2", "--out", str(tmp_path / "run")])
    main(["--resume", str(tmp_path / "run"), "iterations=4", "validation.seed=5"])
    old, new = rows(tmp_path / "run")[0], rows(tmp_path / "run")[-1]
    assert new["iteration"] == 4
    assert new["validation/lrpt"] != old["validation/lrpt"]
    about = json.loads((tmp_path / "run" / "best" / "about.json").read_text())
    assert about["iteration"] == 4  # the best on the old set does not count


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
    page = (tmp_path / "report.html").read_text()
    assert "Stopped after iteration 0" in page
    assert "training diverged in iteration 1" in page


def test_the_report_names_any_error_that_ended_the_run(tmp_path: Path) -> None:
    def break_down(iteration: int, row: Mapping[str, float], timing: Mapping[str, float]) -> None:
        if iteration == 1:
            raise ZeroDivisionError("a <listener>")

    with pytest.raises(ZeroDivisionError):
        train(load(None, TINY), tmp_path, break_down)
    assert "ZeroDivisionError: a &lt;listener&gt;" in (tmp_path / "report.html").read_text()


def test_divergence_ends_the_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stable_baselines3.PPO.train", lambda model: model.logger.record("train/loss", float("inf")))
    assert cli.main(["train", *TINY, "--out", str(tmp_path / "run")]) == cli.USAGE_ERROR
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("error: training diverged in iteration 1 (loss inf); the last good checkpoint is in ")
    assert f"report: {tmp_path / 'run' / 'report.html'}" in said.out


def watched(rows: list[dict[str, float]], seconds: float) -> str:
    """What a log file shows of a training that reports `rows`, so many seconds apart."""
    now = 0.0
    file = io.StringIO()
    watch = Watch(load(None, [*TINY, "iterations=100"]), Console(file=file, width=200), clock=lambda: now)
    for row in rows:
        now += seconds
        watch(int(row["iteration"]), row, {"decisions_per_s": 1234.5} if row["iteration"] else {})
    return file.getvalue()


def test_a_log_shows_speed_time_left_and_the_policy_beside_the_best_rule() -> None:
    start = {"iteration": 0, "validation/greedy": 30.0, "validation/lrpt": 30.0, "validation/mwkr": 26.0}
    course = [start, {"iteration": 1, "validation/greedy": 24.0}, {"iteration": 2, "validation/greedy": 25.0}]
    first, second = watched(course, 12.0).splitlines()
    assert first == (
        "1/100 iterations, 1,234 decisions/s; validation 24.00 %, best 24.00 % (best rule mwkr 26.00 %); "
        "about 1188 s left"
    )
    assert "validation 25.00 %, best 24.00 %" in second


def test_a_narrow_terminal_shows_the_bar_and_the_line_below_it() -> None:
    file = io.StringIO()
    watch = Watch(load(None, [*TINY, "iterations=250"]), Console(file=file, width=60, force_terminal=True))
    watch(0, {"iteration": 0, "validation/greedy": 30.0, "validation/fdd/mwkr": 28.0}, {})
    watch(125, {"iteration": 125, "validation/greedy": 27.0}, {"decisions_per_s": 12345.0})
    watch.close()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).replace("\r", "\n").splitlines()
    assert any("125/250" in line and "left" in line for line in lines)
    assert any(line.startswith("12,345 decisions/s; validation 27.00 %, best 27.00 %") for line in lines)
    assert max(map(len, lines)) <= 60


def test_a_log_is_not_flooded() -> None:
    course = [{"iteration": k} for k in range(101)]
    lines = watched(course, 1.0).splitlines()
    assert len(lines) == 11  # the first, one every ten seconds, and the last
    assert lines[-1].startswith("100/100")


def test_the_command_says_where_the_report_lies_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    learn = PPO.train

    def stop(model: PPO) -> None:
        if model._n_updates > 0:
            raise KeyboardInterrupt
        learn(model)

    monkeypatch.setattr("stable_baselines3.PPO.train", stop)
    assert cli.main(["train", *TINY, "--out", str(folder)]) == cli.INTERRUPTED
    said = capsys.readouterr().out
    assert f"interrupted after iteration 1; go on with: dispatchgym train --resume {folder}" in said
    assert f"report: {folder / 'report.html'}" in said


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
    with pytest.raises(UsageError, match="neither a bundle nor a run with best weights"):
        export([str(tmp_path), "--out", str(tmp_path / "x")])
