"""pictures.json: the schedules of a few validation instances, by every rule and by the policy at its best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.agents.evaluation.page import gantt_problem, gantt_run
from dispatchgym.agents.shop_world import POLICY, Pictured
from dispatchgym.envs.jobshop.schedule import Variant


def write_pictures(path: Path, variant: Variant, pictured: Sequence[Pictured], iteration: int) -> None:
    """Write the problems as the report's Gantt explorer takes them; it opens with the policy above each's best rule."""
    policy = f"policy, iteration {iteration}"
    problems: list[dict[str, Any]] = []
    for each in pictured:
        rules = [name for name in each.schedules if name != POLICY]
        best_rule = min(rules, key=lambda name: each.schedules[name].makespan, default=policy)
        problem = gantt_problem(
            each.name, each.instance, each.scenario, blocking=variant != "jssp", first=[policy, best_rule]
        )
        for name, schedule in sorted(each.schedules.items(), key=lambda item: item[0] != POLICY):
            problem["runs"][policy if name == POLICY else name] = gantt_run(
                schedule.makespan,
                100.0 * (schedule.makespan / each.bound - 1.0),
                "bound",
                schedule.start.tolist(),
                schedule.end.tolist() if each.scenario else None,
            )
        problems.append(problem)
    with atomic_write(path) as file:
        json.dump({variant: problems}, file, separators=(",", ":"))
