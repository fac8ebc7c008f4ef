"""Gantt charts of a schedule: a picture for reports and a text for terminals. A row a machine, a colour a job."""

from __future__ import annotations

import colorsys
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule

GOLDEN_TURN = 0.6180339887498949
"""Successive hues this far apart, as a share of the colour wheel, stay apart however many there are."""

SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
"""What a job is called in the text chart; job 62 is an A again, in another colour."""

Colour = tuple[float, float, float]


def draw(instance: Instance, schedule: Schedule, scenario: Scenario | None = None) -> npt.NDArray[np.uint8]:
    """A picture of `schedule`, uint8 RGB, shape (height, width, 3); its size depends on the instance only.

    A bar is the time from an operation's start to its end, in its job's colour and with the job's number
    where there is room. The time that a blocked job goes on holding the machine is drawn lighter, the
    downtime of `scenario` hatched on top. Operations with a negative start have not started and are
    left out.
    """
    visits = int(np.bincount(instance.machine).max())
    width, height = float(np.clip(0.25 * visits, 12.0, 30.0)), 1.2 + min(12.0, 0.38 * instance.num_machines)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    makespan = max(1, schedule.makespan)
    job_of = instance.op_job()
    started = np.flatnonzero(schedule.start >= 0)
    blocked = schedule.leave > schedule.end

    for m in range(instance.num_machines):
        ops = started[instance.machine[started] == m]
        held = ops[blocked[ops]]
        for drawn, first, last, shade in (
            (ops, schedule.start, schedule.end, _colour),
            (held, schedule.end, schedule.leave, _pale_colour),
        ):
            spans = list(zip(first[drawn].tolist(), (last - first)[drawn].tolist(), strict=True))
            colours = [shade(int(job_of[op])) for op in drawn]
            axes.broken_barh(spans, (m - 0.4, 0.8), facecolors=colours, edgecolor="white", linewidth=0.4)
        if scenario:
            down = [(begin, min(end, makespan) - begin) for begin, end in scenario.windows(m) if begin < makespan]
            axes.broken_barh(down, (m - 0.4, 0.8), **_DOWN)
    halo = [withStroke(linewidth=1.8, foreground="white")]  # readable on dark bars and on hatching
    for op in started.tolist():
        label, begin, end = str(job_of[op]), int(schedule.start[op]), int(schedule.end[op])
        if (end - begin) / makespan * (width - 1.0) > 0.07 * len(label) + 0.03:  # inches
            where = (begin + end) / 2, int(instance.machine[op])
            axes.text(*where, label, ha="center", va="center", fontsize=7, path_effects=halo)

    is_whole = len(started) == instance.num_ops
    so_far = f"makespan {makespan}" if is_whole else f"{len(started)} of {instance.num_ops} operations started"
    axes.set(
        title=f"{instance.name}: {so_far}",
        xlabel="time",
        ylabel="machine",
        xlim=(0, makespan),
        ylim=(instance.num_machines - 0.4, -0.6),
    )
    step = -(-instance.num_machines // 40)  # at most 40 numbers, however many machines
    axes.set_yticks(range(0, instance.num_machines, step))
    keys = [Patch(facecolor="0.55", label="processing")]
    if blocked.any():
        keys.append(Patch(facecolor="0.85", label="finished, still holding the machine"))
    if scenario and len(scenario.down_from):
        keys.append(Patch(label="machine down", **_DOWN))
    figure.legend(handles=keys, loc="outside lower right", ncols=len(keys), frameon=False, fontsize=8)

    pixels, (columns, rows) = FigureCanvasAgg(figure).print_to_buffer()  # type: ignore[no-untyped-call]
    return np.frombuffer(pixels, np.uint8).reshape(rows, columns, 4)[:, :, :3].copy()


def text(
    instance: Instance, schedule: Schedule, width: int = 100, scenario: Scenario | None = None, colour: bool = True
) -> str:
    """`schedule` as lines of text: one a machine, the time axis `width` characters wide.

    Each character shows what the machine does in the middle of its slice of time: the job's symbol
    (A is job 0), on the job's colour while processing and dim while it only holds the machine,
    `.` when free and `#` when down. Without `colour` a job that only holds the machine shows as `-`.
    Operations with a negative start have not started and are left out.

    Raises:
        UsageError: a width below 20.
    """
    if width < 20:
        raise UsageError(f"a chart {width} characters wide shows nothing; ask for at least 20")
    makespan = max(1, schedule.makespan)
    middle = (np.arange(width) + 0.5) * makespan / width
    job_of = instance.op_job()
    margin = len(str(instance.num_machines - 1)) + 2
    lines = []
    for m in range(instance.num_machines):
        cells: list[tuple[str, int]] = [("free", -1)] * width
        for op in np.flatnonzero(instance.machine == m).tolist():
            for k in np.flatnonzero((schedule.start[op] <= middle) & (middle < schedule.leave[op])).tolist():
                cells[k] = ("busy" if middle[k] < schedule.end[op] else "held", int(job_of[op]))
        for begin, end in scenario.windows(m) if scenario else ():
            for k in np.flatnonzero((begin <= middle) & (middle < end)).tolist():
                cells[k] = ("down", -1)
        row = "".join(_stretch(*cell, len(list(same)), colour) for cell, same in groupby(cells))
        lines.append(f"{f'm{m}':<{margin}}{row}")
    lines.append(" " * margin + "0" + str(makespan).rjust(width - 1))
    return "\n".join(lines)


_DOWN: dict[str, Any] = {"facecolor": (1.0, 1.0, 1.0, 0.35), "edgecolor": "black", "hatch": "////", "linewidth": 0.6}


def _colour(job: int) -> Colour:
    """A light colour of its own for each job, dark text on it readable."""
    return colorsys.hls_to_rgb((0.58 + job * GOLDEN_TURN) % 1.0, (0.62, 0.72, 0.54)[job % 3], 0.62)


def _pale_colour(job: int) -> Colour:
    red, green, blue = (0.28 * c + 0.72 for c in _colour(job))
    return red, green, blue


def _stretch(state: str, job: int, length: int, colour: bool) -> str:
    """`length` characters of a machine in one state."""
    if state in ("free", "down"):
        return {"free": ".", "down": "#"}[state] * length
    symbols = SYMBOLS[job % len(SYMBOLS)] * length
    if not colour:
        return symbols if state == "busy" else "-" * length
    if state == "held":
        return f"\x1b[2m{symbols}\x1b[0m"
    red, green, blue = (round(5 * c) for c in _colour(job))  # of the terminal's 6 x 6 x 6 colours
    return f"\x1b[30;48;5;{16 + 36 * red + 6 * green + blue}m{symbols}\x1b[0m"
