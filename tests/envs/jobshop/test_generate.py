"""Random instances: what each argument promises, and that a seed gives one instance."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.jobshop.generate import Routing, random_instance
from dispatchgym.envs.jobshop.instance import Instance


def generate(num_jobs: int, num_machines: int, seed: int = 0, **arguments: Any) -> Instance:
    return random_instance(np.random.default_rng(seed), num_jobs, num_machines, **arguments)


def machines_of(instance: Instance) -> list[list[int]]:
    return [instance.machine[a:b].tolist() for a, b in pairwise(instance.job_ptr.tolist())]


def test_by_default_every_job_visits_every_machine_once() -> None:
    instance = generate(30, 7)
    assert (instance.name, instance.size) == ("random-30x7", "30x7")
    assert all(sorted(route) == list(range(7)) for route in machines_of(instance))
    assert len({tuple(route) for route in machines_of(instance)}) > 25
    assert not instance.earliest.any()


def test_durations_are_uniform_over_their_whole_range() -> None:
    duration = generate(400, 20, durations=(5, 14)).duration
    counts = np.bincount(duration, minlength=15)
    assert counts[:5].sum() == 0
    assert counts[5:] == pytest.approx(np.full(10, 800), rel=0.15)


def test_a_seed_gives_one_instance_and_another_seed_another() -> None:
    assert generate(6, 6, seed=3).digest == generate(6, 6, seed=3).digest != generate(6, 6, seed=4).digest


def test_the_first_job_of_a_known_seed() -> None:
    """A regression value: suites name random instances by seed, so the stream must never change."""
    instance = generate(2, 5, seed=0, release_spread=1.0, load=0.5)
    assert instance.machine.tolist() == [2, 4, 3, 0, 1, 0, 2, 4, 3, 1]
    assert instance.duration.tolist() == [8, 2, 18, 81, 65, 73, 63, 54, 56, 93]
    assert (instance.release.tolist(), instance.arrival.tolist()) == ([28, 84], [0, 0])


def test_jobs_may_differ_in_length_and_then_visit_a_subset() -> None:
    routes = machines_of(generate(200, 6, operations=(2, 5)))
    assert {len(route) for route in routes} == {2, 3, 4, 5}
    assert all(len(set(route)) == len(route) for route in routes)
    assert {m for route in routes for m in route} == set(range(6))


def test_reentrant_jobs_come_back_but_never_at_once() -> None:
    routes = machines_of(generate(50, 3, operations=(6, 9), reentrant=True))
    assert all(len(set(route)) < len(route) for route in routes)
    assert all(a != b for route in routes for a, b in pairwise(route))


def test_on_a_single_machine_a_reentrant_job_stays() -> None:
    assert machines_of(generate(2, 1, operations=(3, 3), reentrant=True)) == [[0, 0, 0]] * 2


def test_flow_jobs_all_go_one_way() -> None:
    assert machines_of(generate(5, 4, routing="flow")) == [[0, 1, 2, 3]] * 5
    assert all(route == sorted(set(route)) for route in machines_of(generate(50, 6, operations=(2, 5), routing="flow")))
    again = machines_of(generate(3, 3, operations=(7, 7), routing="flow", reentrant=True))
    assert again == [[0, 1, 2, 0, 1, 2, 0]] * 3


@pytest.mark.parametrize(("num_machines", "half"), [(6, 3), (7, 4), (2, 1)])
def test_two_set_jobs_visit_the_lower_machines_first(num_machines: int, half: int) -> None:
    routes = machines_of(generate(40, num_machines, routing="two-sets"))
    assert all(sorted(route) == list(range(num_machines)) for route in routes)
    assert all(sorted(route[:half]) == list(range(half)) for route in routes)
    if half > 1:
        assert len({tuple(route[:half]) for route in routes}) > 1


def test_releases_spread_over_the_asked_share_of_a_machines_work() -> None:
    instance = generate(300, 5, release_spread=0.5)
    latest = round(0.5 * int(instance.duration.sum()) / 5)
    assert 0.95 * latest < instance.release.max() <= latest
    assert instance.release.mean() == pytest.approx(latest / 2, rel=0.1)
    assert not instance.arrival.any()


@pytest.mark.parametrize("load", [0.5, 0.9, 1.5])
def test_arrivals_bring_the_asked_load(load: float) -> None:
    """Work that has arrived over the machines' time: the load, within 4 standard deviations of a Poisson process."""
    instance = generate(2_000, 4, load=load)
    assert instance.arrival[0] == 0
    assert (np.diff(instance.arrival) >= 0).all()
    assert instance.duration.sum() / (4 * instance.arrival[-1]) == pytest.approx(load, rel=4 / np.sqrt(2_000))
    gaps = np.diff(instance.arrival)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # exponential
    assert not instance.release.any()


@given(
    seed=st.integers(0, 2**32),
    num_jobs=st.integers(1, 5),
    num_machines=st.integers(2, 5),
    fewest=st.integers(1, 3),
    more=st.integers(0, 5),
    routing=st.sampled_from(["free", "flow", "two-sets"]),
)
def test_every_combination_gives_an_instance_of_the_asked_size(
    seed: int, num_jobs: int, num_machines: int, fewest: int, more: int, routing: Routing
) -> None:
    instance = generate(
        num_jobs,
        num_machines,
        seed,
        operations=(fewest, fewest + more),
        routing=routing,
        reentrant=fewest + more > num_machines,
        durations=(0, 3),
        release_spread=0.3,
        load=0.8,
    )
    assert (instance.num_jobs, instance.num_machines) == (num_jobs, num_machines)
    lengths = np.diff(instance.job_ptr)
    assert fewest <= lengths.min() <= lengths.max() <= fewest + more


@pytest.mark.parametrize(
    ("num_jobs", "num_machines", "arguments", "message"),
    [
        (0, 3, {}, "0 jobs; an instance needs at least one"),
        (3, 0, {}, "0 machines; a shop has 1 to"),
        (3, 3, {"durations": (-1, 5)}, "durations (-1, 5); they need 0 <= least <= largest"),
        (3, 3, {"durations": (9, 5)}, "durations (9, 5); they need"),
        (3, 3, {"operations": (0, 2)}, "jobs of 0 to 2 operations"),
        (3, 3, {"operations": (3, 2)}, "jobs of 3 to 2 operations"),
        (3, 3, {"operations": (1, 4)}, "jobs of up to 4 operations on 3 machines come back to one; set reentrant"),
        (3, 1, {"routing": "two-sets"}, "routing 'two-sets' needs at least 2 machines"),
        (3, 3, {"release_spread": -0.1}, "release spread is -0.1"),
        (3, 3, {"release_spread": float("nan")}, "release spread is nan"),
        (3, 3, {"load": 0.0}, "load is 0.0"),
        (3, 3, {"load": float("inf")}, "load is inf"),
    ],
)
def test_impossible_arguments_are_refused_with_the_value(
    num_jobs: int, num_machines: int, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        generate(num_jobs, num_machines, **arguments)


def test_an_unknown_routing_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="routing 'flows' is not known; did you mean 'flow'"):
        generate(3, 3, routing="flows")
