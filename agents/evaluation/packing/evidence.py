"""Every run as JSON lines, with the clusters, so that anyone can check them without this package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dispatchgym.agents.evaluation.family import Finished
from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.envs.packing import files
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.log import KINDS


def write_evidence(finished: Finished, folder: Path) -> None:
    """Write `placements.jsonl` and `clusters.jsonl`; docs/formats.md describes both."""
    clusters: dict[str, PackingInstance] = {}
    with atomic_write(folder / "placements.jsonl") as file:
        for item, result in finished:
            instance: PackingInstance = item.problem.instance
            clusters[instance.name] = instance
            if not result.events:
                continue
            line = {
                "instance": instance.name,
                "variant": item.problem.variant,
                "policy": item.policy.name,
                "seed": item.seed,
                "metrics": {key: value for key, value in result.metrics.items() if key != "curve"},
                "events": [_event(row) for row in result.events],
                "plan": [{"pod": pod, "node": node} for pod, node in result.hosts] or None,
            }
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    with atomic_write(folder / "clusters.jsonl") as file:
        for instance in clusters.values():
            file.write(json.dumps(files.plain(instance), separators=(",", ":")) + "\n")


def _event(row: Sequence[int]) -> dict[str, object]:
    time, kind, pod, node, slots, cause = row
    event: dict[str, object] = {"time": time, "kind": KINDS[kind], "pod": pod, "node": node}
    if slots:
        event["slots"] = [g for g in range(slots.bit_length()) if slots >> g & 1]
    if cause >= 0:
        event["from" if KINDS[kind] == "move" else "for"] = cause
    return event
