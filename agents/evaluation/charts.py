"""The reports' pictures as inline SVG: box plots, solver curves beside the rules' times, lines over iterations.

Colours and fonts come from the page's style sheet, so that the pictures follow its light and dark look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

WIDTH = 560
ROW = 22
AXIS = 24
SAMPLE = 20  # of a line, before its name
LEFT, RIGHT = 52, WIDTH - 26
"""Ends of the time axis; the last tick's name reaches past it."""


@dataclass(frozen=True, slots=True)
class Box:
    """One policy's values in a group; `kind` is the style class that colours it."""

    label: str
    kind: str
    values: Sequence[float]


def box_plot(boxes: Iterable[Box], unit: str, *, zero: bool = True) -> str:
    """A row per policy: quartiles as a box, the median as a bar, extremes as whiskers; dots for up to 12 values.

    Quartiles interpolate linearly between values, as `numpy.percentile` does. `zero`: per cent begin at 0 (or below).
    """
    rows = [box for box in boxes if box.values]
    left, right = _label_width(rows), WIDTH - 14
    low, high = min(min(b.values) for b in rows), max(max(b.values) for b in rows)
    ticks = nice_ticks(min(low, 0.0) if unit == "%" and zero else low, high)
    scale = _Scale(ticks[0], max(ticks[-1], high), left, right)
    height = ROW * len(rows) + AXIS
    parts = [_grid(scale, ticks, ROW * len(rows), unit)]
    for k, box in enumerate(rows):
        y = ROW * k + ROW / 2
        q = np.percentile(np.asarray(box.values), [0, 25, 50, 75, 100])
        x = [scale(float(v)) for v in q]
        least, lower, median, upper, most = (f"{v:.4g}{unit}" for v in q)
        tip = f"{box.label}: median {median}, quartiles {lower} to {upper}, range {least} to {most}"
        parts.append(
            f'<g class="{box.kind}"><title>{escape(tip)}</title>'
            f'<text class="label" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(box.label)}</text>'
            f'<line class="whisker" x1="{x[0]:.1f}" x2="{x[4]:.1f}" y1="{y}" y2="{y}"/>'
            f'<rect class="box" x="{x[1]:.1f}" y="{y - 6}" width="{max(x[3] - x[1], 1):.1f}" height="12" rx="2"/>'
            f'<line class="median" x1="{x[2]:.1f}" x2="{x[2]:.1f}" y1="{y - 7}" y2="{y + 7}"/>'
        )
        if len(box.values) <= 12:
            parts += [f'<circle class="dot" cx="{scale(v):.1f}" cy="{y}" r="2.2"/>' for v in box.values]
        parts.append("</g>")
    return _svg(height, parts, "Box plot of " + ", ".join(b.label for b in rows))


