"""Timelines by hand arithmetic, and pictures that are whole and say what they were given."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from dispatchgym.agents.simulation.charts import Area, Line, area_chart, line_chart, tone
from dispatchgym.agents.simulation.timeline import bin_edges, timeline
from tests.envs.llm.test_metrics import FINISHED, record, workload


def test_a_timeline_by_hand() -> None:
    step = {"kv_blocks": 5, "running": 2, "waiting": 1}
    r = record(
        workload(1),
        status=[FINISHED],
        first=[1.0],
        finish=[12.0],
        generated=[5],
        steps=[
            {"start_s": 0.0, "duration_s": 0.5, "prefill_tokens": 10, "decode_tokens": 1, **step},
            {"start_s": 0.5, "duration_s": 1.5, "prefill_tokens": 0, "decode_tokens": 3, **step, "kv_blocks": 9},
            {"start_s": 2.0, "duration_s": 3.0, "prefill_tokens": 6, "decode_tokens": 0, **step, "preemptions": 2},
            {"start_s": 9.0, "duration_s": 1.0, "prefill_tokens": 0, "decode_tokens": 8, **step, "running": 1},
        ],
    )
    t = timeline(r, bin_edges(10.0, 5))
    assert t.prefill_tps.tolist() == [5, 3, 0, 0, 0]
    assert t.decode_tps.tolist() == [2, 0, 0, 0, 4]
    # (5 * 0.5 + 9 * 1.5) / 2 of 10 blocks; the step from 2 to 5 goes on in the third bin; the fourth has none.
    assert t.kv == pytest.approx([0.8, 0.5, 0.5, 0, 0.5])
    assert t.running == pytest.approx([2, 2, 2, 0, 1])
    assert t.waiting == pytest.approx([1, 1, 1, 0, 1])
    assert t.preemptions.tolist() == [0, 2, 0, 0, 0]


def test_steps_beyond_the_last_edge_are_left_out() -> None:
    late = {"start_s": 50.0, "duration_s": 1.0, "decode_tokens": 4}
    r = record(workload(1), status=[FINISHED], first=[1.0], finish=[51.0], generated=[5], steps=[late])
    assert timeline(r, bin_edges(10.0, 2)).decode_tps.tolist() == [0, 0]


def test_line_charts_draw_what_they_are_given() -> None:
    lines = [Line("a<b", tone(0), [(0.01, 0.1), (1.0, 0.5), (10.0, float("nan"))]), Line("c", tone(1), [(0.1, 1.0)])]
    svg = line_chart(lines, "seconds & more", log_x=True, percent=True, marks=[(0.5, "SLO")], level=0.9, dots=True)
    root = ElementTree.fromstring(svg)
    assert next(root.iter("title")).text == "a<b"
    assert sum(e.tag == "circle" for e in root.iter()) == 3  # not the value that is none
    paths = [e.attrib["d"] for e in root.iter("path")]
    x = [float(each.split()[0]) for each in re.split("[ML]", paths[0])[1:]]
    assert x[1] - x[0] == pytest.approx(2 * (float(paths[1][1:].split()[0]) - x[0]), abs=0.2)  # two decades against one
    assert "SLO" in svg
    assert line_chart([Line("empty", tone(0), [])], "x") == ""
    assert line_chart([Line("at zero", tone(0), [(0.0, 1.0)])], "x", log_x=True) == ""


def test_areas_lie_on_top_of_each_other() -> None:
    svg = area_chart([0.0, 1.0, 2.0], [Area("low", "fill: red", [1, 2]), Area("high", "fill: blue", [3, 0])], top=4.0)
    low, high = (e.attrib["d"] for e in ElementTree.fromstring(svg).iter("path"))
    heights = [sorted({float(v) for v in re.findall(r"V([\d.]+)", d)}) for d in (low, high)]
    zero, unit = max(heights[0]), (max(heights[0]) - heights[0][0]) / 2
    assert heights[0] == pytest.approx([zero - 2 * unit, zero - unit, zero], abs=0.1)
    assert heights[1] == pytest.approx([zero - 4 * unit, zero - 2 * unit, zero - unit], abs=0.1)


def test_edges_of_an_empty_run_still_rise() -> None:
    assert (np.diff(bin_edges(0.0, 3)) > 0).all()
