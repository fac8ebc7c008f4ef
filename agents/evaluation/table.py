"""The summary as a table on the terminal: aligned plain text when nobody is looking at a screen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate

from rich import box
from rich.console import Console
from rich.table import Table

from dispatchgym.agents.evaluation.family import of_variant, title
from dispatchgym.agents.evaluation.measures import MEASURES
from dispatchgym.agents.evaluation.statistics import Interval
from dispatchgym.agents.evaluation.summary import Entry, Metric

WIDE = 116
"""Columns of a terminal that shows everything."""

GAP = 3
"""Characters between two columns, at most."""

MOST_COLUMNS = 10
"""Groups that stand side by side; more than these go downwards."""


def print_summary(entries: Sequence[Entry], console: Console) -> None:
    """One table a world: every policy over all groups, then the mean of each group."""
    for variant in dict.fromkeys(entry.variant for entry in entries):
        in_shop = [entry for entry in entries if entry.variant == variant]
        total = sorted((e for e in in_shop if e.group is None), key=ranking)
        groups = list(dict.fromkeys(e.group for e in in_shop if e.group is not None))
        builders = dict.fromkeys(entry.builder for entry in total if entry.builder)
        named = f" ({', '.join(builders)})" if len(builders) == 1 else ""
        _print(f"{title(variant)}{named}: {against(total[0])}", _total_table(total, builders, console), console)
        if len(groups) > 1:
            _print_groups(in_shop, total, groups, console)


def ranking(entry: Entry) -> tuple[bool, float]:
    """Sorts the best first; a policy that left problems unsolved comes behind those that did not."""
    return entry.solved < entry.runs, float("inf") if entry.mean is None else MEASURES[entry.metric].better(entry.mean)


def against(entry: Entry) -> str:
    """What the numbers of an entry are measured against: 'optimum', or '7 best-known, 33 optimum'."""
    kinds = entry.reference_kinds
    if entry.metric != "gap_pct":
        return "makespan, no reference" if entry.metric == "makespan" else MEASURES[entry.metric].title
    if len(kinds) == 1:
        return f"gap to {next(iter(kinds))}"
    return (
        "gap to "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.items() if kind != "none")
        + (f" ({kinds['none']} without reference left out)" if "none" in kinds else "")
    )


def number(value: float | None, metric: Metric) -> str:
    """A share in percent with one decimal (two where tenths of a point count), or a makespan; '-' for none."""
    if value is None:
        return "-"
    if MEASURES[metric].is_share:
        return f"{value:.2f}%" if "allocation" in metric else f"{value:.1f}%"
    if MEASURES[metric].more_is_better and value < 100:
        return f"{value:.2f}"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def interval(ends: Interval | None, metric: Metric) -> str:
    """'[low, high]', or '' where nothing varies."""
    return f"[{number(ends.low, metric)}, {number(ends.high, metric)}]" if ends else ""


def difference(entry: Entry, has_interval: bool = True) -> str:
    """Paired difference to the base policy with its interval: points of the gap, or percent of the base's makespan."""
    if entry.paired is None:
        return "base" if entry.base is None else "-"
    unit = "" if MEASURES[entry.metric].is_share else "%"
    ends = entry.paired.interval
    spread = f" [{ends.low:+.1f}, {ends.high:+.1f}]" if ends and has_interval else ""
    return f"{entry.paired.mean:+.1f}{unit}{spread}"


def seconds(value: float) -> str:
    """A duration a person can read."""
    if value >= 1:
        return f"{value:.1f} s"
    return f"{1000 * value:.1f} ms" if value >= 0.001 else f"{1e6 * value:.0f} us"


def _print(title: str, table: Table, console: Console) -> None:
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)
    console.print()


def _total_table(total: Sequence[Entry], builders: Collection[str], console: Console) -> Table:
    base = next((entry.base for entry in total if entry.base), "")
    unit = "points" if MEASURES[total[0].metric].is_share else "percent"
    is_wide = console.width >= WIDE
    table = _table(console)
    columns: dict[str, Callable[[Entry], str]] = {"policy": lambda e: e.policy}
    if len(builders) > 1:
        columns["builder"] = lambda e: e.builder or "-"
    columns["mean"] = lambda e: number(e.mean, e.metric)
    columns["95 %"] = lambda e: interval(e.mean_interval, e.metric)
    if is_wide and not MEASURES[total[0].metric].is_all_or_nothing:
        columns["IQM"] = lambda e: number(e.interquartile_mean, e.metric)
    columns[f"to {base}, {unit}" if is_wide else "diff"] = lambda e: difference(e, has_interval=is_wide)
    columns |= dict(of_variant(total[0].variant).columns.get(total[0].variant, ()) if is_wide else ())
    if any(entry.proven for entry in total):
        columns["proven"] = lambda e: str(e.proven or "")
    columns["solved"] = lambda e: f"{e.solved}/{e.runs}"
    columns["wall"] = lambda e: seconds(e.wall_s)
    if is_wide:
        columns["CPU"] = lambda e: seconds(e.cpu_s)
    for head in columns:
        is_name = head in ("policy", "builder")
        # On a narrow terminal a long name folds; a number never loses a digit.
        table.add_column(head, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for e in total:
        table.add_row(*(cell(e) for cell in columns.values()))
    return table


def _print_groups(entries: Sequence[Entry], total: Sequence[Entry], groups: Sequence[str], console: Console) -> None:
    """Policies against groups, the longer list downwards, in as many tables as the width asks for."""
    cells = {(entry.policy, entry.group): number(entry.mean, entry.metric) for entry in entries}
    policies = [entry.policy for entry in total]
    is_upright = len(groups) <= MOST_COLUMNS
    rows, columns = (policies, groups) if is_upright else (groups, policies)
    heading = f"{title(total[0].variant)}: mean of each group"
    first_width = max(map(len, rows))
    while columns:
        ends = list(accumulate((GAP + max(len(column), 8) for column in columns), initial=first_width))[1:]
        count = max(1, sum(end <= console.width - GAP for end in ends))
        table = _table(console)
        table.add_column("policy" if is_upright else "group", no_wrap=True)
        for column in columns[:count]:
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            pairs = ((row, column) if is_upright else (column, row) for column in columns[:count])
            table.add_row(row, *(cells.get(pair, "-") for pair in pairs))
        _print(heading, table, console)
        columns = columns[count:]


def _table(console: Console) -> Table:
    return Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