def shares_chart(rows: Sequence[tuple[str, Mapping[str, int]]], parts: Sequence[str]) -> str:
    """A bar a row, divided as its counts are, in the order of `parts`; the first is drawn strongest."""
    left = min(260, 22 + round(7.2 * max(len(label) for label, _ in rows)))
    right, drawn = WIDTH - 14, []
    for k, (label, counts) in enumerate(rows):
        y, x, total = ROW * k + ROW / 2, float(left), max(1, sum(counts.values()))
        drawn.append(f'<text class="label" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        for number, part in enumerate(parts):
            width = (right - left) * counts.get(part, 0) / total
            if width:
                says = f"{label}: {part} {counts[part]} of {total}"
                name = f'<text class="tick" x="{x + width / 2:.1f}" y="{y + 4:.1f}" text-anchor="middle">{part}</text>'
                drawn.append(
                    f'<g><title>{escape(says)}</title><rect class="part p{number}" x="{x:.1f}" y="{y - 8}" '
                    f'width="{width:.1f}" height="16"/>{name if width > 24 else ""}</g>'
                )
            x += width
    return _svg(ROW * len(rows), drawn, "Outcomes of " + ", ".join(label for label, _ in rows))


@dataclass(frozen=True, slots=True)
class Curve:
    """A solver's mean gap over time; `bound` is its mean proven bound on the same scale."""

    label: str
    kind: str
    incumbent: Sequence[tuple[float, float]]
    bound: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Point:
    """A policy that answers once: its mean time and its mean gap."""

    label: str
    kind: str
    wall_s: float
    gap: float


def anytime_chart(curves: Sequence[Curve], points: Sequence[Point], height: int = 340) -> str:
    """Gap over wall time, time on a logarithmic axis: steps for solvers (bound dashed), dots for the rest."""
    times = [t for c in curves for t, _ in (*c.incumbent, *c.bound)] + [p.wall_s for p in points]
    first, last = (
        math.floor(math.log10(max(min(times), 1e-6))),
        math.ceil(math.log10(max(max(times), 1e-6) * 1.0001)),
    )
    x = _Scale(first, max(last, first + 1), LEFT, RIGHT)
    tops = [p.gap for p in points] + [c.incumbent[-1][1] for c in curves if c.incumbent] + [1.0]
    bottoms = [c.bound[-1][1] for c in curves if c.bound] + [0.0]
    ticks = nice_ticks(max(min(bottoms), -1.5 * max(tops)), 1.1 * max(tops))
    plot = height - AXIS - 16
    y = _Scale(ticks[-1], ticks[0], 6, plot)
    parts = [f'<clipPath id="plot"><rect x="{LEFT}" y="0" width="{RIGHT - LEFT}" height="{plot}"/></clipPath>']
    for tick in ticks:
        zero = " zero" if tick == 0 else ""
        parts.append(
            f'<line class="grid{zero}" x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="46" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}%</text>'
        )
    parts += [
        f'<line class="grid" x1="{x(power):.1f}" x2="{x(power):.1f}" y1="6" y2="{plot}"/>'
        f'<text class="tick" x="{x(power):.1f}" y="{plot + 16}" text-anchor="middle">{_power(power)}</text>'
        for power in range(first, int(x.high) + 1)
    ]
    parts.append(f'<text class="tick" x="{RIGHT}" y="{height - 4}" text-anchor="end">wall time of one run</text>')
    for number, curve in enumerate(curves):
        name = escape(curve.label)
        parts.append(f'<g class="{curve.kind} c{number % 4}" clip-path="url(#plot)"><title>{name}</title>')
        for style, steps in (("line", curve.incumbent), ("line bound", curve.bound)):
            if steps:
                parts.append(f'<path class="{style}" d="{_steps(steps, x, y)}"/>')
        parts.append("</g>")
        if curve.incumbent:
            t, gap = curve.incumbent[-1]
            at = f'x="{min(x(_log(t)), RIGHT) - 4:.1f}" y="{y(gap) - 6:.1f}"'
            parts.append(f'<text class="label" {at} text-anchor="end">{name}</text>')
    parts += _labelled_points(points, x, y)
    return _svg(height, parts, "Gap over wall time")


@dataclass(frozen=True, slots=True)
class Line:
    """Values over iterations; a line of one value is a mark to compare with, drawn dashed across the chart."""

    label: str
    kind: str
    points: Sequence[tuple[float, float]]


def line_chart(lines: Sequence[Line], unit: str = "", *, zero: bool = False, height: int = 230, most: int = 240) -> str:
    """Lines over a linear axis, each named behind its end where there are several.

    Args:
        lines: values that are not finite are left out, and so are lines without any other.
        zero: the value axis begins at 0 (or below).
        most: points drawn of a line; a longer one is thinned to the means of equal stretches.
    """
    drawn = [Line(e.label, e.kind, [p for p in e.points if math.isfinite(p[1])]) for e in lines]
    drawn = [Line(e.label, e.kind, _thinned(e.points, most)) for e in drawn if e.points]
    if not drawn:
        return ""
    values = [value for line in drawn for _, value in line.points]
    ticks = nice_ticks(min(*values, 0.0) if zero else min(values), max(values))
    times = [t for line in drawn for t, _ in line.points]
    plot = height - AXIS
    right = WIDTH - 18 - (SAMPLE + round(6.6 * max(len(line.label) for line in drawn)) if len(drawn) > 1 else 0)
    x = _Scale(min(times), max(max(times), min(times) + 1.0), LEFT, right)
    y = _Scale(ticks[-1], ticks[0], 8, plot)
    parts = [
        f'<line class="grid{" zero" if tick == 0 else ""}" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" '
        f'y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="46" y="{y(tick) + 4:.1f}" text-anchor="end">{short(tick)}{unit}</text>'
        for tick in ticks
    ]
    parts += [
        f'<text class="tick" x="{x(t):.1f}" y="{plot + 18}" text-anchor="middle">{t:,.0f}</text>'
        for t in nice_ticks(x.low, x.high)
        if x.low <= t <= x.high and t == round(t)
    ]
    taken: list[float] = []
    for number, line in enumerate(drawn):
        is_mark = len(line.points) == 1
        ends = [(x.low, line.points[0][1]), (x.high, line.points[0][1])] if is_mark else line.points
        path = "M" + "L".join(f"{x(t):.1f} {y(v):.1f}" for t, v in ends)
        last = ends[-1][1]
        name_y = _free(y(last) + 4, taken, 12.0, plot + 4.0)
        taken.append(name_y)
        tip = f"{line.label}: {last:.4g}{unit}" + ("" if is_mark else " at the end")
        parts.append(
            f'<g class="{line.kind} c{number % 4}"><title>{escape(tip)}</title>'
            f'<path class="line{" bound" if is_mark else ""}" d="{path}"/>'
        )
        if len(drawn) > 1:
            sample = f"M{right + 6} {name_y - 4:.1f}h{SAMPLE - 6}"
            parts.append(f'<path class="line{" bound" if is_mark else ""}" d="{sample}"/>')
            parts.append(f'<text class="label" x="{right + 4 + SAMPLE}" y="{name_y:.1f}">{escape(line.label)}</text>')
        parts.append("</g>")
    return _svg(height, parts, "Over iterations: " + ", ".join(line.label for line in drawn))


def short(value: float) -> str:
    """A tick's name in few characters: 12000 is 12k, 0.00025 is 2.5e-4."""
    if value and abs(value) < 1e-3:
        mantissa, _, power = f"{value:.6e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"


def mean_steps(histories: Sequence[Sequence[tuple[float, float]]], most: int = 240) -> list[tuple[float, float]]:
    """The mean of step functions, from the moment that all of them have begun.

    Args:
        histories: per run (time, value) in time order; a value holds until the next and after the last.
        most: points kept, evenly by order, the last always.
    """
    if not histories or not all(histories):
        return []
    begin = max(history[0][0] for history in histories)
    times = sorted({begin, *(t for history in histories for t, _ in history if t > begin)})
    if len(times) > most:
        times = [times[round(k * (len(times) - 1) / (most - 1))] for k in range(most)]
    total = np.zeros(len(times))
    for history in histories:
        at = np.searchsorted([t for t, _ in history], times, side="right") - 1
        total += np.array([v for _, v in history])[at]
    return list(zip(times, (total / len(histories)).tolist(), strict=True))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, evenly spaced, the first at or below `low` and the last at or above `high`."""
    raw = (high - low) / count or 1.0
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps low .. high to left .. right, linearly."""

    low: float
    high: float
    left: float
    right: float

    def __call__(self, value: float) -> float:
        return self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)


