"""Gantt charts: bars as long as the times they stand for, in pictures and in text."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.gantt import draw, text
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule


def schedule(start: list[int], end: list[int], leave: list[int]) -> Schedule:
    return Schedule(np.array(start, np.int64), np.array(end, np.int64), np.array(leave, np.int64))


def areas(picture: np.ndarray) -> list[int]:
    """Pixels of each plain colour that is no shade of grey, largest first; edges and letters are smaller than 4,000."""
    counts = Counter(map(tuple, picture.reshape(-1, 3).tolist()))
    return sorted((n for rgb, n in counts.items() if max(rgb) - min(rgb) > 8 and n > 4000), reverse=True)


THREE_TO_ONE = Instance.from_routes("three to one", [[(0, 30)], [(0, 10)]])
ONE_AFTER_ANOTHER = schedule([0, 30], [30, 40], [30, 40])


def test_bars_are_as_long_as_the_operations() -> None:
    long, short = areas(draw(THREE_TO_ONE, ONE_AFTER_ANOTHER))
    assert long / short == pytest.approx(3.0, rel=0.05)


def test_a_blocked_job_is_drawn_lighter() -> None:
    instance = Instance.from_routes("blocked", [[(0, 20), (1, 20)], [(1, 60)]])
    picture = draw(instance, schedule([0, 60, 0], [20, 80, 60], [60, 80, 60]))
    job_1, held, job_0 = areas(picture)
    assert held / job_0 == pytest.approx(40 / 40, rel=0.05)
    assert job_1 / held == pytest.approx(60 / 40, rel=0.05)
    assert len(areas(draw(instance, schedule([0, 60, 0], [20, 80, 60], [20, 80, 60])))) == 2  # classic: nothing held


def test_downtime_is_hatched_over_its_window_only() -> None:
    plain = draw(THREE_TO_ONE, ONE_AFTER_ANOTHER)
    down = draw(THREE_TO_ONE, ONE_AFTER_ANOTHER, Scenario.from_downtime(1, [{"machine": 0, "from": 10, "to": 20}]))
    chart = slice(0, int(plain.shape[0] * 0.55))  # above the axis numbers and the legend
    changed = (plain[chart] != down[chart]).any(axis=(0, 2))
    columns = np.flatnonzero(changed) / plain.shape[1]
    assert columns.min() == pytest.approx(0.25, abs=0.05)
    assert columns.max() == pytest.approx(0.50, abs=0.05)


def test_the_size_of_a_picture_depends_on_the_instance_only() -> None:
    begun = schedule([0, -1], [30, -1], [30, -1])
    whole, part = draw(THREE_TO_ONE, ONE_AFTER_ANOTHER), draw(THREE_TO_ONE, begun)
    assert whole.shape == part.shape
    assert whole.dtype == np.uint8
    assert len(areas(part)) == 1  # what has not started is left out


def test_nothing_started_is_an_empty_chart() -> None:
    nothing = schedule([-1, -1], [-1, -1], [-1, -1])
    assert areas(draw(THREE_TO_ONE, nothing)) == []
    assert text(THREE_TO_ONE, nothing, 20).splitlines()[0] == "m0 " + "." * 20


def test_many_jobs_and_machines_fit_in_one_picture() -> None:
    routes = [[(m, 1) for m in range(60)] for _ in range(100)]
    instance = Instance.from_routes("crowd", routes)
    start = np.array([j + m for j in range(100) for m in range(60)], np.int64)
    picture = draw(instance, Schedule(start, start + 1, start + 1))
    assert picture.shape[0] <= 1400
    assert picture.shape[1] <= 3000
    assert len({tuple(pixel) for pixel in picture[300].tolist()}) > 20  # the jobs of a row keep their colours apart


MIXED = Instance.from_routes("mixed", [[(0, 4), (1, 6)], [(1, 8), (0, 4)]], num_machines=3)
HELD = schedule([0, 8, 0, 14], [4, 14, 8, 18], [8, 14, 8, 18])
DOWN = Scenario.from_downtime(3, [{"machine": 2, "from": 2, "to": 6}, {"machine": 0, "from": 10, "to": 12}])


def test_the_text_chart_shows_busy_held_free_and_down() -> None:
    assert text(MIXED, HELD, 36, DOWN, colour=False).splitlines() == [
        "m0 AAAAAAAA--------....####....BBBBBBBB",
        "m1 BBBBBBBBBBBBBBBBAAAAAAAAAAAA........",
        "m2 ....########........................",
        "   0" + "18".rjust(35),
    ]


def test_colours_do_not_change_the_width_and_dim_what_is_held() -> None:
    coloured = text(MIXED, HELD, 36, DOWN).splitlines()
    assert "\x1b[2mAAAAAAAA\x1b[0m" in coloured[0]
    shown = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured]
    assert [line.replace("-", "A") for line in text(MIXED, HELD, 36, DOWN, colour=False).splitlines()] == shown


def test_jobs_beyond_the_symbols_begin_again() -> None:
    instance = Instance.from_routes("many", [[(0, 1)]] * 64)
    start = np.arange(64, dtype=np.int64)
    line = text(instance, Schedule(start, start + 1, start + 1), 64, colour=False).splitlines()[0]
    assert line[3:6] + line[-3:] == "ABC9AB"


def test_a_chart_too_narrow_is_refused() -> None:
    with pytest.raises(UsageError, match="ask for at least 20"):
        text(MIXED, HELD, 19)
