"""How good a bundle is, as its manifest says: means with intervals, taken from the summaries of evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatchgym.agents.plain_values import build, to_mapping
from dispatchgym.envs.api import DispatchGymError, UsageError


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over the instances of a group, or of all groups together (group None).

    Args:
        policy: "greedy" or "best of N", with " + look-ahead" or without, the bundle's own; otherwise a policy that was
            judged beside it.
        group: as in the summary.
        metric: "gap_pct" or "makespan".
        mean: of it.
        interval: 95 %, stratified bootstrap; None where nothing varies.
        runs, instances: that the mean is over.
        cpu_s: mean of a run.
    """

    policy: str
    group: str | None
    metric: str
    mean: float
    interval: tuple[float, float] | None
    runs: int
    instances: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one evaluation found in one shop.

    Args:
        suite, variant: what was played.
        seeds: of the evaluation.
        package: version of dispatchgym.
        own: the bundle's figures.
        beside: those of other policies in the same evaluation, over all groups.
    """

    suite: str
    variant: str
    seeds: int
    package: str
    own: tuple[Figure, ...]
    beside: tuple[Figure, ...]


def evaluations(results: Mapping[str, Any]) -> list[Evaluated]:
    """The evaluations that a manifest's `results` hold.

    Raises:
        UsageError, UnknownNameError: they are not of the form that `attached` writes.
    """
    listed = results.get("evaluations", [])
    if not isinstance(listed, list):
        raise UsageError(f"results.evaluations is {listed!r:.40}; it must be a list")
    return [build(Evaluated, each, f"results.evaluations[{i}]") for i, each in enumerate(listed)]


def attached(results: Mapping[str, Any], summaries: Sequence[Path], digest: str) -> dict[str, Any]:
    """`results` with the figures of these evaluations; an older one of the same suite and shop is replaced.

    Args:
        summaries: summary.json files, each beside its results.json, which tells the bundle that was judged.
        digest: the bundle's.

    Raises:
        UsageError: a file that is no summary, or one in which no bundle of this digest was judged.
    """
    kept = {(each.suite, each.variant): each for each in evaluations(results)}
    for path in summaries:
        for each in read_summary(path, digest):
            kept[each.suite, each.variant] = each
    return {**results, "evaluations": [to_mapping(each) for each in kept.values()]}


def read_summary(path: Path, digest: str) -> list[Evaluated]:
    """What the evaluation behind a summary.json found about the bundle of this digest, one for each shop."""
    summary, rows = _read(path), _read(path.with_name("results.json"))
    try:
        if summary["format"] != "dispatchgym/evaluation-summary":
            raise UsageError(f"{path}: is not the summary of an evaluation")
        judged = {row["policy"] for row in rows if row["versions"].get("bundle") == digest[:16]}
        mine = {name for name in judged if name.startswith("bundle:")}
        if not mine:
            raise UsageError(f"{path}: no bundle with digest {digest[:16]} was judged there; evaluate this one anew")
        found = []
        for variant in dict.fromkeys(entry["variant"] for entry in summary["entries"] if entry["policy"] in mine):
            entries = [e for e in summary["entries"] if e["variant"] == variant and e["mean"] is not None]
            found.append(
                Evaluated(
                    suite=summary["suite"],
                    variant=variant,
                    seeds=summary["seeds"],
                    package=summary["versions"]["dispatchgym"],
                    own=tuple(_figure(e, _mode(e["policy"])) for e in entries if e["policy"] in mine),
                    beside=tuple(
                        _figure(e, e["policy"])
                        for e in entries
                        if not e["policy"].startswith("bundle:") and "hint:" not in e["policy"] and e["group"] is None
                    ),
                )
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: is not the summary of an evaluation beside its results.json ({error!r})") from error
    return found


def _figure(entry: Mapping[str, Any], policy: str) -> Figure:
    interval = entry["mean_interval"]
    return Figure(
        policy=policy,
        group=entry["group"],
        metric=entry["metric"],
        mean=round(float(entry["mean"]), 3),
        interval=None if interval is None else (round(interval[0], 3), round(interval[1], 3)),
        runs=entry["averaged"],
        instances=entry["instances"],
        cpu_s=round(float(entry["cpu_s"]), 3),
    )


def _mode(policy: str) -> str:
    """How the bundle was used: 'greedy', 'best of 128', and with look-ahead 'greedy + look-ahead'."""
    head, *options = policy.split("+")
    _, at, samples = head.rpartition("@")
    mode = f"best of {samples}" if at and samples.isdigit() else "greedy"
    return mode + "".join(
        f" + {option.replace('lookahead', 'look-ahead ').strip()}" for option in options if "lookahead" in option
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, DispatchGymError):
            raise
        raise UsageError(f"{path}: cannot be read as JSON ({error})") from error