def _grid(scale: _Scale, ticks: Iterable[float], bottom: float, unit: str) -> str:
    return "".join(
        f'<line class="grid" x1="{scale(t):.1f}" x2="{scale(t):.1f}" y1="0" y2="{bottom}"/>'
        f'<text class="tick" x="{scale(t):.1f}" y="{bottom + 16}" text-anchor="middle">{t:g}{unit}</text>'
        for t in ticks
    )


def _labelled_points(points: Sequence[Point], x: _Scale, y: _Scale) -> list[str]:
    """Dots with names to the right of all dots nearby, pushed apart where they would overlap."""
    places = sorted(((x(_log(p.wall_s)), y(p.gap), p) for p in points), key=lambda place: place[1])
    parts = []
    taken: list[tuple[float, float]] = []  # (x, y) of the names so far
    for px, py, point in places:
        name_x = 14 + max(ox for ox, oy, _ in places if px <= ox < px + 70 and abs(oy - py) < 70)
        name_y = py
        while any(abs(name_x - ox) < 120 and name_y - oy < 14 for ox, oy in taken):
            name_y += 1
        taken.append((name_x, name_y))
        tip = f"{point.label}: {point.gap:.2f}% in {point.wall_s:.3g} s"
        parts.append(
            f'<g class="{point.kind}"><title>{escape(tip)}</title>'
            f'<line class="leader" x1="{px:.1f}" y1="{py:.1f}" x2="{name_x - 2:.1f}" y2="{name_y:.1f}"/>'
            f'<circle class="point" cx="{px:.1f}" cy="{py:.1f}" r="4"/>'
            f'<text class="label" x="{name_x:.1f}" y="{name_y + 4:.1f}">{escape(point.label)}</text></g>'
        )
    return parts


def _thinned(points: Sequence[tuple[float, float]], most: int) -> Sequence[tuple[float, float]]:
    if len(points) <= most:
        return points
    stretches = np.array_split(np.asarray(points), most)
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in stretches]


def _free(wanted: float, taken: Sequence[float], apart: float, most: float) -> float:
    """The place nearest to `wanted` that lies between `apart` and `most` and `apart` away from all that are taken."""
    places = sorted((p for t in (wanted, *taken) for p in (t, t - apart, t + apart)), key=lambda p: abs(p - wanted))
    free = (p for p in places if apart <= p <= most and all(abs(p - t) >= apart - 1e-6 for t in taken))
    return next(free, min(max(wanted, apart), most))


def _steps(points: Sequence[tuple[float, float]], x: _Scale, y: _Scale) -> str:
    path = [f"M{x(_log(points[0][0])):.1f} {y(points[0][1]):.1f}"]
    for (_, before), (t, after) in pairwise(points):
        path.append(f"H{x(_log(t)):.1f}" + (f"V{y(after):.1f}" if after != before else ""))
    return "".join(path)


def _log(seconds: float) -> float:
    return math.log10(max(seconds, 1e-6))


def _power(power: int) -> str:
    names: Mapping[int, str] = {-6: "1 µs", -5: "10 µs", -4: "0.1 ms", -3: "1 ms", -2: "10 ms", -1: "0.1 s"}
    return names.get(power, f"{10.0**power:g} s")


def _label_width(boxes: Iterable[Box]) -> int:
    return min(260, 22 + round(7.2 * max(len(box.label) for box in boxes)))


def _svg(height: float, parts: Iterable[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
