"""Shutdowns are the same for every policy, and seeds come from names."""

from __future__ import annotations

from dispatchgym.agents.evaluation.problem import derived_seed
from dispatchgym.envs.jobshop import library
from tests.agents.evaluation.examples import problem


def test_only_shutdowns_make_a_scenario() -> None:
    assert problem().scenario(3) is None
    assert problem().scenario_name(3) is None
    calm = problem(variant="isbjssp")
    assert calm.scenario_name(3) == "p=0,resume"
    assert not calm.has_shutdowns
    scenario = calm.scenario(3)
    assert scenario is not None
    assert scenario.downtime() == []


def test_a_seed_names_the_same_shutdowns_every_time_and_other_seeds_others() -> None:
    la01 = library.load("la01")
    shop = problem(la01, variant="isbjssp", shutdown_probability=0.1, on_interrupt="restart")
    drawn = [shop.scenario(seed) for seed in (0, 0, 1)]
    windows = [each.downtime() for each in drawn if each is not None]
    assert windows[0] == windows[1] != windows[2]
    assert drawn[0] is not None
    assert drawn[0].on_interrupt == "restart"
    assert shop.scenario_name(0) == "p=0.1,restart,seed=0"


def test_derived_seeds_depend_on_names_alone() -> None:
    # printf 'scenario|x|0' | sha256sum begins with 39561e12; half of that fits every solver.
    assert derived_seed("scenario", "x", "0") == 0x39561E12 // 2
    assert len({derived_seed("policy", name, str(seed)) for name in "abc" for seed in range(100)}) == 300
    assert all(0 <= derived_seed("policy", str(k)) < 2**31 for k in range(200))
