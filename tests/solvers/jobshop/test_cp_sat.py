"""CP-SAT: hand arithmetic, brute force, proven optima, hints, limits, interruption, runs taken up midway."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model

from dispatchgym.envs.api import InvalidInstanceError, InvalidScheduleError, UnknownNameError, UsageError
from dispatchgym.envs.jobshop import library, scenario
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.instance import MAX_TIME, Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario, no_shutdowns
from dispatchgym.envs.jobshop.schedule import Schedule, Variant, validate
from dispatchgym.solvers.jobshop import rules
from dispatchgym.solvers.jobshop.cp_sat import solve
from dispatchgym.solvers.jobshop.model import MOST_CLASSIC_PAIRS, build_model
from dispatchgym.solvers.jobshop.outlook import Progress
from dispatchgym.solvers.jobshop.solution import Incumbent
from tests.envs.jobshop.strategies import instances, scenarios
from tests.solvers.jobshop.brute_force import least_makespan, num_orders

VARIANTS: tuple[Variant, ...] = ("jssp", "bws", "bns", "isbjssp")

CROSSING = Instance.from_routes("crossing", [[(0, 3), (1, 3)], [(1, 3), (0, 3)]])


def shutdowns(instance: Instance, mode: OnInterrupt = "resume", seed: int = 0) -> Scenario:
    return scenario.draw(instance, 0.2, seed, mode)


def by_rule(instance: Instance, variant: Variant, downtime: Scenario | None = None, rule: str = "mwkr") -> Schedule:
    mode: OnInterrupt = downtime.on_interrupt if downtime else "resume"
    return rules.rollout(instance, rule, ShopConfig(variant, on_interrupt=mode), scenario=downtime).schedule


@pytest.mark.parametrize(("variant", "least"), [("jssp", 6), ("bws", 6), ("bns", 12)])
def test_two_jobs_that_cross_exchange_machines_only_where_swaps_are_allowed(variant: Variant, least: int) -> None:
    # Without swaps neither may enter before the other is through with both machines.
    solution = solve(CROSSING, variant=variant)
    assert (solution.status, solution.objective, solution.bound) == ("optimal", least, least)


@pytest.mark.parametrize(
    ("mode", "windows", "least"),
    [
        ("resume", {0: [(1, 2)]}, 7),  # machine 0 loses one unit; job 1 on machine 1 waits to swap until 4
        ("restart", {0: [(1, 2)]}, 8),  # starting at 2 is as good as starting at 0 and again at 2
        ("resume", {0: [(3, 5)]}, 8),  # done at 3, but the swap waits for the repair
        ("resume", {0: [(6, 9)]}, 6),  # the last operation ends as the shutdown begins, and leaves
        ("restart", {0: [(5, 6)], 1: [(5, 6)]}, 9),  # swap at 3 and both start anew at 6; or swap at 6
    ],
)
def test_crossing_jobs_under_shutdowns_as_by_hand(
    mode: OnInterrupt, windows: dict[int, list[tuple[int, int]]], least: int
) -> None:
    rows = [{"machine": m, "from": down, "to": up} for m, spans in windows.items() for down, up in spans]
    solution = solve(CROSSING, variant="isbjssp", scenario=Scenario.from_downtime(2, rows, mode))
    assert (solution.status, solution.objective) == ("optimal", least)


@settings(max_examples=50)
@given(instance=instances(min_duration=0, max_jobs=3, max_machines=3))
def test_classic_optimum_is_the_best_of_all_orders(instance: Instance) -> None:
    assume(num_orders(instance) <= 300)
    solution = solve(instance)
    assert (solution.status, solution.objective) == ("optimal", least_makespan(instance, "jssp"))


@settings(max_examples=50)
@given(instance=instances(max_jobs=3, max_machines=3))
@pytest.mark.parametrize("variant", ["bws", "bns"])
def test_blocking_optimum_is_the_best_of_all_orders(variant: Variant, instance: Instance) -> None:
    assume(num_orders(instance) <= 300)
    solution = solve(instance, variant=variant)
    assert (solution.status, solution.objective) == ("optimal", least_makespan(instance, variant))


@settings(max_examples=100)
@given(data=st.data(), instance=instances(max_jobs=3, max_machines=3))
def test_clairvoyant_optimum_is_the_best_of_all_orders(data: st.DataObject, instance: Instance) -> None:
    assume(num_orders(instance) <= 300)
    downtime = data.draw(scenarios(instance.num_machines))
    solution = solve(instance, variant="isbjssp", scenario=downtime)
    assert (solution.status, solution.objective) == ("optimal", least_makespan(instance, "isbjssp", downtime))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_three_jobs_on_three_machines_are_solved_as_by_brute_force(variant: Variant, seed: int) -> None:
    instance = random_instance(np.random.default_rng(seed), 3, 3, durations=(1, 6), release_spread=0.3)
    downtime = shutdowns(instance, "restart" if seed % 2 else "resume", seed) if variant == "isbjssp" else None
    solution = solve(instance, variant=variant, scenario=downtime)
    assert (solution.status, solution.objective) == ("optimal", least_makespan(instance, variant, downtime))


@pytest.mark.parametrize(
    ("name", "variant"),
    [("ft06", "jssp"), ("la05", "jssp"), ("ft06", "bws"), ("la01", "bws"), ("ft06", "bns"), ("la01", "bns")],
)
def test_small_classics_are_proven(name: str, variant: Variant) -> None:
    known = library.best_known(name, variant)
    assert known is not None
    solution = solve(library.load(name), variant=variant, deterministic_limit=20)
    assert (solution.status, solution.objective, known.kind) == ("optimal", known.value, "optimum")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [("ft10", "jssp"), *((f"la0{k}", variant) for k in range(1, 6) for variant in ("bws", "bns"))],
)
def test_larger_classics_are_proven(name: str, variant: Variant) -> None:
    known = library.best_known(name, variant)
    assert known is not None
    solution = solve(library.load(name), variant=variant, deterministic_limit=100)
    assert (solution.status, solution.objective, known.kind) == ("optimal", known.value, "optimum")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["jssp", "bws"])
def test_an_independent_model_agrees(variant: Variant) -> None:
    pyjobshop = pytest.importorskip("pyjobshop", reason="PyJobShop is not installed")
    for name in ("ft06", "la01"):
        instance = library.load(name)
        model = pyjobshop.Model()
        machines = [model.add_machine() for _ in range(instance.num_machines)]
        tasks = [model.add_task(allow_idle=variant == "bws") for _ in range(instance.num_ops)]
        for op, task in enumerate(tasks):
            model.add_mode(task, machines[instance.machine[op]], int(instance.duration[op]))
            if op + 1 in instance.job_ptr:
                continue
            (model.add_end_at_start if variant == "bws" else model.add_end_before_start)(task, tasks[op + 1])
        theirs = model.solve(solver="ortools", display=False, num_workers=1)
        ours = solve(instance, variant=variant)
        # In their blocking model a job may also stay on its last machine, which changes no makespan.
        assert theirs.status.value == "Optimal"
        assert theirs.objective == ours.objective


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["resume", "restart"])
def test_a_hint_gives_every_variable_a_value_that_meets_the_model(variant: Variant, mode: OnInterrupt) -> None:
    instance = library.load("la06")
    downtime = shutdowns(instance, mode) if variant == "isbjssp" else None
    hint = by_rule(instance, variant, downtime)
    model = build_model(instance, variant, downtime, horizon=hint.makespan)
    model.add_hint(hint, instance)
    assert len(model.cp.proto.solution_hint.vars) == len(model.cp.proto.variables)
    solver = cp_model.CpSolver()
    solver.parameters.fix_variables_to_their_hinted_value = True
    assert solver.solve(model.cp) == cp_model.OPTIMAL
    assert solver.objective_value == hint.makespan
    np.testing.assert_array_equal(model.starts(solver.value), hint.start)


@given(data=st.data(), instance=instances(max_jobs=3), rule=st.sampled_from(rules.RULES))
@settings(max_examples=100)
def test_a_hint_is_complete_for_re_entrant_jobs_too(data: st.DataObject, instance: Instance, rule: str) -> None:
    variant = data.draw(st.sampled_from(VARIANTS))
    downtime = data.draw(scenarios(instance.num_machines)) if variant == "isbjssp" else None
    hint = by_rule(instance, variant, downtime, rule)
    model = build_model(instance, variant, downtime, horizon=hint.makespan)
    model.add_hint(hint, instance)
    solver = cp_model.CpSolver()
    solver.parameters.fix_variables_to_their_hinted_value = True
    assert solver.solve(model.cp) == cp_model.OPTIMAL
    np.testing.assert_array_equal(model.starts(solver.value), hint.start)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_any_time_the_answer_is_the_hint(variant: Variant) -> None:
    instance = library.load("la06")
    downtime = shutdowns(instance) if variant == "isbjssp" else None
    hint = by_rule(instance, variant, downtime, "spt")
    solution = solve(instance, variant=variant, scenario=downtime, deterministic_limit=0, hint=hint)
    assert (solution.status, solution.objective) == ("feasible", hint.makespan)
    assert solution.bound < hint.makespan
    assert solution.history[0].objective == hint.makespan


def test_where_there_are_shutdowns_the_search_starts_from_a_rule() -> None:
    instance = library.load("la36")
    solution = solve(instance, variant="isbjssp", scenario=shutdowns(instance), deterministic_limit=0)
    assert solution.objective == by_rule(instance, "isbjssp", shutdowns(instance)).makespan


def test_a_rule_s_schedule_that_meets_the_bound_is_optimal_without_a_search() -> None:
    # A machine with ten units of work that is down for three: nothing ends before 13, whatever the order.
    instance = Instance.from_routes("one", [[(0, 5)], [(0, 5)]])
    downtime = Scenario.from_downtime(1, [{"machine": 0, "from": 3, "to": 6}])
    solution = solve(instance, variant="isbjssp", scenario=downtime, deterministic_limit=0)
    assert (solution.status, solution.objective, solution.bound) == ("optimal", 13, 13)


def test_without_any_time_or_hint_the_answer_is_unknown_with_a_bound() -> None:
    instance = library.load("la06")
    solution = solve(instance, variant="bws", deterministic_limit=0)
    assert (solution.status, solution.objective, solution.schedule) == ("unknown", None, None)
    assert solution.bound == 926  # the load of the busiest machine with its shortest head and tail
    assert solution.history == ()


def test_a_large_classic_shop_does_without_booleans_and_still_takes_hints() -> None:
    instance = library.load("ta31")  # 30x15: 6,525 pairs
    hint = by_rule(instance, "jssp", rule="lrpt")
    model = build_model(instance, "jssp", horizon=hint.makespan)
    assert not model.before
    assert MOST_CLASSIC_PAIRS < 15 * 30 * 29 // 2
    solution = solve(instance, deterministic_limit=0.05, hint=hint)
    assert solution.objective is not None
    assert solution.objective <= hint.makespan


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_worker_and_a_deterministic_limit_give_the_same_run_twice(variant: Variant) -> None:
    instance = library.load("la01")
    downtime = shutdowns(instance, "restart") if variant == "isbjssp" else None
    hint = by_rule(instance, variant, downtime, "spt")
    first, second = (
        solve(instance, variant=variant, scenario=downtime, deterministic_limit=0.1, seed=3, hint=hint)
        for _ in range(2)
    )
    assert first.schedule is not None
    assert second.schedule is not None
    np.testing.assert_array_equal(first.schedule.start, second.schedule.start)
    assert [(i.objective, i.bound) for i in first.history] == [(i.objective, i.bound) for i in second.history]


def test_history_only_improves_and_is_told_as_it_happens() -> None:
    told: list[Incumbent] = []
    solution = solve(library.load("la01"), variant="bws", deterministic_limit=0.3, on_incumbent=told.append)
    history = solution.history
    assert history[: len(told)] == tuple(told)
    assert len(history) > 3
    for before, after in pairwise(history):
        assert before.wall_s <= after.wall_s
        assert before.bound <= after.bound
        assert before.objective is None or (after.objective is not None and after.objective <= before.objective)
        assert (before.objective, before.bound) != (after.objective, after.bound)
    assert (history[-1].objective, history[-1].bound) == (solution.objective, solution.bound)
    assert history[-1].wall_s <= solution.wall_s


def test_an_error_in_the_callback_ends_the_search_and_is_raised() -> None:
    def fail(_: Incumbent) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        solve(library.load("la36"), variant="bws", on_incumbent=fail)  # would run for hours
    assert "cp-sat" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: a test runner's worker process ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_ctrl_c_stops_the_search_at_once() -> None:
    told: list[Incumbent] = []

    def press(incumbent: Incumbent) -> None:
        told.append(incumbent)
        if len(told) == 1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        solve(library.load("la36"), variant="bws", on_incumbent=press)  # would run for hours
    assert "cp-sat" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("mode", ["resume", "restart"])
def test_a_run_taken_up_midway_ends_as_well_as_its_plan(mode: OnInterrupt) -> None:
    instance = library.load("ft06")
    downtime = shutdowns(instance, mode, seed=2)
    plan = solve(instance, variant="isbjssp", scenario=downtime)
    assert plan.status == "optimal"
    assert plan.schedule is not None
    for now in (1, 17, 40):
        began = np.where(plan.schedule.start <= now, plan.schedule.start, -1)
        assert (began >= 0).any()
        rest = solve(instance, variant="isbjssp", scenario=downtime, progress=Progress(now, began))
        assert (rest.status, rest.objective) == ("optimal", plan.objective)
        assert rest.schedule is not None
        np.testing.assert_array_equal(rest.schedule.start[began >= 0], began[began >= 0])
        assert (rest.schedule.start[began < 0] >= now).all()


@pytest.mark.parametrize("variant", ["jssp", "bws"])
def test_a_bad_beginning_cannot_be_undone(variant: Variant) -> None:
    # Job 0 took machine 0 first, although job 1 has the long way to go from there.
    instance = Instance.from_routes("late", [[(0, 5)], [(0, 1), (1, 9)]])
    assert solve(instance, variant=variant).objective == 10
    solution = solve(instance, variant=variant, progress=Progress(2, np.array([0, -1, -1])))
    assert (solution.status, solution.objective) == ("optimal", 15)


def test_a_hint_must_go_on_from_the_progress() -> None:
    hint = by_rule(CROSSING, "bws")
    with pytest.raises(InvalidScheduleError, match=r"operation \(0, 0\) starts at 0, but had not begun by 1"):
        solve(CROSSING, variant="bws", hint=hint, progress=Progress(1, np.full(4, -1)))


def test_a_hint_that_is_no_schedule_of_the_problem_is_refused() -> None:
    classic = by_rule(library.load("la06"), "jssp")
    with pytest.raises(InvalidScheduleError):
        solve(library.load("la06"), variant="bws", hint=classic)


def test_every_schedule_is_valid_and_no_better_than_the_bound() -> None:
    instance = library.load("ft06")
    for variant in VARIANTS:
        downtime = shutdowns(instance) if variant == "isbjssp" else None
        solution = solve(instance, variant=variant, scenario=downtime, deterministic_limit=0.1)
        assert solution.schedule is not None
        validate(solution.schedule, instance, variant, downtime)
        assert solution.objective == solution.schedule.makespan >= solution.bound
        assert solution.version.startswith("ortools ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"time_limit": -1.0}, "time limit is -1.0"),
        ({"deterministic_limit": float("nan")}, "deterministic limit is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**31}, "seed is 2147483648"),
        ({"variant": "jssp", "scenario": scenario.draw(CROSSING, 0.5, 0)}, "knows no shutdowns"),
        ({"variant": "isbjssp", "scenario": no_shutdowns(3)}, "the scenario has 3 machines"),
        ({"variant": "bns", "progress": Progress(1, np.full(4, -1))}, "taken up midway"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        solve(CROSSING, **arguments)  # type: ignore[arg-type]


def test_an_unknown_variant_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'jssp'"):
        solve(CROSSING, variant="jsspp")  # type: ignore[arg-type]


def test_no_time_at_all_is_no_duration_in_a_blocking_shop() -> None:
    instance = Instance.from_routes("zero", [[(0, 0), (1, 2)]])
    assert solve(instance).objective == 2
    with pytest.raises(InvalidInstanceError, match="takes no time"):
        solve(instance, variant="bws")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_largest_times_do_not_overflow(variant: Variant) -> None:
    routes = [[(0, 1), (1, 1)], [(1, 1), (0, 1)], [(0, 1), (1, 1)]]
    long = MAX_TIME // 8
    instance = Instance.from_routes("long", [[(m, p * long) for m, p in route] for route in routes])
    solution = solve(instance, variant=variant)
    assert solution.status == "optimal"
    assert solution.objective == least_makespan(Instance.from_routes("short", routes), variant) * long


def test_a_horizon_below_the_bound_is_refused() -> None:
    with pytest.raises(UsageError, match="no schedule of 'crossing' is shorter than 6"):
        build_model(CROSSING, "jssp", horizon=5)
