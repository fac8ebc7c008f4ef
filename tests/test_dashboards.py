"""The dashboard as code: built without an account, and naming nothing that a run does not tell the tracker."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from wandb_workspaces.reports.v2.interface import LinePlot, ScalarChart
from wandb_workspaces.workspaces import Section, Workspace

from dispatchgym import cli
from dispatchgym.agents.train_command import main as train
from dispatchgym.dashboards import training
from tests.agents.training.wandb_log import names

RUN = [
    "device=cpu",
    "iterations=1",
    "instances.sizes=[[3, 3], [4, 3]]",
    "rollout.instances=1",
    "rollout.rollouts=2",
    "policy.encoder.width=8",
    "policy.encoder.layers=1",
    "policy.encoder.heads=2",
    "validation.instances=2",
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a real run tells the tracker, as its own log file has it; of pictures and tables the name they go by."""
    folder = tmp_path_factory.mktemp("dashboards") / "run"
    assert train([*RUN, "--out", str(folder)]) == 0
    found = names(folder)
    media = {name.rpartition("/")[0] for name in found if name.endswith("/_type")}
    return {name for name in found if not name.startswith(tuple(f"{m}/" for m in media))} | media


def test_every_figure_of_the_dashboard_is_one_that_a_run_tells(told: set[str]) -> None:
    patterns = training.figures(training.workspace())
    assert len(patterns) > 30
    missing = [pattern for pattern in patterns if not any(re.search(pattern, name) for name in told)]
    assert not missing


def test_the_figures_of_a_pattern_are_those_it_means(told: set[str]) -> None:
    by_size = next(p for p in training.figures(training.workspace()) if p.startswith("^validation/greedy/["))
    assert sorted(name for name in told if re.search(by_size, name)) == [
        "validation/greedy/3x3",
        "validation/greedy/4x3",
    ]


def test_the_sections_are_the_promised_ones() -> None:
    board = training.workspace("team", "project")
    assert [section.name for section in board.sections] == [
        "Learning",
        "Quality by size",
        "PPO health",
        "Speed",
        "Schedules",
    ]
    assert all(section.panels for section in board.sections)


def test_a_figure_is_found_wherever_a_panel_names_it() -> None:
    panels = [LinePlot(x="iteration", y=["a.b"]), LinePlot(metric_regex="^c")]
    board = Workspace(entity="", project="p", sections=[Section(name="s", panels=panels)])
    assert training.figures(board) == ["^iteration$", r"^a\.b$", "^Step$", "^c"]


def test_a_panel_whose_figures_nobody_checks_is_refused() -> None:
    board = Workspace(entity="", project="p", sections=[Section(name="s", panels=[ScalarChart(metric="a")])])
    with pytest.raises(TypeError, match="ScalarChart"):
        training.figures(board)


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        LinePlot(bogus=1)  # type: ignore[call-arg]


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert cli.main(["dashboard", "show", *options]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_show_prints_what_wandb_would_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document = shown(capsys, "--project", "mine")
    assert (document["project"], document["displayName"]) == ("mine", training.NAME)
    text = json.dumps(document)
    assert all(name in text for name in ("train/approx_kl", "speed/decisions_per_s", "schedules", "evaluations"))
    assert cli.main(["dashboard", "show", "--out", str(tmp_path / "board.json")]) == 0
    assert json.loads((tmp_path / "board.json").read_text())["displayName"] == training.NAME


def test_publishing_without_a_key_names_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert cli.main(["dashboard", "publish", "--entity", "team"]) == cli.USAGE_ERROR
    assert capsys.readouterr().err == "error: saving a dashboard needs wandb's key; set WANDB_API_KEY\n"


def test_publishing_saves_the_dashboard_and_says_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Workspace] = []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(Workspace, "save", lambda board: saved.append(board))
    monkeypatch.setattr(Workspace, "url", "https://wandb.example/board")
    assert cli.main(["dashboard", "publish", "--entity", "team", "--project", "mine"]) == 0
    assert [(board.entity, board.project) for board in saved] == [("team", "mine")]
    assert "https://wandb.example/board" in capsys.readouterr().out


def test_a_server_that_refuses_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(board: Workspace) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(Workspace, "save", refuse)
    assert cli.main(["dashboard", "publish", "--entity", "team"]) == cli.USAGE_ERROR
    assert capsys.readouterr().err == "error: wandb did not save the dashboard in team/dispatchgym: no route to host\n"
