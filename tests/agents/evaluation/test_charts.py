"""The report's pictures: right numbers, well-formed SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from dispatchgym.agents.evaluation.charts import Box, Curve, Point, anytime_chart, box_plot, mean_steps, nice_ticks


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
