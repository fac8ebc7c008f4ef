"""Every schedule as JSON lines, with the instances they solve, so that anyone can check them without this package."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from dispatchgym.agents.evaluation.family import Finished
from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.envs.jobshop.instance import Instance

BYTES_PER_OPERATION = 90
"""Of an evidence line, for the check of free space."""


def write_evidence(finished: Finished, folder: Path) -> None:
    """Write `schedules.jsonl` and `instances.jsonl`; docs/formats.md describes both."""
    instances: dict[str, Instance] = {}
    with atomic_write(folder / "schedules.jsonl") as file:
        for item, result in finished:
            schedule, problem = result.schedule, item.problem
            instances[problem.instance.name] = problem.instance
            if schedule is None:
                continue
            scenario = problem.scenario(item.seed)
            line = {
                "instance": problem.instance.name,
                "variant": problem.variant,
                "policy": item.policy.name,
                "seed": item.seed,
                "scenario": problem.scenario_name(item.seed),
                "makespan": schedule.makespan,
                "operations": schedule.operations(problem.instance),
                "downtime": scenario.downtime() if scenario else [],
            }
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    with atomic_write(folder / "instances.jsonl") as file:
        for instance in instances.values():
            file.write(json.dumps(_instance_line(instance), separators=(",", ":")) + "\n")


def _instance_line(instance: Instance) -> dict[str, object]:
    pairs = list(zip(instance.machine.tolist(), instance.duration.tolist(), strict=True))
    offsets = instance.job_ptr.tolist()
    return {
        "instance": instance.name,
        "machines": instance.num_machines,
        "jobs": [pairs[a:b] for a, b in pairwise(offsets)],
        "release": instance.release.tolist(),
        "arrival": instance.arrival.tolist(),
        "digest": instance.digest,
    }
