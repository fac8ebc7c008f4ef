"""Look-ahead: columns against a replay from the start, what the copy may know, and schedules of the pilot method."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.envs.api import UnknownNameError
from dispatchgym.envs.jobshop import library, scenario
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.graph import PILOT
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.pilot import BLOCKING, CLASSIC
from dispatchgym.envs.jobshop.priority import RULES
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Variant, validate
from dispatchgym.solvers.jobshop import pilot, rules

JOB = [f.name for f in PILOT.node("job").features]
SHOP = [f.name for f in PILOT.node("shop").features]


def small(seed: int = 0) -> Instance:
    return random_instance(np.random.default_rng(seed), 5, 4)


def rule_action(batch: ShopBatch, rule: str, cap: float | None) -> int:
    """What a capped rule does, written anew: admits nobody to a full shop if it can do anything else."""
    view = rules.view_of(batch)
    instance = batch.instances[0]
    assert instance is not None
    keep = np.ones(len(view.job), bool)
    if cap is not None and batch.shop.in_shop[0] >= max(1, int(cap * instance.num_machines + 0.5)):
        inside = batch.shop.next_op[0, view.job] > instance.job_ptr[view.job]
        if inside.any():
            keep = inside
        elif batch.mask[0, batch.wait_action]:
            return batch.wait_action
    score = np.where(keep, rules.scores(rule, view), -np.inf)
    return int(view.job[score.argmax()])


def replayed(instance: Instance, config: ShopConfig, actions: list[int], rule: str, cap: float | None) -> int:
    """Makespan of `actions` from the start, then the rule; the classic shop goes on without delays."""
    batch = ShopBatch.of([instance], config)
    for action in actions:
        batch.step([action])
    while not batch.over[0]:
        batch.step([rule_action(batch, rule, cap)])
    return int(batch.makespan[0])


@pytest.mark.parametrize("variant", ["jssp", "bws", "bns"])
def test_every_column_is_what_a_replay_from_the_start_gives(variant: Variant) -> None:
    config, rng = ShopConfig(variant), np.random.default_rng(3)
    playing = BLOCKING if config.is_blocking else CLASSIC
    checked = waits = 0
    for seed in range(4):
        instance = small(seed)
        batch = ShopBatch.of([instance], config, "pilot")
        past: list[int] = []
        while not batch.over[0]:
            legal = np.flatnonzero(batch.mask[0])
            seen = batch.observe()
            if len(legal) > 1:
                found = {
                    int(a): [replayed(instance, config, [*past, int(a)], RULES[code], cap) for code, cap in playing]
                    for a in legal
                }
                best = min(min(row) for row in found.values())
                scale, bound = instance.mean_duration, int(batch.shop.bound[0])
                for node, action in zip(seen.candidate, seen.action, strict=True):
                    row = found[int(action)]
                    behind = [(value - best) / scale for value in row]
                    if node < 0:
                        x = dict(zip(SHOP, seen.x["shop"][0], strict=True))
                        jobs = min(min(r) for a, r in found.items() if a != batch.wait_action)
                        assert x["wait_lead"] == pytest.approx((jobs - min(row)) / scale, abs=1e-5)
                        assert [x[f"wait_behind_{k}"] for k in (1, 2, 3)] == pytest.approx(behind, abs=1e-5)
                        waits += 1
                    else:
                        x = dict(zip(JOB, seen.x["job"][node], strict=True))
                        assert [x[f"behind_{k}"] for k in (1, 2, 3)] == pytest.approx(behind, abs=1e-5)
                        assert x["behind"] == pytest.approx(min(behind), abs=1e-5)
                        assert x["pilot"] == pytest.approx((min(row) - bound) / scale, abs=1e-5)
                    checked += 1
            past.append(int(rng.choice(legal)))
            batch.step([past[-1]])
    assert checked > 50
    assert (waits > 10) == config.is_blocking


def ahead_of(batch: ShopBatch) -> list[float]:
    seen = batch.observe()
    return [*seen.x["job"][:, JOB.index("pilot") :].ravel(), *seen.x["shop"][0, SHOP.index("pilot") :]]


def test_the_copy_knows_no_shutdown_to_come_and_no_time_of_repair() -> None:
    instance = small(1)

    def started(windows: list[tuple[int, int]]) -> ShopBatch:
        """Machine 0 has these shutdowns."""
        times = np.array(windows, np.int64).reshape(-1, 2)
        ptr = np.array([0, len(windows), len(windows), len(windows), len(windows)], np.int32)
        shutdowns = Scenario(ptr, times[:, 0], times[:, 1], "resume")
        return ShopBatch.of([instance], ShopConfig("isbjssp"), "pilot", [shutdowns])

    quiet, late, early = started([]), started([(400, 500)]), started([(9, 30)])
    longer = started([(9, 300)])
    compared = 0
    while quiet.shop.now[0] < 9:
        assert ahead_of(quiet) == ahead_of(late) == ahead_of(early) == ahead_of(longer)
        compared += sum(quiet.mask[0]) > 1
        action = int(np.flatnonzero(quiet.mask[0])[0])
        for batch in (quiet, late, early, longer):
            batch.step([action])
    while early.shop.now[0] < 30 and not early.over[0]:
        assert ahead_of(early) == ahead_of(longer)
        compared += sum(early.mask[0]) > 1
        action = int(np.flatnonzero(early.mask[0])[-1])
        for batch in (early, longer):
            batch.step([action])
    assert compared > 2


def test_the_copy_knows_no_job_that_has_not_arrived() -> None:
    routes = [[(0, 5), (1, 4)], [(1, 3), (0, 6)], [(0, 2), (1, 2)]]

    def shop(last: list[tuple[int, int]]) -> ShopBatch:
        instance = Instance.from_routes("late", [*routes, last], arrival=[0, 0, 0, 50])
        return ShopBatch.of([instance], ShopConfig("bws"), "pilot")

    # the same mean duration, which everything is measured in
    one, other = shop([(0, 1), (1, 9)]), shop([(1, 9), (0, 1)])
    while one.shop.now[0] < 50 and one.shop.hidden[0]:
        assert ahead_of(one) == ahead_of(other)
        action = int(np.flatnonzero(one.mask[0])[0])
        one.step([action])
        other.step([action])


def test_observing_changes_nothing() -> None:
    for variant in ("jssp", "bws"):
        plain, ahead = (ShopBatch.of([small(2)], ShopConfig(variant), graph) for graph in ("jobs", "pilot"))
        while not plain.over[0]:
            ahead.observe()
            action = int(np.flatnonzero(plain.mask[0])[-1])
            assert plain.step([action])[0] == ahead.step([action])[0]
            np.testing.assert_array_equal(plain.mask, ahead.mask)


@pytest.mark.parametrize("rule", ["lrpt", "spt", "fdd/mwkr"])
def test_with_one_rule_the_pilot_is_never_worse_than_the_rule_itself(rule: str) -> None:
    for name in ("ft06", "la01", "la06", "ft10"):
        instance = library.load(name)
        found = pilot.rollout(instance, rules=[(rule, None)])
        validate(found.schedule, instance, "jssp")
        assert found.schedule.makespan <= rules.rollout(instance, rule).schedule.makespan


@pytest.mark.parametrize("variant", ["jssp", "bws", "bns", "isbjssp"])
def test_schedules_are_valid_in_every_shop(variant: Variant) -> None:
    instance = library.load("la01")
    shutdowns = scenario.draw(instance, 0.1, 1, "resume") if variant == "isbjssp" else None
    found = pilot.rollout(instance, ShopConfig(variant), scenario=shutdowns)
    validate(found.schedule, instance, variant, shutdowns)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(UnknownNameError, match="lrpr"):
        pilot.rollout(small(), rules=[("lrpr", None)])
