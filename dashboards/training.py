"""The wandb dashboard of training runs, one panel a question. Its figures are those that a run tells the tracker."""

from __future__ import annotations

import os
import re
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read on import: building a dashboard needs no network

from wandb_workspaces.reports.v2.interface import LinePlot, MediaBrowser, WeavePanelSummaryTable
from wandb_workspaces.workspaces import Section, Workspace

NAME = "dispatchgym training"

Panel = LinePlot | MediaBrowser | WeavePanelSummaryTable


def workspace(entity: str = "", project: str = "dispatchgym") -> Workspace:
    """The dashboard of `project`, not saved anywhere yet."""
    return Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            _section(
                "Learning",
                _lines("Validation gap, greedy policy (%)", "validation/greedy"),
                _pattern("Validation gap, policy and rules (%)", r"^validation/[^0-9]+$"),
                _lines("Points ahead of the best rule", "ahead/all"),
                _lines("Return of a rollout", "rollout/return", "rollout/best"),
                _lines("Spread of an instance's rollouts", "rollout/spread"),
            ),
            _section(
                "Quality by size",
                _pattern("Validation gap by size, greedy policy (%)", r"^validation/greedy/[0-9]+x[0-9]+$"),
                _pattern("Points ahead of the best rule by size", r"^ahead/[0-9]+x[0-9]+$"),
                WeavePanelSummaryTable(table_name="evaluations"),
            ),
            _section(
                "PPO health",
                _lines("KL divergence of an update", "train/approx_kl"),
                _lines("Clip fraction", "train/clip_fraction"),
                _lines("Entropy (negative)", "train/entropy_loss"),
                _lines("Explained variance", "train/explained_variance"),
                _lines("Learning rate", "train/learning_rate"),
                _lines("Loss", "train/loss", "train/policy_gradient_loss", "train/value_loss"),
                _lines("Weight of the starting rule", "train/rule_scale"),
            ),
            _section(
                "Speed",
                _lines("Decisions a second", "speed/decisions_per_s"),
                _lines("Seconds of an iteration", "speed/rollout_s", "speed/update_s"),
                _lines("Seconds of an evaluation", "speed/evaluation_s"),
                _lines("GPU memory (MiB)", "speed/gpu_memory_mib"),
            ),
            _section("Schedules", MediaBrowser(title="Policy and best rule", media_keys=["schedules"], num_columns=2)),
        ],
    )


def figures(board: Workspace) -> list[str]:
    """Every metric, table and picture that the dashboard names, as regular expressions."""
    named = []
    for section in board.sections:
        for panel in section.panels:
            if isinstance(panel, LinePlot):
                named += [_exactly(name) for name in [panel.x, *panel.y] if name is not None]
                named += [panel.metric_regex] if panel.metric_regex else []
            elif isinstance(panel, MediaBrowser):
                named += [_exactly(name) for name in panel.media_keys]
            elif isinstance(panel, WeavePanelSummaryTable):
                named.append(_exactly(panel.table_name))
            else:
                raise TypeError(f"section {section.name!r}: a {type(panel).__name__} names figures that nobody checks")
    return named


def as_json(board: Workspace) -> dict[str, Any]:
    """What wandb would store; needs no account."""
    document: dict[str, Any] = board._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return document


def _section(name: str, *panels: Panel) -> Section:
    return Section(name=name, panels=list(panels), is_open=True)


def _lines(title: str, *names: str) -> LinePlot:
    return LinePlot(title=title, x="iteration", y=list(names))


def _pattern(title: str, metrics: str) -> LinePlot:
    """All metrics that match: their names depend on the run's sizes and rules."""
    return LinePlot(title=title, x="iteration", metric_regex=metrics)


def _exactly(name: object) -> str:
    return f"^{re.escape(str(name))}$"
