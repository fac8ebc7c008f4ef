"""summary.json: what the rows say per policy and group, with intervals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.agents.evaluation.results import Row
from dispatchgym.agents.evaluation.statistics import (
    Interval,
    Paired,
    interquartile_mean,
    mean,
    paired_difference,
    stratified_bootstrap,
)
from dispatchgym.agents.evaluation.work import FAILURES
from dispatchgym.envs.jobshop.schedule import Variant

Metric = Literal["gap_pct", "makespan"]

Strata = dict[str, dict[str, list[float]]]
"""Group -> instance -> values."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy in one group of one shop, or over all its groups.

    Args:
        group: None over all groups of the shop.
        metric: 'gap_pct' in a group where at least half the problems have a reference, else 'makespan';
            over all groups 'gap_pct' only if it is that in each.
        reference_kinds: how many of the problems have a reference of which kind, or 'none'.
        runs: attempted; `solved` of them gave a valid schedule.
        averaged: solved runs that have the metric: what the means are over.
        instances: different ones among those averaged.
        proven: runs that proved their schedule optimal.
        mean_interval, interquartile_mean_interval: stratified bootstrap, 95 %.
        wall_s, cpu_s: mean over the runs.
        decisions: mean over the runs that count them.
        paired: difference to the base policy on the problems both solved, in points of gap_pct, or
            in percent of the base's makespan; None for the base itself.
    """

    variant: Variant
    group: str | None
    policy: str
    builder: str | None
    metric: Metric
    reference_kinds: dict[str, int]
    runs: int
    solved: int
    failed: int
    averaged: int
    instances: int
    proven: int
    mean: float | None
    mean_interval: Interval | None
    interquartile_mean: float | None
    interquartile_mean_interval: Interval | None
    wall_s: float
    cpu_s: float
    decisions: float | None
    base: str | None
    paired: Paired | None


def summarise(rows: Sequence[Row], base: str, resamples: int = 2000) -> list[Entry]:
    """One entry per shop, group and policy, in the rows' order; each shop's total (group None) comes first."""
    entries = []
    for variant in _distinct(row.variant for row in rows):
        in_shop = [row for row in rows if row.variant == variant]
        by_group = {
            group: [row for row in in_shop if row.group == group] for group in _distinct(r.group for r in in_shop)
        }
        has_gaps = {group: _has_gaps(chosen) for group, chosen in by_group.items()}
        for group, chosen in {None: in_shop, **by_group}.items():
            metric: Metric = "gap_pct" if (all(has_gaps.values()) if group is None else has_gaps[group]) else "makespan"
            entries += [
                _entry(chosen, policy, base, group, metric, resamples) for policy in _distinct(r.policy for r in chosen)
            ]
    return entries


def _entry(rows: Sequence[Row], policy: str, base: str, group: str | None, metric: Metric, resamples: int) -> Entry:
    mine = [row for row in rows if row.policy == policy]
    solved = [row for row in mine if row.value is not None]
    averaged = [row for row in solved if _value(row, metric) is not None]
    strata = _strata(averaged, metric)
    flat = [value for clusters in strata.values() for values in clusters.values() for value in values]
    counted = [row.decisions for row in mine if row.decisions is not None]
    others = [row for row in rows if row.policy == base]
    return Entry(
        variant=mine[0].variant,
        group=group,
        policy=policy,
        builder=mine[0].builder,
        metric=metric,
        reference_kinds=dict(sorted(Counter(_problem_kinds(rows).values()).items())),
        runs=len(mine),
        solved=len(solved),
        failed=sum(row.status in FAILURES for row in mine),
        averaged=len(averaged),
        instances=len({row.instance for row in averaged}),
        proven=sum(row.status == "optimal" for row in mine),
        mean=float(mean(flat)) if flat else None,
        mean_interval=stratified_bootstrap(strata, mean, resamples=resamples) if flat else None,
        interquartile_mean=float(interquartile_mean(flat)) if flat else None,
        interquartile_mean_interval=stratified_bootstrap(strata, interquartile_mean, resamples=resamples)
        if flat
        else None,
        wall_s=float(mean([row.wall_s for row in mine])),
        cpu_s=float(mean([row.cpu_s for row in mine])),
        decisions=float(mean(counted)) if counted else None,
        base=base if others and policy != base else None,
        paired=_paired(averaged, others, metric, resamples) if policy != base else None,
    )


def _strata(rows: Iterable[Row], metric: Metric) -> Strata:
    strata: Strata = {}
    for row in rows:
        if (value := _value(row, metric)) is not None:
            strata.setdefault(row.group, {}).setdefault(row.instance, []).append(value)
    return strata


def _paired(mine: Iterable[Row], base: Iterable[Row], metric: Metric, resamples: int) -> Paired | None:
    """Differences per problem and shutdowns, each policy's seeds averaged first."""
    a, b = _by_problem(mine, metric), _by_problem(base, metric)
    ours: Strata = {}
    theirs: Strata = {}
    for key in sorted(a.keys() & b.keys()):
        group, instance, _ = key
        x, y = a[key], b[key]
        if metric == "makespan":
            x, y = 100 * x / y, 100.0
        ours.setdefault(group, {}).setdefault(instance, []).append(x)
        theirs.setdefault(group, {}).setdefault(instance, []).append(y)
    return paired_difference(ours, theirs, resamples=resamples)


def _by_problem(rows: Iterable[Row], metric: Metric) -> dict[tuple[str, str, str], float]:
    """(group, instance, shutdowns) -> mean over the seeds."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        if (value := _value(row, metric)) is not None:
            found.setdefault((row.group, row.instance, row.scenario or ""), []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _value(row: Row, metric: Metric) -> float | None:
    return row.gap_pct if metric == "gap_pct" else None if row.value is None else float(row.value)


def _problem_kinds(rows: Iterable[Row]) -> dict[tuple[str, str, str], str]:
    """Problem (group, instance, shutdowns) -> kind of its reference or 'none', each once whatever ran on it."""
    return {(row.group, row.instance, row.scenario or ""): row.reference_kind or "none" for row in rows}


def _has_gaps(rows: Iterable[Row]) -> bool:
    kinds = list(_problem_kinds(rows).values())
    return 2 * kinds.count("none") <= len(kinds)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def write_summary(
    entries: Iterable[Entry], path: Path, head: dict[str, Any], failures: list[dict[str, Any]], notes: dict[str, Any]
) -> None:
    """Write summary.json; docs/formats.md describes it."""
    content = {**head, "entries": [_plain(entry) for entry in entries], "failures": failures, **notes}
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def _plain(entry: Entry) -> dict[str, Any]:
    plain = asdict(entry)
    if entry.paired is not None:
        plain["paired"] = entry.paired._asdict()
    return plain
