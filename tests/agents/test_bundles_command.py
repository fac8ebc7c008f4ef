"""`dispatchgym bundles`, and how results get into a bundle's manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundles_command import main
from dispatchgym.agents.evaluation.command import main as evaluate
from dispatchgym.agents.export_command import main as export
from dispatchgym.envs.api import UnknownNameError, UsageError


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of a shipped bundle."""
    out = tmp_path_factory.mktemp("judged")
    request = [
        "jobshop/random-4x3",
        "--policies",
        "lrpt,bundle:jobshop-classic,bundle:jobshop-classic+lookahead,bundle:jobshop-classic@2",
        "--seeds",
        "2",
    ]
    assert evaluate([*request, "--workers", "0", "--out", str(out)]) == 0
    return out


def test_the_shipped_bundles_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"bundle:{name}" in out for name in bundles.shipped())
    assert main(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed] == bundles.shipped()
    for each in listed:
        assert each["bytes"] <= 1_000_000
        assert each["runtimes"] == ["torch", "onnx", "numpy"]
        assert each["training"]["decisions"] > 0


def test_results_of_an_evaluation_are_attached_and_shown(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bundles.load(bundles.find("jobshop-classic"), "numpy")
    command = [str(bundles.find("jobshop-classic")), "--out", str(tmp_path / "b"), "--no-onnx"]
    for _ in range(2):  # the second time replaces what the first one attached
        assert export([*command, "--results", str(judged / "summary.json")]) == 0
        command[0] = str(tmp_path / "b")
    loaded = bundles.load(tmp_path / "b", "numpy")
    assert loaded.digest == before.digest
    evaluations = loaded.manifest["results"]["evaluations"]
    (evaluated,) = [each for each in evaluations if each["suite"] == "jobshop/random-4x3"]
    assert len(evaluations) == 1 + len(before.manifest["results"]["evaluations"])
    summary = json.loads((judged / "summary.json").read_text())
    totals = {entry["policy"]: entry for entry in summary["entries"] if entry["group"] is None}
    own = {figure["policy"]: figure for figure in evaluated["own"] if figure["group"] is None}
    assert own.keys() == {"greedy", "greedy + look-ahead", "best of 2"}
    assert own["greedy"]["mean"] == pytest.approx(totals["bundle:jobshop-classic"]["mean"], abs=1e-3)
    assert own["best of 2"]["interval"] == pytest.approx(totals["bundle:jobshop-classic@2"]["mean_interval"], abs=1e-3)
    assert [figure["policy"] for figure in evaluated["beside"]] == ["lrpt"]
    capsys.readouterr()
    assert main([str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "jobshop/random-4x3, jssp, 2 seeds" in shown
    assert f"{own['greedy']['mean']:.2f}" in shown


def test_results_of_another_bundle_are_refused(judged: Path, tmp_path: Path) -> None:
    command = [str(bundles.find("jobshop-blocking")), "--out", str(tmp_path / "b"), "--no-onnx", "--results"]
    with pytest.raises(UsageError, match="no bundle with digest"):
        export([*command, str(judged / "summary.json")])
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "summary.json").write_text('{"format": "other"}')
    with pytest.raises(UsageError, match="is not the summary of an evaluation"):
        export([*command, str(tmp_path / "summary.json")])
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        export([*command, str(tmp_path / "none.json")])
    assert not (tmp_path / "b").exists()


def test_a_bundle_under_another_cap_is_another_policy(judged: Path, tmp_path: Path) -> None:
    source = str(bundles.find("jobshop-blocking"))
    assert export([source, "--out", str(tmp_path / "b.zip"), "--cap", "0.5", "--name", "tight", "--no-onnx"]) == 0
    loaded = bundles.load(tmp_path / "b.zip", "numpy")
    assert (loaded.name, loaded.runtime.config.cap) == ("tight", 0.5)
    assert loaded.digest != bundles.load(bundles.find("jobshop-blocking"), "numpy").digest
    assert loaded.manifest["training"]["after_training"] == {"cap": 0.5}
    with pytest.raises(UsageError, match="change its cap first"):
        export([source, "--out", str(tmp_path / "c"), "--cap", "0.5", "--no-onnx", "--results", "x.json"])


def test_unknown_bundles_and_results_of_a_run_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'jobshop-classic'"):
        main(["jobshop-clasic"])
    with pytest.raises(UsageError, match="neither a bundle nor a run"):
        export([str(tmp_path), "--out", str(tmp_path / "b"), "--no-onnx"])
    with pytest.raises(UsageError, match="export, evaluate, then export that bundle"):
        export([str(tmp_path), "--out", str(tmp_path / "b"), "--no-onnx", "--results", "x.json"])
