"""When an operation that starts on a machine with known shutdowns is complete.

Written apart from the kernel and the validator, which have to agree with it. Windows are half-open,
sorted and do not touch; times are whole numbers in instance time units.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dispatchgym.envs.jobshop.scenario import OnInterrupt

Window = tuple[int, int]


def next_up(time: int, windows: Sequence[Window]) -> int:
    """The first moment from `time` on at which the machine is up."""
    k = bisect_right(windows, time, key=lambda window: window[0]) - 1
    return windows[k][1] if k >= 0 and time < windows[k][1] else time


def end_of_processing(start: int, duration: int, windows: Sequence[Window], on_interrupt: OnInterrupt) -> int:
    """When an operation that starts at `start`, on a machine that is up then, is complete."""
    return _run(start, duration, windows, on_interrupt)[0]


@dataclass(frozen=True, slots=True)
class Piece:
    """Starts `first` .. `last` between which the end grows with the start (`moves`), or is the same for all."""

    first: int
    last: int
    end: int  # of an operation that starts at `first`
    moves: bool


def pieces(
    duration: int, windows: Sequence[Window], on_interrupt: OnInterrupt, first: int, last: int
) -> Iterator[Piece]:
    """The end of processing as a function of the start, for `first` .. `last` less the times the machine is down.

    Resumed work ends a constant time after its start, as long as the start passes no shutdown and the
    end reaches no further one. Work that is processed anew after a repair ends at one moment, whenever
    it was started before the shutdown.
    """
    start = next_up(first, windows)
    while start <= last:
        end, following = _run(start, duration, windows, on_interrupt)
        k = bisect_right(windows, start, key=lambda window: window[0])
        shutdown = windows[k][0] if k < len(windows) else last + 1
        moves = on_interrupt == "resume" or end == start + duration
        until = min(last, shutdown - 1)
        if moves and following is not None:
            until = min(until, start + following - end)
        yield Piece(start, until, end, moves)
        start = next_up(until + 1, windows)


def _run(start: int, duration: int, windows: Sequence[Window], on_interrupt: OnInterrupt) -> tuple[int, int | None]:
    """The end of processing, and the first shutdown that comes at or after it."""
    end = start + duration
    for down, up in windows[bisect_right(windows, start, key=lambda window: window[0]) :]:
        if down >= end:  # at the very end it does not interrupt
            return end, down
        end = end + (up - down) if on_interrupt == "resume" else up + duration
    return end, None
