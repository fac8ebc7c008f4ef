"""Instances: what they know, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from dispatchgym.envs.api import InvalidInstanceError
from dispatchgym.envs.jobshop.instance import MAX_MACHINES, MAX_TIME, Instance
from tests.envs.jobshop.strategies import instances

ROUTES = [[(2, 7), (0, 1)], [(1, 3)], [(0, 2), (2, 4), (0, 6)]]


def test_routes_are_stored_flat_in_order() -> None:
    instance = Instance.from_routes("mixed", ROUTES, release=[0, 5, 9], arrival=[3, 0, 9])
    assert (instance.num_jobs, instance.num_machines, instance.num_ops, instance.size) == (3, 3, 6, "3x3")
    assert instance.job_ptr.tolist() == [0, 2, 3, 6]
    assert instance.machine.tolist() == [2, 0, 1, 0, 2, 0]
    assert instance.duration.tolist() == [7, 1, 3, 2, 4, 6]
    assert instance.op_job().tolist() == [0, 0, 1, 2, 2, 2]
    assert instance.earliest.tolist() == [3, 5, 9]
    assert instance.mean_duration == pytest.approx(23 / 6)
    assert [instance.op_name(op) for op in (0, 2, 5)] == ["(0, 0)", "(1, 0)", "(2, 2)"]


def test_a_machine_may_stand_unused_and_a_duration_be_zero() -> None:
    instance = Instance.from_routes("idle", [[(0, 0)]], num_machines=4)
    assert instance.size == "1x4"
    assert instance.mean_duration == 1.0  # the scale of times is never zero


@given(instance=instances())
def test_the_digest_ignores_the_name_and_nothing_else(instance: Instance) -> None:
    fields: dict[str, Any] = {
        key: getattr(instance, key).copy() for key in ("machine", "duration", "release", "arrival")
    }

    def digest(num_machines: int = instance.num_machines, **changes: Any) -> str:
        return Instance("other", instance.job_ptr, num_machines=num_machines, **(fields | changes)).digest

    assert digest() == instance.digest
    assert digest(num_machines=instance.num_machines + 1) != instance.digest
    for key in ("duration", "release", "arrival"):
        changed = fields[key].copy()
        changed[-1] += 1
        assert digest(**{key: changed}) != instance.digest
    assert digest(release=fields["arrival"] + 1, arrival=fields["release"]) != instance.digest


def test_an_instance_cannot_be_written() -> None:
    duration = np.array([5, 6])
    instance = Instance("own", np.array([0, 2]), np.array([0, 1]), duration, 2)
    duration[0] = 99
    assert instance.duration.tolist() == [5, 6]
    with pytest.raises(ValueError, match="read-only"):
        instance.duration[0] = 1


VALID: dict[str, Any] = {
    "name": "bad",
    "job_ptr": [0, 2, 3],
    "machine": [0, 1, 1],
    "duration": [4, 5, 6],
    "num_machines": 2,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job_ptr": []}, "name at least one job"),
        ({"job_ptr": [0]}, "name at least one job"),
        ({"job_ptr": [0, 2]}, "job offsets must run from 0 to 3"),
        ({"job_ptr": [1, 2, 3]}, "job offsets must run from 0 to 3"),
        ({"job_ptr": [0, 3, 3]}, "job 1 has no operation"),
        ({"job_ptr": [0, 5, 3]}, "job 1 has no operation"),
        ({"duration": [4, 5]}, "3 machines but 2 durations"),
        ({"duration": [4, -5, 6]}, "operation (0, 1) has duration -5; it must not be negative"),
        ({"duration": [4, 5.5, 6]}, "bad: duration must be a flat list of whole numbers"),
        ({"duration": ["a", "b", "c"]}, "bad: duration must be a flat list of whole numbers"),
        ({"duration": [[4], [5], [6]]}, "bad: duration must be a flat list of whole numbers"),
        ({"duration": [4, 2**63, 6]}, "bad: duration holds 9223372036854775808, too large"),
        ({"duration": [4, MAX_TIME - 9, 6]}, f"all times together are {MAX_TIME + 1}, more than {MAX_TIME}"),
        ({"duration": [2**62, 2**62, 2**62]}, f"all times together are {3 * 2**62}"),
        ({"machine": [0, 2, 1]}, "operation (0, 1) names machine 2; machines are 0 to 1"),
        ({"machine": [0, 1, -1]}, "operation (1, 0) names machine -1; machines are 0 to 1"),
        ({"machine": [0, 1, 2**31]}, "bad: machine holds 2147483648, too large"),
        ({"num_machines": 0}, "num_machines is 0; a shop has 1 to"),
        ({"num_machines": MAX_MACHINES + 1}, f"num_machines is {MAX_MACHINES + 1}"),
        ({"release": [0, -3]}, "job 1 has release time -3; it must not be negative"),
        ({"arrival": [-1, 0]}, "job 0 has arrival time -1; it must not be negative"),
        ({"arrival": [0, 0, 0]}, "3 arrival times for 2 jobs"),
        ({"release": [0, MAX_TIME]}, "all times together are"),
    ],
)
def test_impossible_data_is_refused_with_the_value(changes: dict[str, Any], message: str) -> None:
    Instance(**VALID)
    with pytest.raises(InvalidInstanceError, match=re.escape(message)):
        Instance(**(VALID | changes))


def test_no_jobs_at_all_are_refused() -> None:
    with pytest.raises(InvalidInstanceError, match="name at least one job"):
        Instance.from_routes("empty", [])
    with pytest.raises(InvalidInstanceError, match="job 0 has no operation"):
        Instance.from_routes("hollow", [[]], num_machines=1)
