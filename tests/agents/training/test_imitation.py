"""Warm start: the network comes to choose as its teacher does, the same way every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dispatchgym.agents.train_command import main
from dispatchgym.agents.training.config import load
from dispatchgym.envs.api import UsageError

TINY = [
    "device=cpu",
    "iterations=1",
    "instances.sizes=[[5, 4]]",
    "rollout.instances=1",
    "rollout.rollouts=2",
    "policy.encoder.width=16",
    "policy.encoder.layers=1",
    "policy.rule=lpt",
    "warm_start.teacher=pilot",
    "warm_start.decisions=1200",
    "warm_start.rounds=2",
    "warm_start.instances=16",
    "warm_start.minibatch=64",
    "ppo.learning_rate=1e-9",
    "validation.instances=12",
    "validation.rules=[lpt]",
    "tracking.wandb=disabled",
]


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_imitation_beats_the_rule_it_starts_from_and_repeats_itself(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main([*TINY, "--out", str(tmp_path / name)]) == 0
    course = lines(tmp_path / "a" / "imitation.jsonl")
    assert [(row["round"], row["epoch"]) for row in course] == [(r, e) for r in (1, 2) for e in (1, 2, 3, 4)]
    assert course[3]["agreement"] > course[0]["agreement"]
    assert course[3]["loss"] < course[0]["loss"]
    assert course[-1]["decisions"] >= 1200
    start = lines(tmp_path / "a" / "metrics.jsonl")[0]
    assert start["validation/greedy"] < start["validation/lpt"] - 3
    for name in ("imitation.jsonl", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="graph 'ops'"):
        load(None, ["warm_start.teacher=pilot", "graph=ops", "policy.encoder.rivals=[first, needs]"])
    with pytest.raises(UsageError, match=r"warm_start\.rounds is 0"):
        load(None, ["warm_start.rounds=0"])
    with pytest.raises(UsageError, match=r"warm_start\.softness is 0"):
        load(None, ["warm_start.softness=0"])
