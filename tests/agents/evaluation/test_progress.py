"""Progress without a terminal: a line now and then, never a flood."""

from __future__ import annotations

import io

from rich.console import Console

from dispatchgym.agents.evaluation.progress import progress


def test_plain_lines_come_every_few_seconds_and_guess_once_there_is_something_to_go_by() -> None:
    now = 0.0
    file = io.StringIO()
    with progress(40, Console(file=file, width=20), clock=lambda: now) as advance:
        for k in range(20):
            now += 1.0
            advance(f"la{k:02d} [mwkr]")
    assert file.getvalue().splitlines() == [
        "5/40 runs, 5 s; last: la04 [mwkr]",
        "10/40 runs, 10 s, about 30 s left; last: la09 [mwkr]",
        "15/40 runs, 15 s, about 25 s left; last: la14 [mwkr]",
        "20/40 runs, 20 s, about 20 s left; last: la19 [mwkr]",
    ]


def test_a_quick_run_prints_nothing() -> None:
    file = io.StringIO()
    with progress(2, Console(file=file), clock=lambda: 0.0) as advance:
        advance("one")
        advance("two")
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    file = io.StringIO()
    with progress(2, Console(file=file, force_terminal=True, width=100)) as advance:
        advance("one")
        advance("two")
    assert "2/2" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")  # the bar's line is cleared
