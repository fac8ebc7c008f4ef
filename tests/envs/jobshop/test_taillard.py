"""Taillard's generator against published numbers."""

from __future__ import annotations

import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.taillard import MODULUS, Uniform, taillard


def test_the_generator_is_the_minimal_standard() -> None:
    """Park and Miller 1988: from 1, the 10,000th number is 1043618065."""
    numbers = Uniform(1)
    for _ in range(10_000):
        last = numbers.integer(0, MODULUS - 1)
    assert last == 1043618065


# First and last job as published on Taillard's page; machines there are counted from 1.
PUBLISHED = {
    "ta01": (
        (15, 15, 840612802, 398197754),
        [6, 12, 4, 7, 3, 2, 10, 11, 8, 14, 9, 13, 5, 0, 1],
        [94, 66, 10, 53, 26, 15, 65, 82, 10, 27, 93, 92, 96, 70, 83],
        ([3, 2, 9, 5], [87, 83, 20, 97]),
    ),
    "ta31": (
        (30, 15, 98640593, 1981283465),
        [3, 10, 14, 1, 5, 8, 4, 11, 13, 12, 2, 9, 7, 0, 6],
        [99, 43, 6, 99, 23, 98, 84, 24, 30, 53, 34, 95, 50, 48, 38],
        ([9, 1, 7, 4], [73, 26, 21, 45]),
    ),
    "ta80": (
        (100, 20, 682761130, 262763021),
        [9, 12, 4, 7, 16, 0, 1, 18, 17, 5, 14, 11, 8, 10, 3, 15, 13, 2, 19, 6],
        [54, 87, 61, 35, 5, 48, 33, 21, 65, 83, 78, 14, 70, 25, 36, 56, 87, 32, 96, 62],
        ([2, 6, 10, 3], [98, 30, 46, 21]),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_instances_begin_and_end_as_published(name: str) -> None:
    seeds, machines, durations, (last_machines, last_durations) = PUBLISHED[name]
    instance = taillard(*seeds, name)
    assert (instance.name, instance.size) == (name, f"{seeds[0]}x{seeds[1]}")
    assert instance.machine[: seeds[1]].tolist() == machines
    assert instance.duration[: seeds[1]].tolist() == durations
    assert instance.machine[-4:].tolist() == last_machines
    assert instance.duration[-4:].tolist() == last_durations


@pytest.mark.parametrize(("time_seed", "machine_seed"), [(0, 1), (1, 0), (-3, 1), (1, MODULUS)])
def test_a_seed_that_the_generator_cannot_use_is_refused(time_seed: int, machine_seed: int) -> None:
    with pytest.raises(UsageError, match=f"this generator needs 1 to {MODULUS - 1}"):
        taillard(2, 2, time_seed, machine_seed, "bad")


@pytest.mark.parametrize(("jobs", "machines"), [(0, 5), (5, 0), (-1, 5)])
def test_an_empty_shop_is_refused(jobs: int, machines: int) -> None:
    with pytest.raises(UsageError, match=f"{jobs} jobs and {machines} machines; both must be at least 1"):
        taillard(jobs, machines, 1, 1, "bad")
