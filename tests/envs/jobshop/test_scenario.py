"""Shutdown scenarios: the law, its seeds, files, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatchgym.envs.api import InvalidInstanceError, UsageError
from dispatchgym.envs.jobshop import library
from dispatchgym.envs.jobshop.instance import MAX_TIME, Instance
from dispatchgym.envs.jobshop.scenario import LAST_TIME, Scenario, draw, no_shutdowns
from tests.envs.jobshop.strategies import scenarios

LA01 = library.load("la01")


def constant(duration: int, num_machines: int = 3, jobs: int = 4) -> Instance:
    """A shop in which every operation takes `duration`."""
    return Instance.from_routes("constant", [[(m, duration) for m in range(num_machines)]] * jobs)


def up_and_down_times(scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of all up-times that end in a shutdown, and of all down-times."""
    ups, downs = [], []
    for m in range(scenario.num_machines):
        before = 0
        for start, end in scenario.windows(m):
            ups.append(start - before)
            downs.append(end - start)
            before = end
    return np.array(ups), np.array(downs)


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.2])
def test_a_shutdown_within_one_mean_duration_has_the_asked_probability(probability: float) -> None:
    mean = 20
    ups, _ = up_and_down_times(draw(constant(mean), probability, seed=1, horizon=2_000_000))
    spread = np.sqrt(probability * (1 - probability) / len(ups))
    assert np.mean(ups <= mean) == pytest.approx(probability, abs=4 * spread)


def test_up_times_are_geometric() -> None:
    """Mean 1 / h and standard deviation sqrt(1 - h) / h, for the hazard h of 20 time units and p = 0.2."""
    hazard = 1 - 0.8 ** (1 / 20)
    ups, _ = up_and_down_times(draw(constant(20), 0.2, seed=2, horizon=2_000_000))
    assert len(ups) > 50_000
    assert ups.min() == 1
    assert ups.mean() == pytest.approx(1 / hazard, rel=0.02)
    assert ups.std() == pytest.approx(np.sqrt(1 - hazard) / hazard, rel=0.02)


def test_down_times_are_uniform_up_to_twice_the_mean_duration() -> None:
    _, downs = up_and_down_times(draw(constant(10), 0.2, seed=3, horizon=1_000_000))
    counts = np.bincount(downs)
    assert counts[0] == 0
    assert len(counts) == 21
    assert counts[1:] == pytest.approx(np.full(20, len(downs) / 20), rel=0.1)


def test_shutdowns_begin_before_the_horizon_and_by_default_cover_twice_the_work() -> None:
    instance = Instance.from_routes("late", [[(0, 5), (1, 7)], [(1, 8)]], release=[0, 30], arrival=[100, 10])
    assert draw(instance, 0.2, seed=0).downtime() == draw(instance, 0.2, seed=0, horizon=2 * (20 + 100)).downtime()
    scenario = draw(LA01, 0.2, seed=0, horizon=500)
    assert 400 < scenario.down_from.max() < 500


def test_one_seed_gives_one_scenario_and_another_seed_another() -> None:
    first, again, other = (draw(LA01, 0.1, seed=seed) for seed in (7, 7, 8))
    assert first.downtime() == again.downtime()
    assert first.downtime() != other.downtime()


def test_the_scenario_depends_on_the_instance_only_by_its_size_and_mean_duration() -> None:
    ordered = Instance.from_routes("ordered", [[(0, 10), (1, 30)], [(0, 20), (1, 20)]])
    crossed = Instance.from_routes("crossed", [[(1, 25), (0, 15)], [(1, 15), (0, 25)]])
    assert draw(ordered, 0.2, seed=4).downtime() == draw(crossed, 0.2, seed=4).downtime()


def test_a_longer_horizon_only_appends_windows() -> None:
    short, long = (draw(LA01, 0.2, seed=5, horizon=horizon) for horizon in (3_000, 100_000))
    for m in range(LA01.num_machines):
        assert short.windows(m)
        assert short.windows(m) == [w for w in long.windows(m) if w[0] < 3_000]


def test_one_more_machine_leaves_the_others_as_they_are() -> None:
    three, four = (draw(constant(9, machines), 0.2, seed=6, horizon=5_000) for machines in (3, 4))
    for m in range(3):
        assert three.windows(m) == four.windows(m)


def test_how_an_interruption_ends_does_not_change_the_windows() -> None:
    resume, restart = draw(LA01, 0.2, seed=9), draw(LA01, 0.2, seed=9, on_interrupt="restart")
    assert (resume.on_interrupt, restart.on_interrupt) == ("resume", "restart")
    assert resume.downtime() == restart.downtime()


@pytest.mark.parametrize("probability", [0.0, 5e-324, 1e-15])
def test_without_shutdowns_every_machine_is_always_up(probability: float) -> None:
    assert draw(LA01, probability, seed=0).downtime() == no_shutdowns(5).downtime() == []
    assert no_shutdowns(5).num_machines == 5


