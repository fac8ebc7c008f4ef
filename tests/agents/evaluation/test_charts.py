"""The report's pictures: right numbers, well-formed SVG."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from dispatchgym.agents.evaluation.charts import (
    Box,
    Curve,
    Line,
    Point,
    anytime_chart,
    box_plot,
    line_chart,
    mean_steps,
    nice_ticks,
    short,
)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 50.0, [0, 10, 20, 30, 40, 50]),
        (0.0, 9.0, [0, 2, 4, 6, 8, 10]),
        (-3.0, 41.0, [-10, 0, 10, 20, 30, 40, 50]),
        (0.0, 0.0, [0, 1]),
        (7.0, 7.0, [7, 8]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


def test_mean_steps_begin_when_every_run_has_begun() -> None:
    one = [(1.0, 10.0), (4.0, 2.0)]
    two = [(2.0, 30.0), (3.0, 20.0)]
    assert mean_steps([one, two]) == [(2.0, 20.0), (3.0, 15.0), (4.0, 11.0)]
    assert mean_steps([one]) == one
    assert mean_steps([one, []]) == []
    assert mean_steps([]) == []


def test_long_histories_are_thinned_but_end_where_they_end() -> None:
    history = [(float(k), 1000.0 - k) for k in range(1000)]
    steps = mean_steps([history], most=50)
    assert len(steps) == 50
    assert (steps[0], steps[-1]) == (history[0], history[-1])


def test_a_box_stands_where_its_quartiles_are() -> None:
    svg = ElementTree.fromstring(box_plot([Box("a", "rule", [0.0, 10.0, 20.0, 30.0, 40.0])], "%"))
    (box,) = svg.iterfind(".//rect[@class='box']")
    ticks = {text.text: float(text.get("x", "")) for text in svg.iterfind(".//text[@class='tick']")}
    assert float(box.get("x", "")) == pytest.approx(ticks["10%"], abs=0.2)
    assert float(box.get("x", "")) + float(box.get("width", "")) == pytest.approx(ticks["30%"], abs=0.2)
    (median,) = svg.iterfind(".//line[@class='median']")
    assert float(median.get("x1", "")) == pytest.approx(ticks["20%"], abs=0.2)


def test_names_are_escaped_and_policies_without_values_left_out() -> None:
    svg = ElementTree.fromstring(box_plot([Box("<b>&", "rule", [1.0]), Box("empty", "rule", [])], "%"))
    assert [text.text for text in svg.iterfind(".//text[@class='label']")] == ["<b>&"]


def test_the_anytime_chart_shows_solvers_bounds_and_rules() -> None:
    curve = Curve("cp-sat@5d", "solver", [(0.1, 30.0), (2.0, 1.0)], [(0.05, -50.0), (1.0, -5.0)])
    points = [Point("mwkr", "rule", 0.0004, 20.0), Point("spt", "rule", 0.0004, 20.5)]
    svg = ElementTree.fromstring(anytime_chart([curve], points))
    assert len(list(svg.iterfind(".//path"))) == 2
    labels = {text.text: float(text.get("y", "")) for text in svg.iterfind(".//text[@class='label']")}
    assert set(labels) == {"cp-sat@5d", "mwkr", "spt"}
    assert abs(labels["mwkr"] - labels["spt"]) >= 12  # pushed apart


def test_the_anytime_chart_of_one_instant_solver_is_drawn() -> None:
    ElementTree.fromstring(anytime_chart([Curve("cp-sat@5d", "solver", [(0.0, 0.0)], [(0.0, 0.0)])], []))
    ElementTree.fromstring(anytime_chart([Curve("cp-sat@5d", "solver", [], [(0.5, -10.0)])], []))


def ends(path: str | None) -> list[tuple[float, float]]:
    """The corners of a path of straight lines."""
    assert path
    return [(float(x), float(y)) for x, y in (corner.split() for corner in path.removeprefix("M").split("L"))]


def test_a_line_goes_through_its_values_and_a_mark_across_the_chart() -> None:
    lines = [Line("greedy", "learned", [(0, 20.0), (10, 10.0), (20, 0.0)]), Line("lrpt", "rule", [(0, 20.0)])]
    svg = ElementTree.fromstring(line_chart(lines, "%"))
    heights = {text.text: float(text.get("y", "")) - 4 for text in svg.iterfind(".//text[@class='tick']")}
    drawn = [path.get("d", "") for path in svg.iterfind(".//path")]
    assert ["h" in path for path in drawn] == [False, True, False, True]  # a sample of each goes before its name
    line, mark = (ends(path) for path in drawn[::2])
    assert [y for _, y in line] == pytest.approx([heights["20%"], heights["10%"], heights["0%"]], abs=0.2)
    assert (mark[0][0], mark[-1][0]) == (line[0][0], line[-1][0])
    assert mark[0][1] == mark[-1][1] == line[0][1]


def test_names_of_lines_that_end_together_are_pushed_apart() -> None:
    lines = [Line(str(k), "rule", [(0, 1.0), (5, 2.0 + k / 1000)]) for k in range(5)]
    svg = ElementTree.fromstring(line_chart(lines))
    names = sorted(float(text.get("y", "")) for text in svg.iterfind(".//text[@class='label']"))
    assert len(names) == 5
    assert min(b - a for a, b in pairwise(names)) >= 11.9


def test_long_lines_are_thinned_to_means_and_values_that_are_no_numbers_left_out() -> None:
    points = [(float(k), float(k % 2)) for k in range(1000)]
    svg = ElementTree.fromstring(line_chart([Line("a", "rule", [*points, (1000.0, float("nan"))])], most=100))
    (path,) = svg.iterfind(".//path")
    assert len(ends(path.get("d"))) == 100
    assert len({y for _, y in ends(path.get("d"))}) == 1  # the mean of five zeros and five ones, everywhere
    assert line_chart([Line("none", "rule", [(0.0, float("inf"))])]) == ""
    assert line_chart([]) == ""


@pytest.mark.parametrize(
    ("value", "name"),
    [(0, "0"), (12, "12"), (1500, "1500"), (12000, "12k"), (2.5e6, "2.5M"), (3e9, "3G"), (-0.00025, "-2.5e-4")],
)
def test_tick_names_are_short(value: float, name: str) -> None:
    assert short(value) == name
