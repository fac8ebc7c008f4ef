"""How far an evaluation is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY_S = 5.0
"""Pause between plain lines, so that a log stays readable."""

FEW = 10
"""Runs before the time left is worth guessing."""

Advance = Callable[[str], None]
"""Called with the name of each finished item."""


@contextmanager
def progress(total: int, console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """Shows how many of `total` items are done while the block runs."""
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("", total=total, item="")
            yield lambda item: bar.update(task, advance=1, item=item)
        return
    begin = clock()
    done, printed = 0, begin

    def advance(item: str) -> None:
        nonlocal done, printed
        done, now = done + 1, clock()
        if now - printed >= PLAIN_EVERY_S:
            printed = now
            left = (now - begin) / done * (total - done)
            # The first runs wait for compilation and say nothing of the rest.
            times = f"{now - begin:.0f} s" + (f", about {left:.0f} s left" if done >= FEW else "")
            console.print(f"{done}/{total} runs, {times}; last: {item}", markup=False, soft_wrap=True)

    yield advance


def _bar(console: Console) -> Progress:
    columns = (
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[item]}", style="dim", markup=False),
    )
    return Progress(*columns, console=console, transient=True)
