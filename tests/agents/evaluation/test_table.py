"""The table on the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dispatchgym.agents.evaluation.problem import Reference
from dispatchgym.agents.evaluation.summary import summarise
from dispatchgym.agents.evaluation.table import WIDE, against, number, print_summary, seconds
from tests.agents.evaluation.examples import row

BEST = Reference(100, "optimum")
ROWS = [
    row(policy, instance, value, BEST, group=group)
    for policy, values in (("spt", (120, 130)), ("a-policy-with-a-long-name+cap=tuned", (110, 105)))
    for instance, group, value in zip("ab", ("6x6", "10x5"), values, strict=True)
]


def printed(width: int, is_terminal: bool) -> str:
    file = io.StringIO()
    print_summary(summarise(ROWS, "spt"), Console(file=file, width=width, force_terminal=is_terminal, highlight=False))
    return file.getvalue()


def test_without_a_terminal_the_table_is_plain_and_complete() -> None:
    text = printed(240, is_terminal=False)
    assert "\x1b" not in text
    assert "…" not in text
    assert text.isascii()
    title, _, best, *_ = text.splitlines()
    assert title == "Classic job shop (non-delay): gap to optimum"
    assert best.split()[:4] == ["a-policy-with-a-long-name+cap=tuned", "7.5%", "7.5%", "-17.5"]
    assert "Classic job shop: mean of each group" in text


@pytest.mark.parametrize("width", [80, WIDE])
def test_a_terminal_shows_every_column_whole(width: int) -> None:
    text = printed(width, is_terminal=True)
    assert "…" not in text
    assert "solved" in text
    assert ("CPU" in text) == (width >= WIDE)


@pytest.mark.parametrize("groups", [8, 30])
def test_many_groups_are_all_shown(groups: int) -> None:
    rows = [
        row(policy, "a", 101 + k, BEST, group=f"group-{k:02d}")
        for policy in ("spt", "mwkr", "sampled:mwkr+cap=tuned@128")
        for k in range(groups)
    ]
    file = io.StringIO()
    print_summary(summarise(rows, "spt"), Console(file=file, width=80, force_terminal=True, highlight=False))
    text = file.getvalue()
    assert "…" not in text
    assert all(text.count(f"group-{k:02d}") == 1 for k in range(8))
    assert text.count(f"{groups:.1f}%") >= 3  # the last group's gap, once a policy


def test_a_policy_that_left_something_unsolved_comes_last() -> None:
    rows = [row("good-but-failing", "a", 100, BEST), row("good-but-failing", "b", None, BEST)]
    rows += [row("weak", "a", 150, BEST), row("weak", "b", 150, BEST)]
    file = io.StringIO()
    print_summary(summarise(rows, "weak"), Console(file=file, width=240, highlight=False))
    assert [line.split()[0] for line in file.getvalue().splitlines()[2:4]] == ["weak", "good-but-failing"]
    assert "1/2" in file.getvalue()


def test_what_gaps_are_measured_against_is_always_named() -> None:
    def said(*kinds: str | None) -> str:
        rows = [
            row("mwkr", str(k), 110, Reference(100, kind) if kind else None)  # type: ignore[arg-type]
            for k, kind in enumerate(kinds)
        ]
        return against(summarise(rows, "mwkr")[0])

    assert said("optimum", "optimum") == "gap to optimum"
    assert said("optimum", "best-known", "optimum") == "gap to 1 best-known, 2 optimum"
    assert said("clairvoyant", None) == "gap to 1 clairvoyant (1 without reference left out)"
    assert said(None, None) == "makespan, no reference"


def test_numbers_are_readable() -> None:
    assert [number(v, "gap_pct") for v in (None, 0.04, -1.26)] == ["-", "0.0%", "-1.3%"]
    assert [number(v, "makespan") for v in (7.25, 1234.56)] == ["7.2", "1235"]
    assert [seconds(v) for v in (12.34, 0.0123, 0.000045)] == ["12.3 s", "12.3 ms", "45 us"]
