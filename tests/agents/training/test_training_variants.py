"""Every way to train goes from its start to a bundle: the ablation, the complete graph, a critic, a curriculum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dispatchgym.agents.evaluation.command import main as evaluate
from dispatchgym.agents.export_command import main as export
from dispatchgym.agents.train_command import main
from dispatchgym.agents.training.checkpoint import load_checkpoint
from dispatchgym.agents.training.config import load
from dispatchgym.agents.training.run import train

TINY = [
    "name=tiny",
    "device=cpu",
    "iterations=4",
    "instances.sizes=[[4, 3], [5, 3]]",
    "rollout.instances=2",
    "rollout.rollouts=4",
    "policy.encoder.width=8",
    "policy.encoder.layers=1",
    "policy.encoder.heads=2",
    "ppo.learning_rate=1e-2",
    "validation.instances=4",
    "validation.every=2",
    "checkpoint_every=1",
    "tracking.wandb=disabled",
]


def run(folder: Path, *overrides: str) -> list[dict[str, float]]:
    """Rows of the run."""
    assert main([*TINY, *overrides, "--out", str(folder)]) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    policy: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoints")["policy"]
    return policy


def test_the_ablation_is_one_line_from_training_to_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path / "whole")
    alone = run(tmp_path / "alone", "policy.encoder.message_passing=false")
    assert whole[0]["validation/greedy"] == alone[0]["validation/greedy"]  # both start as the rule
    names = load_file(tmp_path / "alone" / "best" / "weights.safetensors").keys()
    assert set(names) < set(load_file(tmp_path / "whole" / "best" / "weights.safetensors"))
    assert not any("attention" in name or "hubs" in name for name in names)
    assert export([str(tmp_path / "alone"), "--out", str(tmp_path / "bundle"), "--no-onnx"]) == 0
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["architecture"]["encoder"]["message_passing"] is False
    capsys.readouterr()
    arguments = ["jobshop/random-4x3", "--policies", f"bundle:{tmp_path / 'bundle'},lrpt", "--seeds", "1"]
    assert evaluate([*arguments, "--workers", "1", "--out", str(tmp_path / "evaluation")]) == 0
    assert "bundle:" in capsys.readouterr().out


def test_the_complete_graph_starts_as_its_rule_and_trains(tmp_path: Path) -> None:
    ops = ["graph=ops", "policy.encoder.rivals=[first, needs]"]
    rows = run(tmp_path / "ops", *ops)
    assert rows[0]["validation/greedy"] == rows[0]["validation/lrpt"]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    run(tmp_path / "short", *ops, "iterations=1")
    before, after = weights(tmp_path / "short"), weights(tmp_path / "ops")
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"network.score.weight", "network.encoder.embed.op.0.weight", "network.encoder.hubs.0.up.4.weight"} <= moved


def test_a_critic_is_trained_and_told_of(tmp_path: Path) -> None:
    rows = run(tmp_path / "gae", "ppo.advantage=gae", "ppo.value=0.05", "iterations=8")
    assert all(np.isfinite(row["train/explained_variance"]) for row in rows[1:])
    assert rows[-1]["train/explained_variance"] > rows[1]["train/explained_variance"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["instances.curriculum=[{until: 1, sizes: [[3, 3]]}, {until: 3, sizes: [[4, 3]]}]"],
        ["ppo.advantage=gae", "ppo.value=0.05", "ppo.share=0.5", "precision=bf16"],
    ],
    ids=["curriculum", "gae, half of the decisions, bf16"],
)
def test_a_stopped_run_goes_on_to_the_result_of_one_that_was_not(overrides: list[str], tmp_path: Path) -> None:
    def stop(iteration: int, row: Mapping[str, float], timing: Mapping[str, float]) -> None:
        if iteration == 2:
            raise KeyboardInterrupt

    rows = run(tmp_path / "whole", *overrides)
    assert len({row["rollout/decisions"] for row in rows[1:]}) > 1
    with pytest.raises(KeyboardInterrupt):
        train(load(None, [*TINY, *overrides]), tmp_path / "stopped", stop)
    assert main(["--resume", str(tmp_path / "stopped")]) == 0
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert metrics[0] == metrics[1]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(first[name], second[name]) for name in first)
