"""Rules: hand arithmetic, published gaps, caps, randomised runs, and the return of every rule."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.jobshop import library, scenario
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.schedule import Variant, validate
from dispatchgym.solvers.jobshop import rules

# Four jobs that want machine 0 first; (duration, rest of the route on machine 1).
HAND = Instance.from_routes(
    "hand", [[(0, 4), (1, 2)], [(0, 2), (1, 9)], [(0, 3), (1, 1), (1, 1)], [(0, 5), (1, 3)]], release=[0, 0, 0, 0]
)


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        ("spt", [1, 2, 0, 3]),  # durations 4 2 3 5
        ("lpt", [3, 0, 2, 1]),
        ("mwkr", [1, 3, 0, 2]),  # work 6 11 5 8
        ("lwkr", [2, 0, 3, 1]),
        ("mor", [2, 0, 1, 3]),  # operations 2 2 3 2, ties by job number
        ("lor", [0, 1, 3, 2]),
        ("fifo", [0, 1, 2, 3]),  # all ready at 0
        ("lifo", [0, 1, 2, 3]),
        ("lrpt", [1, 3, 0, 2]),  # work after the operation 2 9 2 3, ties by job number
        ("fdd/mwkr", [1, 2, 3, 0]),  # 4/6 2/11 3/5 5/8
    ],
)
def test_a_rule_orders_four_jobs_as_by_hand(rule: str, order: list[int]) -> None:
    batch = ShopBatch.of([HAND], ShopConfig())
    view = rules.view_of(batch)
    assert view.job.tolist() == [0, 1, 2, 3]
    assert np.argsort(-rules.scores(rule, view), kind="stable").tolist() == order


@pytest.mark.parametrize("rule", [r for r in rules.RULES if r != "random"])
def test_a_rollout_is_the_rule_applied_step_by_step(rule: str) -> None:
    for variant in ("jssp", "bws", "bns"):
        instance = library.load("ft06")
        batch = ShopBatch.of([instance], ShopConfig(variant))
        while not batch.over[0]:
            view = rules.view_of(batch)
            batch.step([int(view.job[np.argmax(rules.scores(rule, view))])])
        np.testing.assert_array_equal(
            batch.schedule(0).start, rules.rollout(instance, rule, ShopConfig(variant)).schedule.start
        )


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("variant", ["jssp", "bws", "bns", "isbjssp"])
def test_every_rule_makes_valid_schedules_in_every_shop(rule: str, variant: Variant) -> None:
    instance = library.load("la01")
    shutdowns = scenario.draw(instance, 0.1, 1, "resume") if variant == "isbjssp" else None
    for cap in (None, 0.7):
        run = rules.rollout(instance, rule, ShopConfig(variant), cap=cap, scenario=shutdowns, seed=3)
        validate(run.schedule, instance, variant, shutdowns)
        assert run.decisions >= (instance.num_ops if variant in ("jssp", "bns") else 1)


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("variant", ["jssp", "bws", "bns"])
def test_the_return_of_every_rule_is_the_first_bound_minus_its_makespan(rule: str, variant: Variant) -> None:
    batch = ShopBatch.of([library.load("ft10")], ShopConfig(variant))
    first, total = int(batch.shop.bound[0]), 0.0
    rng = np.random.default_rng(0)
    while not batch.over[0]:
        view = rules.view_of(batch)
        total += float(batch.step([int(view.job[np.argmax(rules.scores(rule, view, rng))])])[0][0])
    assert total == first - batch.makespan[0]


def mean_gap(names: list[str], rule: str, config: ShopConfig, cap: float | None = None) -> float:
    best = [library.best_known(name, config.variant) for name in names]
    makespan = rules.play(ShopBatch.of([library.load(name) for name in names], config), rule, cap=cap)
    return float(np.mean([100 * (m / b.value - 1) for m, b in zip(makespan, best, strict=True) if b is not None]))


@pytest.mark.parametrize(
    ("rule", "published"),
    [("lrpt", 17.1), ("fdd/mwkr", 18.0), ("mwkr", 19.6), ("mor", 19.7), ("fifo", 25.4), ("spt", 27.5)],
)
def test_non_delay_gaps_on_taillard_are_the_published_ones(rule: str, published: float) -> None:
    names = [f"ta{k:02d}" for k in range(1, 81)]
    assert mean_gap(names, rule, ShopConfig()) == pytest.approx(published, abs=0.3)


@pytest.mark.parametrize(("rule", "cap", "measured"), [("spt", None, 54.9), ("mwkr", None, 52.7), ("mwkr", 0.7, 45.8)])
def test_blocking_gaps_on_lawrence_are_the_known_ones(rule: str, cap: float | None, measured: float) -> None:
    names = [f"la{k:02d}" for k in range(1, 41)]
    assert mean_gap(names, rule, ShopConfig("bws"), cap) == pytest.approx(measured, abs=1.5)


def test_a_cap_of_one_job_runs_the_jobs_one_after_another() -> None:
    instance = library.load("ft06")
    run = rules.rollout(instance, "mwkr", ShopConfig("bws"), cap=1 / 6)
    assert run.schedule.makespan == instance.duration.sum()


def test_a_cap_never_lets_more_jobs_into_a_blocking_shop() -> None:
    instance = library.load("la21")
    schedule = rules.rollout(instance, "mwkr", ShopConfig("bws"), cap=0.5).schedule
    entry, gone = schedule.start[instance.job_ptr[:-1]], schedule.end[instance.job_ptr[1:] - 1]
    inside = [int(((entry <= t) & (gone > t)).sum()) for t in entry]
    assert max(inside) == 5


def test_randomised_runs_repeat_for_a_seed_and_their_best_is_no_worse_than_any() -> None:
    instance = library.load("la06")
    batch = ShopBatch.of([instance], ShopConfig("bws"), envs_per_instance=32)
    first = rules.play(batch, "mwkr", noise=0.5, seed=4).copy()
    assert len(set(first.tolist())) > 5
    np.testing.assert_array_equal(first, rules.play(batch, "mwkr", noise=0.5, seed=4))
    assert (first != rules.play(batch, "mwkr", noise=0.5, seed=5)).any()
    assert rules.best_of(instance, "mwkr", 32, ShopConfig("bws"), seed=4).schedule.makespan == first.min()


def test_rules_and_caps_may_differ_between_environments() -> None:
    instance = library.load("la01")
    batch = ShopBatch.of([instance], ShopConfig("bws"), envs_per_instance=3)
    mixed = rules.play(batch, ["spt", "mwkr", "mwkr"], cap=[None, None, 0.6])
    single = [("spt", None), ("mwkr", None), ("mwkr", 0.6)]
    assert mixed.tolist() == [
        rules.rollout(instance, rule, ShopConfig("bws"), cap=cap).schedule.makespan for rule, cap in single
    ]


def test_bad_requests_say_what_is_wrong() -> None:
    instance = library.load("ft06")
    with pytest.raises(UnknownNameError, match="rule 'mwrk' is not known; did you mean 'mwkr'"):
        rules.rollout(instance, "mwrk")
    with pytest.raises(UsageError, match="cap is 0"):
        rules.rollout(instance, "spt", cap=0)
    with pytest.raises(UsageError, match="noise is -1"):
        rules.rollout(instance, "spt", noise=-1)
    with pytest.raises(UsageError, match="runs is 0"):
        rules.best_of(instance, "spt", 0)
    with pytest.raises(UsageError, match="pass rng"):
        rules.scores("random", rules.view_of(ShopBatch.of([instance], ShopConfig())))
