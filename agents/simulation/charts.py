"""Pictures of a simulation as inline SVG: lines over a plain or logarithmic axis, and stacked areas over time.

Fonts come from the page's style sheet; every scheduler keeps one colour through the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dispatchgym.agents.evaluation.charts import nice_ticks, short

WIDTH = 560
LEFT, RIGHT, TOP, AXIS = 52, WIDTH - 16, 10, 34

HUES = (
    "211 60% 52%",
    "25 75% 50%",
    "150 50% 42%",
    "280 45% 58%",
    "345 65% 55%",
    "190 65% 42%",
    "45 80% 45%",
    "95 45% 45%",
    "315 50% 55%",
    "0 0% 55%",
    "235 55% 66%",
    "10 45% 40%",
)


def tone(number: int) -> str:
    """The style that gives an element and what is in it the colour of the scheduler of this number."""
    return f"--tone: hsl({HUES[number % len(HUES)]})"


@dataclass(frozen=True, slots=True)
class Line:
    """A scheduler's points, x rising; `tone` is the style with its colour."""

    label: str
    tone: str
    points: Sequence[tuple[float, float]]


def line_chart(
    lines: Sequence[Line],
    x_name: str,
    *,
    log_x: bool = False,
    percent: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    level: float | None = None,
    dots: bool = False,
    height: int = 240,
) -> str:
    """Lines over an axis; '' without points.

    Args:
        percent: the values are shares, the axis 0 to 100 %.
        marks: (x, name) of dashed lines upright. level: of a dashed line across.
        dots: show the points themselves.
    """
    lines = [Line(e.label, e.tone, [p for p in e.points if _drawn(p, log_x)]) for e in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [p[0] for line in lines for p in line.points]
    x = _Axis.log(min(xs), max(xs)) if log_x else _Axis.plain(min(xs), max(xs))
    top = 1.0 if percent else max(p[1] for line in lines for p in line.points)
    ticks = nice_ticks(0.0, top or 1.0)
    plot = height - AXIS

    def y(value: float) -> float:
        return TOP + (plot - TOP) * (1 - value / ticks[-1])

    parts = [_levels(ticks, y, percent), x.drawn(plot), _name(x_name, height)]
    if level is not None:
        parts.append(f'<line class="grid zero" stroke-dasharray="3 4" x1="{LEFT}" x2="{RIGHT}" {_flat(y(level))}/>')
    for at, name in marks:
        if x.low <= x.of(at) <= x.high:
            parts.append(
                f'<line class="grid zero" stroke-dasharray="4 3" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" '
                f'y2="{plot}"/><text class="tick" x="{x(at) + 4:.1f}" y="{plot - 6}">{escape(name)}</text>'
            )
    for line in lines:
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line.points)
        parts.append(f'<g style="{line.tone}"><title>{escape(line.label)}</title><path class="line" d="{path}"/>')
        if dots:
            parts += [
                f'<circle class="point" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6"><title>'
                f"{escape(line.label)}: {100 * b:.1f} % at {a:.3g}</title></circle>"
                for a, b in line.points
            ]
        parts.append("</g>")
    return _svg(height, parts, f"{x_name}: " + ", ".join(line.label for line in lines))


@dataclass(frozen=True, slots=True)
class Area:
    """A layer of a stack: its values at each time, and the style of its fill."""

    label: str
    fill: str
    values: Sequence[float]


def area_chart(
    edges: Sequence[float],
    areas: Sequence[Area],
    *,
    top: float,
    percent: bool = False,
    line: Sequence[float] | None = None,
    height: int = 150,
) -> str:
    """Layers on top of each other over time, from below.

    Args:
        edges: seconds, of the bins. areas: a value a bin in each.
        top: of the value axis at least, so that several charts have the same.
        line: drawn over the areas in the text's colour.
    """
    ticks = nice_ticks(0.0, top or 1.0, 3)
    plot = height - AXIS
    x = _Axis.plain(edges[0], edges[-1])

    def y(value: float) -> float:
        return TOP + (plot - TOP) * (1 - min(value / ticks[-1], 1.0))

    parts = [_levels(ticks, y, percent), x.drawn(plot), _name("seconds", height)]
    below = [0.0] * (len(edges) - 1)
    for area in areas:
        above = [b + v for b, v in zip(below, area.values, strict=True)]
        forth = "".join(f"H{x(edges[k]):.1f}V{y(v):.1f}H{x(edges[k + 1]):.1f}" for k, v in enumerate(above))
        back = "".join(f"V{y(below[k]):.1f}H{x(edges[k]):.1f}" for k in reversed(range(len(below))))
        start = f"M{x(edges[0]):.1f} {y(below[0] if below else 0):.1f}"
        parts.append(f'<path style="{area.fill}" d="{start}{forth}{back}Z"><title>{escape(area.label)}</title></path>')
        below = above
    if line is not None:
        path = "".join(f"H{x(edges[k]):.1f}V{y(v):.1f}H{x(edges[k + 1]):.1f}" for k, v in enumerate(line))
        parts.append(
            f'<path d="M{x(edges[0]):.1f} {y(line[0]):.1f}{path}" style="fill: none; stroke: var(--ink); '
            'stroke-width: 1.2"/>'
        )
    return _svg(height, parts, "Over time: " + ", ".join(area.label for area in areas))


@dataclass(frozen=True, slots=True)
class _Axis:
    """From low to high, of values or of their logarithms to base 10, over the width of the plot."""

    low: float
    high: float
    is_log: bool
    ticks: Sequence[float]

    @classmethod
    def plain(cls, low: float, high: float) -> _Axis:
        high = max(high, low + 1e-9)
        return cls(low, high, False, [t for t in nice_ticks(low, high, 6) if low <= t <= high])

    @classmethod
    def log(cls, low: float, high: float) -> _Axis:
        first, last = math.log10(low), math.log10(max(high, low * 1.5))
        fine = last - first < 2.5
        values = [
            m * 10.0**p for p in range(math.floor(first), math.ceil(last) + 1) for m in ((1, 2, 5) if fine else (1,))
        ]
        return cls(first, last, True, [v for v in values if first - 1e-9 <= math.log10(v) <= last + 1e-9])

    def of(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.is_log else value

    def __call__(self, value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (self.of(value) - self.low) / (self.high - self.low)

    def drawn(self, bottom: float) -> str:
        return "".join(
            f'<line class="grid" x1="{self(t):.1f}" x2="{self(t):.1f}" y1="{TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{self(t):.1f}" y="{bottom + 14}" text-anchor="middle">{short(round(t, 10))}</text>'
            for t in self.ticks
        )


def _levels(ticks: Sequence[float], y: object, percent: bool) -> str:
    assert callable(y)
    return "".join(
        f'<line class="grid{" zero" if t == 0 else ""}" x1="{LEFT}" x2="{RIGHT}" {_flat(y(t))}/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">'
        f"{f'{100 * t:.0f}%' if percent else short(t)}</text>"
        for t in ticks
    )


def _flat(y: float) -> str:
    return f'y1="{y:.1f}" y2="{y:.1f}"'


def _name(text: str, height: float) -> str:
    return f'<text class="tick" x="{RIGHT}" y="{height - 5}" text-anchor="end">{escape(text)}</text>'


def _drawn(point: tuple[float, float], log_x: bool) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1]) and (point[0] > 0 or not log_x)


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
