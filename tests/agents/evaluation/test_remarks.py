"""What is said beside the numbers: tuned caps and times of planning."""

from __future__ import annotations

from typing import Any

from dispatchgym.agents.evaluation.family import Finished
from dispatchgym.agents.evaluation.policies import Answer
from dispatchgym.agents.evaluation.remarks import cap_lines, planning_line, plannings, tuned
from dispatchgym.agents.evaluation.work import Result, WorkItem
from tests.agents.evaluation.examples import FixedPolicy, problem


def finished(name: str, *runs: tuple[str, dict[str, Any]]) -> Finished:
    """Runs of one policy, given as (group, notes)."""
    policy = FixedPolicy(lambda scenario, seed: Answer(None), name)
    items = [(WorkItem(problem(group=group), policy, seed), notes) for seed, (group, notes) in enumerate(runs)]
    return [(item, Result(item.key, "ok", notes=notes)) for item, notes in items]


def test_caps_are_named_once_a_group_and_with_the_size_where_the_group_does_not_say_it() -> None:
    found = tuned(
        finished("mwkr+cap=tuned", ("2x2 p=0.1", {"cap": 0.7}), ("2x2 p=0.1", {"cap": 0.7}), ("la", {"cap": None}))
    )
    assert found == [
        {"variant": "jssp", "group": "2x2 p=0.1", "size": "2x2", "policy": "mwkr+cap=tuned", "cap": 0.7},
        {"variant": "jssp", "group": "la", "size": "2x2", "policy": "mwkr+cap=tuned", "cap": None},
    ]
    said = "mwkr+cap=tuned in jssp, chosen on generated instances: 2x2 p=0.1 0.7, la 2x2 no cap"
    assert cap_lines(found) == [("jssp", said)]


def test_plannings_are_counted_by_run_and_timed_one_by_one() -> None:
    (found,) = plannings(
        finished("rolling@1s", ("2x2", {"planning_s": [1.0, 3.0]}), ("2x2", {"planning_s": [2.0] * 4}))
    )
    assert found == {
        "variant": "jssp",
        "group": "2x2",
        "policy": "rolling@1s",
        "plannings": 3.0,
        "mean_s": 2.0,
        "longest_s": 3.0,
    }
    assert planning_line(found) == ("jssp", "rolling@1s in jssp 2x2: 3 plannings a run, 2.0 s each, 3.0 s at most")


def test_runs_without_notes_say_nothing() -> None:
    runs = finished("mwkr", ("2x2", {}))
    assert (tuned(runs), plannings(runs), cap_lines([])) == ([], [], [])
