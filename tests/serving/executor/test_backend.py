"""Evaluations and simulations on a real model: the same requests and files, other step times, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.cli import main
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.backends import RunsOn
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.workload import Workload

ON_CPU = ["--executor", "torch", "--model", "random:tiny", "--device", "cpu"]


def test_an_evaluation_on_a_model_says_so_and_serves_every_request(tmp_path: Path) -> None:
    asked = ["--policies", "vllm,sarathi", "--requests", "4", "--seeds", "1", "--fresh"]
    assert main(["evaluate", "llm/smoke", *asked, *ON_CPU, "--out", str(tmp_path / "real")]) == 0
    assert main(["evaluate", "llm/smoke", *asked, "--workers", "0", "--out", str(tmp_path / "simulated")]) == 0
    real, simulated = (json.loads((tmp_path / each / "results.json").read_text()) for each in ("real", "simulated"))
    assert [(row["group"], row["policy"], row["scenario"]) for row in real] == [
        (row["group"], row["policy"], row["scenario"]) for row in simulated
    ]
    assert all(row["metrics"]["runs_on"]["model"] == "random:tiny" for row in real)
    assert not any("runs_on" in row["metrics"] for row in simulated)
    assert all(row["metrics"]["finished"] == 4 for row in (*real, *simulated))
    assert [row["value"] for row in real] != [row["value"] for row in simulated]
    notes = json.loads((tmp_path / "real" / "summary.json").read_text())["notes"]
    assert "model random:tiny" in notes[0]


def test_simulate_runs_schedulers_on_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = ["--trace", "azure-2023-conv-twin", "--schedulers", "vllm,sarathi"]
    monkeypatch.setattr("dispatchgym.agents.simulation.command.FEW_ON_MODEL", 3)
    assert main(["simulate", *traffic, *ON_CPU, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["runs_on"]["executor"] == "torch"
    assert summary["notes"][0].startswith("3 requests, for their steps really run")
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["policy"], row["status"], row["capacity"]) for row in rows] == [
        ("vllm", "ok", None), ("sarathi", "ok", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llm/smoke", "--model", "random:tiny"], "go with --executor torch"),
        (["llm/small", *ON_CPU], "rounds of one second"),
        (["llm/smoke", *ON_CPU, "--evidence", "e"], "--evidence runs everything twice"),
        (["llm/smoke", "--executor", "nobody:there"], "executor 'nobody:there'"),
        (["llm/smoke", "--executor", "json:loads"], "executor 'json:loads': write simulated, torch or module:attr"),
        (["llm/smoke", "--requests", "0"], "--requests is 0"),
        (["jobshop/smoke", "--executor", "torch"], "--executor is for LLM traffic"),
        (["packing/smoke", "--requests", "3"], "--requests is for LLM traffic"),
    ],
)
def test_what_cannot_run_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_pools_are_cut_to_what_is_there_and_long_texts_refused() -> None:
    backend = RunsOn("torch", "random:tiny", "cpu").backend()
    one = np.ones(1)
    huge = EngineConfig(kv_blocks=10**8, host_blocks=10**8)
    fitted = backend.fit(huge, Workload(0 * one, 10 * one, 10 * one))
    assert 0 < fitted.kv_blocks * 16 * 1024 <= 2**30  # a token's keys and values: 2 layers, 2 heads of 32 floats, twice
    assert fitted.host_blocks == 4 * 2**30 // (16 * 1024)
    with pytest.raises(UsageError, match=r"40,010 tokens is too long for model tiny, which takes 32,768"):
        backend.fit(huge, Workload(0 * one, 40_000 * one, 10 * one))