def test_the_first_windows_of_a_known_seed() -> None:
    """A regression value: recorded results name scenarios by seed, so the stream must never change."""
    assert draw(LA01, 0.1, seed=0).windows(0)[:3] == [(1782, 1869), (2282, 2298), (2976, 3005)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shutdown_probability": -0.1}, "shutdown probability is -0.1"),
        ({"shutdown_probability": 1.0}, "shutdown probability is 1.0"),
        ({"shutdown_probability": float("nan")}, "shutdown probability is nan"),
        ({"seed": -1}, "scenario seed is -1"),
        ({"horizon": -5}, "scenario horizon is -5"),
        ({"horizon": 2 * MAX_TIME + 1}, "scenario horizon is"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        draw(LA01, **({"shutdown_probability": 0.1, "seed": 0} | arguments))  # type: ignore[arg-type]


def test_an_unknown_way_to_end_an_interruption_is_refused() -> None:
    with pytest.raises(InvalidInstanceError, match="on_interrupt is 'repeat'; it must be one of resume, restart"):
        draw(LA01, 0.1, seed=0, on_interrupt="repeat")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ptr", "down_from", "down_to", "message"),
    [
        ([0, 2], [10, 5], [12, 7], "machine 0 goes down at 5 but its window before ends at 12"),
        ([0, 2], [10, 11], [12, 15], "machine 0 goes down at 11 but its window before ends at 12"),
        ([0, 2], [10, 12], [12, 15], "machine 0 goes down at 12 but its window before ends at 12"),
        ([0, 0, 1], [7], [7], "machine 1 is down from 7 to 7"),
        ([0, 1], [9], [7], "machine 0 is down from 9 to 7"),
        ([0, 1], [-1], [7], "machine 0 is down from -1 to 7"),
        ([0, 1], [1], [LAST_TIME + 1], "machine 0 is down from 1 to"),
        ([0, 1], [1], [2, 3], "1 shutdowns but 2 repairs"),
        ([0, 2], [1], [2], "machine offsets must rise from 0 to 1"),
        ([0, 1, 0, 1], [1], [2], "machine offsets must rise from 0 to 1"),
        ([0], [], [], "name at least one machine"),
        ([0, 1], [1.5], [2], "down_from must be a flat list of whole numbers"),
    ],
)
def test_windows_that_cannot_be_are_refused(
    ptr: list[int], down_from: list[int], down_to: list[int], message: str
) -> None:
    with pytest.raises(InvalidInstanceError, match=re.escape(message)):
        Scenario(np.array(ptr), np.array(down_from), np.array(down_to))


def test_a_scenario_cannot_be_written() -> None:
    scenario = draw(LA01, 0.1, seed=0)
    with pytest.raises(ValueError, match="read-only"):
        scenario.down_to[0] = 0


def test_windows_of_a_machine_that_is_not_there_are_refused() -> None:
    with pytest.raises(UsageError, match="machine -1 is not one of 0 to 4"):
        no_shutdowns(5).windows(-1)


@given(scenario=st.integers(1, 4).flatmap(scenarios))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_saved_scenario_loads_as_it_was(scenario: Scenario, tmp_path: Path) -> None:
    scenario.save(tmp_path / "scenario.json")
    back = Scenario.load(tmp_path / "scenario.json")
    assert back.downtime() == scenario.downtime()
    assert (back.num_machines, back.on_interrupt) == (scenario.num_machines, scenario.on_interrupt)


def test_windows_may_be_given_in_any_order() -> None:
    rows = [{"machine": 1, "from": 8, "to": 9}, {"machine": 0, "from": 5, "to": 6}, {"machine": 1, "from": 1, "to": 2}]
    scenario = Scenario.from_downtime(3, rows)
    assert [scenario.windows(m) for m in range(3)] == [[(5, 6)], [(1, 2), (8, 9)], []]


VALID = {
    "format": "dispatchgym/jobshop-scenario",
    "schema": 1,
    "machines": 2,
    "on_interrupt": "resume",
    "downtime": [{"machine": 1, "from": 3, "to": 5}],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not a scenario"),
        ({"schema": 2}, "has schema 2; this version reads schema 1"),
        ({"machines": "two"}, "machines is 'two'; it must be a whole number"),
        ({"machines": 0}, "0 machines"),
        ({"machines": 10**12}, "1000000000000 machines"),
        ({"on_interrupt": "stop"}, "on_interrupt is 'stop'"),
        ({"downtime": {}}, "downtime is {}; it must be a list"),
        ({"downtime": [3]}, "window 0 is 3; it needs machine, from and to"),
        ({"downtime": [{"machine": 1, "from": 3}]}, "window 0 is {'machine': 1, 'from': 3}; it needs"),
        ({"downtime": [{"machine": 1, "from": 3, "to": "x"}]}, "window 0 has to 'x'; it must be a whole number"),
        ({"downtime": [{"machine": 1, "from": 3, "to": 2**70}]}, f"window 0 has to {2**70}"),
        ({"downtime": [{"machine": 2, "from": 3, "to": 5}]}, "window 0 names machine 2; machines are 0 to 1"),
        ({"downtime": [{"machine": 1, "from": 5, "to": 3}]}, "machine 1 is down from 5 to 3"),
    ],
)
def test_a_malformed_file_is_refused_by_file_and_value(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(VALID | changes))
    with pytest.raises(InvalidInstanceError) as caught:
        Scenario.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_files_that_hold_no_scenario_are_refused(tmp_path: Path) -> None:
    lacking = tmp_path / "lacking.json"
    lacking.write_text(json.dumps({k: v for k, v in VALID.items() if k != "downtime"}))
    with pytest.raises(InvalidInstanceError, match=r"lacking\.json: lacks downtime"):
        Scenario.load(lacking)
    for name, content in (
        ("list.json", b"[1]"),
        ("text.json", b"ft06"),
        ("binary.json", b"\xff\x00"),
        ("empty.json", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInstanceError, match=f"{name}: is not a"):
            Scenario.load(tmp_path / name)
    with pytest.raises(InvalidInstanceError, match=r"gone\.json: cannot be read"):
        Scenario.load(tmp_path / "gone.json")
    with pytest.raises(InvalidInstanceError, match="cannot be read"):
        Scenario.load(tmp_path)
