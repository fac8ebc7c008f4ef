"""The compiled core against the slow simulator, the validator and hand arithmetic."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from dispatchgym.envs.api import InvalidActionError, InvalidInstanceError, UsageError
from dispatchgym.envs.jobshop import library, scenario
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant, validate
from dispatchgym.envs.jobshop.state import Capacity
from tests.envs.jobshop.simulate import simulate

VARIANTS: tuple[Variant, ...] = ("jssp", "bws", "bns", "isbjssp")


def odd_instance(rng: np.random.Generator) -> Instance:
    """Unequal job lengths, machines visited twice (also in a row), releases and arrivals."""
    machines = int(rng.integers(1, 5))
    routes = [
        [(int(rng.integers(machines)), int(rng.integers(1, 12))) for _ in range(rng.integers(1, 7))]
        for _ in range(rng.integers(1, 6))
    ]
    late = rng.integers(0, 30, (2, len(routes))) * rng.integers(0, 2, (2, len(routes)))
    late[0] *= late[1] == 0  # an arrival before the release is an event to the kernel, not to the simulator
    return Instance.from_routes("odd", routes, machines, late[0].tolist(), late[1].tolist())


def one_shop(instance: Instance, config: ShopConfig, shutdowns: Scenario | None = None) -> ShopBatch:
    return ShopBatch.of([instance], config, scenarios=None if shutdowns is None else [shutdowns])


def play_randomly(batch: ShopBatch, rng: np.random.Generator) -> tuple[float, deque[tuple[int, list[int], int]]]:
    """(return, log of (time, legal jobs, action)) of one random episode of environment 0."""
    total, log = 0.0, deque()
    while not batch.over[0]:
        legal = np.flatnonzero(batch.mask[0])
        action = int(rng.choice(legal))
        log.append((int(batch.shop.now[0]), [int(a) for a in legal if a != batch.wait_action], action))
        total += float(batch.step([action])[0][0])
    return total, log


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("on_interrupt", ["resume", "restart"])
def test_every_random_episode_validates_and_returns_the_bound_minus_the_makespan(
    variant: Variant, on_interrupt: scenario.OnInterrupt
) -> None:
    rng = np.random.default_rng(1)
    for seed in range(60):
        instance = odd_instance(rng)
        builder = ("non-delay", "hybrid", "active")[seed % 3] if variant == "jssp" else "non-delay"
        config = ShopConfig(variant, builder, 0.5 if builder == "hybrid" else None, on_interrupt)
        shutdowns = scenario.draw(instance, 0.2, seed, on_interrupt) if variant == "isbjssp" else None
        batch = one_shop(instance, config, shutdowns)
        bound = int(batch.shop.bound[0])
        total, _ = play_randomly(batch, rng)
        schedule = batch.schedule(0)
        validate(schedule, instance, variant, shutdowns)
        assert total == bound - schedule.makespan
        assert batch.makespan[0] == schedule.makespan == batch.shop.bound[0]


@pytest.mark.parametrize("variant", ["bws", "isbjssp"])
@pytest.mark.parametrize("on_interrupt", ["resume", "restart"])
def test_the_slow_simulator_is_offered_the_same_jobs_and_makes_the_same_schedule(
    variant: Variant, on_interrupt: scenario.OnInterrupt
) -> None:
    rng = np.random.default_rng(2)
    for seed in range(60):
        instance = odd_instance(rng)
        shutdowns = scenario.draw(instance, 0.15, seed, on_interrupt) if variant == "isbjssp" else None
        batch = one_shop(instance, ShopConfig(variant, on_interrupt=on_interrupt), shutdowns)
        _, log = play_randomly(batch, rng)

        def follow(
            candidates: list[int], time: int, log: deque[tuple[int, list[int], int]] = log, batch: ShopBatch = batch
        ) -> int | None:
            when, legal, action = log.popleft()
            assert (time, candidates) == (when, legal)
            return None if action == batch.wait_action else action

        expected = simulate(instance, variant, follow, shutdowns)
        assert not log
        for column in ("start", "end", "leave"):
            np.testing.assert_array_equal(getattr(batch.schedule(0), column), getattr(expected, column))


def test_without_swaps_no_random_episode_deadlocks() -> None:
    rng = np.random.default_rng(3)
    for _ in range(150):
        batch = one_shop(odd_instance(rng), ShopConfig("bns"))
        play_randomly(batch, rng)
        assert not batch.shop.dead[0]


def test_without_the_safety_check_the_same_shop_would_deadlock() -> None:
    facing = Instance.from_routes("facing", [[(0, 5), (1, 5)], [(1, 5), (0, 5)]])
    batch = one_shop(facing, ShopConfig("bns"))
    batch.step([0])  # job 1 on machine 1 would now face it for ever, so time has run on
    assert (batch.shop.now[0], batch.mask[0].tolist()) == (5, [1, 0, 0])
    while not batch.over[0]:
        batch.step([int(np.flatnonzero(batch.mask[0])[0])])
    assert (batch.shop.dead[0], batch.makespan[0]) == (0, 20)


def test_with_swaps_facing_jobs_exchange_their_machines_at_one_instant() -> None:
    facing = Instance.from_routes("facing", [[(0, 5), (1, 5)], [(1, 5), (0, 5)]])
    batch = one_shop(facing, ShopConfig("bws"))
    for action in (0, 1, 0):
        batch.step([action])
    schedule = batch.schedule(0)
    assert schedule.start.tolist() == [0, 5, 0, 5]
    assert schedule.makespan == 10


@pytest.mark.parametrize(("on_interrupt", "makespan"), [("resume", 13), ("restart", 19)])
def test_an_interrupted_operation_resumes_or_restarts(on_interrupt: scenario.OnInterrupt, makespan: int) -> None:
    single = Instance.from_routes("single", [[(0, 10)]])
    shutdowns = Scenario(np.array([0, 1]), np.array([6]), np.array([9]), on_interrupt)
    batch = one_shop(single, ShopConfig("isbjssp", on_interrupt=on_interrupt), shutdowns)
    batch.step([0])
    assert batch.makespan[0] == makespan  # 6 done, 3 down, then 4 or all 10 again


def test_what_is_observed_of_a_down_machine_does_not_tell_when_it_is_repaired() -> None:
    pair = Instance.from_routes("pair", [[(0, 10), (1, 1)], [(1, 1), (1, 30), (0, 1)]])
    short, long = (Scenario(np.array([0, 1, 1]), np.array([4]), np.array([end]), "resume") for end in (6, 9))
    seen = []
    for shutdowns in (short, long):
        batch = one_shop(pair, ShopConfig("isbjssp"), shutdowns)
        batch.step([0])
        while batch.shop.now[0] < 4:
            batch.step([batch.wait_action])
        assert batch.shop.now[0] == 4
        seen.append(batch.observe())
    for name in seen[0].x:
        np.testing.assert_array_equal(seen[0].x[name], seen[1].x[name])
    assert seen[0].x["machine"][:, 8].sum() == 1  # and one machine is seen to be down


def test_a_job_that_has_not_arrived_is_not_observed() -> None:
    early = Instance.from_routes("early", [[(0, 5), (1, 5)], [(0, 3)]], arrival=[0, 4])
    batch = ShopBatch.of([early], ShopConfig("jssp"))
    assert batch.observe().ptr["job"].tolist() == [0, 1]
    batch.step([0])
    assert batch.observe().ptr["job"].tolist() == [0, 2]  # time has run to 5
    assert batch.shop.bound[0] == 10


@pytest.mark.parametrize(
    ("builder", "delta", "legal"), [("non-delay", None, [0]), ("hybrid", 0.5, [0, 1]), ("active", None, [0, 1, 2])]
)
def test_the_builder_decides_who_may_start(builder: str, delta: float | None, legal: list[int]) -> None:
    # Earliest starts 0, 4, 9 on one machine; the earliest completion is 10, so delta 0.5 admits starts below 5.
    queue = Instance.from_routes("queue", [[(0, 10)], [(0, 10)], [(0, 10)]], release=[0, 4, 9])
    batch = ShopBatch.of([queue], ShopConfig("jssp", builder, delta))  # type: ignore[arg-type]
    assert np.flatnonzero(batch.mask[0]).tolist() == legal


def test_a_batch_steps_each_environment_as_it_would_alone() -> None:
    rng = np.random.default_rng(5)
    instances = [odd_instance(rng) for _ in range(8)]
    for variant in ("jssp", "bws", "bns"):
        together = ShopBatch.of(instances, ShopConfig(variant))
        alone = [ShopBatch.of([instance], ShopConfig(variant)) for instance in instances]
        while not together.over.all():
            actions = [int(rng.choice(np.flatnonzero(m))) if m.any() else 0 for m in together.mask]
            reward, over = together.step(actions)
            for i, single in enumerate(alone):
                own = single.wait_action if actions[i] == together.wait_action else actions[i]
                assert single.step([own])[0][0] == reward[i]
                assert single.over[0] == over[i]
        for i, single in enumerate(alone):
            np.testing.assert_array_equal(together.schedule(i).start, single.schedule(0).start)


def test_an_illegal_action_moves_nobody_and_names_the_legal_ones() -> None:
    batch = ShopBatch.of([library.load("ft06")] * 2, ShopConfig("bws"))
    before = batch.shop.next_op.copy()
    with pytest.raises(InvalidActionError, match=r"action 99 in environment 1 is not legal now; legal are: 0, 1, 2, 3"):
        batch.step([0, 99])
    np.testing.assert_array_equal(batch.shop.next_op, before)


def test_only_flagged_environments_are_reset() -> None:
    batch = ShopBatch.of([library.load("ft06")] * 2, ShopConfig())
    batch.step([2, 2])
    batch.reset([1, 0])
    assert batch.shop.decisions.tolist() == [0, 1]


def test_a_slot_can_hold_another_instance_for_the_next_episode() -> None:
    batch = ShopBatch(2, Capacity(20, 15, 300), ShopConfig(), envs_per_instance=2)
    for name in ("ft06", "la21"):
        batch.load([0], [library.load(name)])
        batch.reset()
        while not batch.over.all():
            batch.step(batch.mask.argmax(axis=1))
        for i in range(2):
            validate(batch.schedule(i), library.load(name), "jssp")


def test_what_does_not_fit_or_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInstanceError, match="does not fit the room for 5 jobs"):
        ShopBatch(1, Capacity(5, 5, 25), ShopConfig()).load([0], [library.load("ft06")])
    zero = Instance.from_routes("zero", [[(0, 0)]])
    with pytest.raises(InvalidInstanceError, match=r"operation \(0, 0\) has duration 0"):
        ShopBatch.of([zero], ShopConfig("bws"))
    with pytest.raises(UsageError, match="call load"):
        ShopBatch(1, Capacity(5, 5, 25), ShopConfig()).reset()
    with pytest.raises(UsageError, match="has no complete schedule"):
        ShopBatch.of([library.load("ft06")], ShopConfig()).schedule(0)
    with pytest.raises(UsageError, match="has no shutdowns"):
        one_shop(library.load("ft06"), ShopConfig("bws"), scenario.no_shutdowns(6))
    with pytest.raises(UsageError, match="the scenario has 5 machines"):
        one_shop(library.load("ft06"), ShopConfig("isbjssp"), scenario.no_shutdowns(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "fjsp"}, "variant is 'fjsp'"),
        ({"builder": "eager"}, "builder is 'eager'"),
        ({"builder": "hybrid"}, "needs delta between 0 and 1"),
        ({"builder": "hybrid", "delta": 1.5}, "got 1.5"),
        ({"delta": 0.5}, "use builder 'hybrid'"),
        ({"variant": "bws", "builder": "active"}, "classic shop only"),
        ({"on_interrupt": "explode"}, "on_interrupt is 'explode'"),
    ],
)
def test_a_shop_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ShopConfig(**arguments)  # type: ignore[arg-type]


def test_zero_durations_are_fine_in_the_classic_shop() -> None:
    instance = Instance.from_routes("zeros", [[(0, 0), (1, 3)], [(1, 0), (0, 0)]])
    batch = ShopBatch.of([instance], ShopConfig("jssp", "active"))
    play_randomly(batch, np.random.default_rng(0))
    schedule: Schedule = batch.schedule(0)
    validate(schedule, instance, "jssp")
    assert schedule.makespan == 3
