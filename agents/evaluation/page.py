"""What every report page is made of: one file with its style, its data and its script, and the Gantt explorer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario

Problems = Mapping[Any, Sequence[Mapping[str, Any]]]
"""Gantt data: shop -> problems as `gantt_problem` makes them, with their "runs" filled in."""


def write_page(path: Path, title: str, body: Iterable[str], gantt: Problems) -> None:
    """Write the page at once; it loads nothing from anywhere."""
    assets = files("dispatchgym.agents.evaluation") / "assets"
    # "</" would end the script element early.
    data = json.dumps(gantt, separators=(",", ":")).replace("</", "<\\/")
    with atomic_write(path) as file:
        file.write(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n"
            f"<style>\n{(assets / 'report.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        )
        file.write("\n".join(body))
        file.write(
            '\n</main>\n<div id="tip" class="tip" hidden></div>\n'
            f'<script type="application/json" id="gantt">{data}</script>\n'
            f"<script>\n{(assets / 'report.js').read_text(encoding='utf-8')}</script>\n</body>\n</html>\n"
        )


def gantt_explorer(shop: str) -> str:
    """Two pictures under one time axis; the script fills them with the problems of `shop`."""
    charts = "".join(
        f'<div class="chart"><div class="chart-head"><select aria-label="policy of the {which} picture"></select>'
        '<span class="says soft"></span></div>'
        f'<svg id="{shop}-{which}" role="img" aria-label="Gantt chart"></svg></div>'
        for which in ("upper", "lower")
    )
    buttons = "".join(
        f'<button type="button" data-do="{do}" aria-label="{label}">{sign}</button>'
        for do, label, sign in (
            ("in", "zoom in", "+"),
            ("out", "zoom out", "&minus;"),
            ("left", "earlier", "&larr;"),
            ("right", "later", "&rarr;"),
            ("reset", "whole schedule", "all"),
        )
    )
    return (
        f'<div class="panel gantt" data-world="{shop}"><div class="controls">'
        f'<select class="pick-problem" aria-label="problem"></select>{buttons}</div>{charts}'
        '<p class="soft">One row a machine, one colour a job; pale: the finished job still blocks the machine; '
        "hatched: the machine is down. Drag to move, Ctrl and wheel or pinch to zoom, point at an operation for its "
        "times. "
        "Both pictures share the time axis.</p></div>"
    )


def gantt_problem(
    name: str, instance: Instance, scenario: Scenario | None, *, blocking: bool, first: Sequence[str]
) -> dict[str, Any]:
    """One problem of the explorer, its "runs" still empty; `first` names the two runs shown at the start."""
    return {
        "name": name,
        "machines": instance.num_machines,
        "job_ptr": instance.job_ptr.tolist(),
        "machine": instance.machine.tolist(),
        "duration": instance.duration.tolist(),
        "blocking": blocking,
        "downtime": [[d["machine"], d["from"], d["to"]] for d in scenario.downtime()] if scenario else [],
        "first": list(first),
        "runs": {},
    }


def gantt_run(
    makespan: int | float | None,
    gap: float | None,
    against: str | None,
    start: Sequence[int],
    end: Sequence[int] | None,
) -> dict[str, Any]:
    """One schedule of a problem; `end` only where shutdowns stretch operations."""
    run: dict[str, Any] = {"makespan": makespan, "gap": gap, "against": against, "start": start}
    return run if end is None else {**run, "end": end}


def count(number: int, noun: str) -> str:
    """`number` and the noun, in the plural where it takes one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
