"""The columns of a comparison of schedulers, on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from dispatchgym.agents.simulation.runs import LEAST_SCALE, Run
from dispatchgym.envs.llm.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a run: how it is called, what it means, and how it is written ("-" where there is none)."""

    title: str
    meaning: str
    text: Callable[[Metrics], str]


def _time(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{1000 * value:.3g} ms" if value < 0.9995 else f"{value:,.3g} s" if value < 1000 else f"{value:,.0f} s"


def _percent(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


CAPACITY = Column("capacity", "greatest multiple of this traffic with the target share in time", lambda m: "-")

COLUMNS: Sequence[Column] = (
    CAPACITY,
    Column("in time", "share of requests that kept every SLO", lambda m: _percent(m.attainment)),
    Column("goodput req/s", "requests in time a second", lambda m: f"{m.goodput_rps:.3g}"),
    Column("goodput tok/s", "their output tokens a second", lambda m: f"{m.goodput_tps:,.0f}"),
    Column("all tok/s", "output tokens a second, in time or not", lambda m: f"{m.throughput_tps:,.0f}"),
    Column("TTFT mean", "time to the first token", lambda m: _time(m.ttft_s.mean)),
    Column("TTFT p99", "99 % of requests have it within", lambda m: _time(m.ttft_s.p99)),
    Column("TPOT mean", "mean time per token after the first", lambda m: _time(m.tpot_s.mean)),
    Column("TPOT p99", "99 % of requests are quicker", lambda m: _time(m.tpot_s.p99)),
    Column("MTPOT p99", "99 % of requests have no longer gap", lambda m: _time(m.mtpot_s.p99)),
    Column("end to end", "mean time to the last token", lambda m: _time(m.e2e_s.mean)),
    Column("preempted", "preemptions", lambda m: f"{m.preemptions:,}"),
    Column("recompute", "share of tokens run that were run before", lambda m: _percent(m.recompute_tax)),
    Column("cache hits", "share of prompt tokens found in the prefix cache", lambda m: _percent(m.prefix_hit_rate)),
    Column("KV in use", "mean share of KV blocks while steps run", lambda m: _percent(m.mean_kv, 0)),
    Column("QoE", "quality of experience of readers", lambda m: _number(m.qoe)),
    Column("Jain", "fairness between tenants, 1 is even", lambda m: _number(m.jain)),
    Column("policy", "CPU time of the scheduler per step", lambda m: f"{m.policy_us:.3g} µs" if m.policy_us else "-"),
    Column("repairs", "things in its plans that the engine had to change", lambda m: _total(m.repairs)),
)

ON_TERMINAL = ("capacity", "in time", "goodput tok/s", "TTFT mean", "TTFT p99", "TPOT p99", "preempted", "recompute")
"""The columns that fit a terminal; the page has them all."""


def cell(column: Column, run: Run) -> str:
    """The text of a column for a run."""
    if column is CAPACITY:
        if run.capacity is None:
            return "-"
        if run.capacity.scale is None:
            return f"< {LEAST_SCALE:.2g}x"
        return f"{run.capacity.scale:.3g}x" + ("+" if run.capacity.is_open else "")
    return "failed" if run.metrics is None else column.text(run.metrics)


def print_runs(runs: Sequence[Run], console: Console) -> None:
    """The comparison as a table; all columns where the console has room for them."""
    wide = console.width >= 200
    columns = [c for c in COLUMNS if (wide or c.title in ON_TERMINAL) and any(cell(c, run) != "-" for run in runs)]
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    table.add_column("scheduler", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=console.width >= 100)
    for run in runs:
        name = f"{run.name} (oracle)" if run.oracle else run.name
        table.add_row(name, *(cell(column, run) for column in columns))
    console.print(table)


def _total(repairs: dict[str, int]) -> str:
    return f"{sum(repairs.values()):,}" if repairs else "-"
