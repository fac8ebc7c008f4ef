"""Evidence can be checked by someone who has nothing but the two files and docs/formats.md."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.evidence import write_evidence
from dispatchgym.agents.evaluation.policies import Answer, parse_policies
from dispatchgym.agents.evaluation.work import Result, WorkItem, execute, plan
from dispatchgym.envs.jobshop import library
from tests.agents.evaluation.examples import FixedPolicy, problem


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(line: dict[str, Any], instance: dict[str, Any]) -> None:
    """A schedule against its instance, written from docs/formats.md alone."""
    by_machine: dict[int, list[dict[str, int]]] = {m: [] for m in range(instance["machines"])}
    times = {(each["job"], each["op"]): each for each in line["operations"]}
    for job, route in enumerate(instance["jobs"]):
        ready = max(instance["release"][job], instance["arrival"][job])
        for op, (machine, duration) in enumerate(route):
            each = times.pop((job, op))
            down = sum(
                w["to"] - w["from"]
                for w in line["downtime"]
                if w["machine"] == machine and each["start"] < w["from"] < each["end"]
            )
            assert each["machine"] == machine
            assert each["start"] >= ready
            assert each["end"] == each["start"] + duration + down
            ready = each["leave"] if line["variant"] != "jssp" and op + 1 < len(route) else each["end"]
            assert each["leave"] >= each["end"]
            by_machine[machine].append(each)
    assert not times
    for stays in by_machine.values():
        stays.sort(key=lambda each: each["start"])
        assert all(a["leave"] <= b["start"] for a, b in pairwise(stays))
    assert line["makespan"] == max(each["end"] for each in line["operations"])


def test_every_schedule_can_be_checked_without_this_package(tmp_path: Path) -> None:
    la01 = library.load("la01")
    shops = [
        problem(la01),
        problem(la01, variant="bws"),
        problem(la01, variant="isbjssp", shutdown_probability=0.1),
        problem(library.load("ft06")),
    ]
    finished = [(item, execute(item)) for item in plan(shops, parse_policies("mwkr,random"), 2)]
    write_evidence(finished, tmp_path)
    instances = {each["instance"]: each for each in lines(tmp_path / "instances.jsonl")}
    schedules = lines(tmp_path / "schedules.jsonl")
    assert set(instances) == {"la01", "ft06"}
    assert len(schedules) == len(finished)
    for line in schedules:
        check(line, instances[line["instance"]])
    stormy = [line for line in schedules if line["variant"] == "isbjssp"]
    assert {line["scenario"] for line in stormy} == {"p=0.1,resume,seed=0", "p=0.1,resume,seed=1"}
    assert all(line["downtime"] for line in stormy)


def test_a_line_holds_what_the_format_promises(tmp_path: Path) -> None:
    (item,) = plan([problem()], parse_policies("mwkr"), 1)
    write_evidence([(item, execute(item))], tmp_path)
    (line,) = lines(tmp_path / "schedules.jsonl")
    assert ", ".join(line) == "instance, variant, policy, seed, scenario, makespan, operations, downtime"
    assert ", ".join(line["operations"][0]) == "job, op, machine, start, end, leave"
    (instance,) = lines(tmp_path / "instances.jsonl")
    assert instance["jobs"] == [[[0, 3], [1, 2]], [[1, 2], [0, 4]]]


def test_a_run_without_a_schedule_leaves_no_line(tmp_path: Path) -> None:
    item = WorkItem(problem(), FixedPolicy(lambda scenario, seed: Answer(None)), 0)
    write_evidence([(item, Result(item.key, "unknown"))], tmp_path)
    assert lines(tmp_path / "schedules.jsonl") == []
    assert len(lines(tmp_path / "instances.jsonl")) == 1
