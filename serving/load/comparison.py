"""Schedulers compared on the same live traffic: runs paired window by window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dispatchgym.agents.evaluation.statistics import Paired, paired_difference
from dispatchgym.envs.llm.metrics import slo_met
from dispatchgym.serving.load.run import LoadRun

WINDOWS = 10
"""Of a run: neighbours in time share a queue, so they are drawn together."""

Values = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a window.

    Attributes:
        name, unit: what tables call it.
        more_is_better: as it says.
    """

    name: str
    unit: str
    more_is_better: bool


MEASURES = (
    Measure("goodput", "requests/s", True),
    Measure("attainment", "points", True),
    Measure("first token", "ms", False),
    Measure("per token", "ms", False),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One scheduler: means over the rounds, and differences to the first scheduler."""

    name: str
    means: Mapping[str, float]
    against: Mapping[str, Paired | None]


def compared(runs: Mapping[str, Sequence[LoadRun]]) -> list[Row]:
    """A row a scheduler; the first is what the others are compared with.

    Args:
        runs: scheduler -> its runs, one a round, of the same workload as everyone's in that round.
    """
    tables = {name: {m.name: _table(own, m) for m in MEASURES} for name, own in runs.items()}
    base = next(iter(tables.values()))
    return [
        Row(
            name,
            {m: _mean(values) for m, values in found.items()},
            {m: paired_difference(values, base[m]) if found is not base else None for m, values in found.items()},
        )
        for name, found in tables.items()
    ]


def verdict(rows: Sequence[Row]) -> str:
    """What the differences in goodput say, in a sentence."""
    first, *others = rows
    lines = []
    for row in others:
        paired = row.against["goodput"]
        if paired is None or paired.interval is None:
            lines.append(f"{row.name}: too little was measured to tell it from {first.name}")
            continue
        low, high = paired.interval
        if low > 0 or high < 0:
            base = first.means["goodput"]
            share = f"{abs(100 * paired.mean / base):.1f} % " if base else ""
            lines.append(
                f"{row.name} gives {share}{'more' if low > 0 else 'less'} goodput than {first.name} "
                f"({paired.mean:+.3f} requests/s, 95 % interval {low:+.3f} to {high:+.3f})"
            )
        else:
            lines.append(
                f"{row.name}: no difference to {first.name} is shown ({paired.mean:+.3f} requests/s, 95 % interval "
                f"{low:+.3f} to {high:+.3f})"
            )
    return "\n".join(lines)


def _table(runs: Sequence[LoadRun], measure: Measure) -> Values:
    """Round -> window -> [value], windows without a value left out."""
    found: Values = {}
    for number, run in enumerate(runs):
        values = window_values(run, measure.name)
        found[f"round {number}"] = {f"window {k}": [v] for k, v in enumerate(values) if not math.isnan(v)}
    return {name: windows for name, windows in found.items() if windows}


def window_values(run: LoadRun, measure: str) -> list[float]:
    """The measure of each of `WINDOWS` equal stretches of arrivals; nan where nothing came."""
    workload, record = run.record.workload, run.record
    span = float(workload.arrival_s[-1]) if len(workload) else 0.0
    width = span / WINDOWS
    of = (
        np.minimum((workload.arrival_s / width).astype(int), WINDOWS - 1) if width > 0 else np.zeros(len(workload), int)
    )
    met_first, met_after = slo_met(record)
    met = met_first & met_after
    found = []
    for k in range(WINDOWS):
        mine = of == k
        if not mine.any():
            # No request: nothing was to be gained there either.
            found.append(0.0 if measure == "goodput" and width > 0 else math.nan)
        elif measure == "goodput":
            found.append(float(met[mine].sum()) / width if width > 0 else math.nan)
        elif measure == "attainment":
            found.append(100.0 * float(met[mine].mean()))
        else:
            times = 1e3 * (record.ttft_s if measure == "first token" else record.mean_gap_s)[mine]
            known = times[~np.isnan(times)]
            found.append(float(known.mean()) if known.size else math.nan)
    return found


def _mean(values: Values) -> float:
    every = [v for windows in values.values() for each in windows.values() for v in each]
    return float(np.mean(every)) if every else math.nan
