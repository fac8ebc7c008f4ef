"""OR-Tools CP-SAT on the exact model: limits, hints, and the search's progress over time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib import metadata
from threading import Event, Lock, Thread

from ortools.sat.python import cp_model

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant, validate
from dispatchgym.solvers.jobshop import rules
from dispatchgym.solvers.jobshop.model import build_model
from dispatchgym.solvers.jobshop.outlook import Progress, complete
from dispatchgym.solvers.jobshop.solution import Incumbent, Solution, Status

LARGEST_SEED = 2**31 - 1

STATUS: dict[object, Status] = {
    cp_model.OPTIMAL: "optimal",
    cp_model.FEASIBLE: "feasible",
    cp_model.INFEASIBLE: "infeasible",
    cp_model.UNKNOWN: "unknown",
}


def solve(
    instance: Instance,
    *,
    variant: Variant = "jssp",
    scenario: Scenario | None = None,
    time_limit: float | None = None,
    deterministic_limit: float | None = None,
    workers: int = 1,
    seed: int = 0,
    hint: Schedule | None = None,
    on_incumbent: Callable[[Incumbent], None] | None = None,
    progress: Progress | None = None,
) -> Solution:
    """The best schedule found within the limits, and how good it is proven to be.

    With one worker and a deterministic limit the result depends on nothing but the arguments. With several,
    or with a wall limit, it depends on how the threads happen to run.

    Args:
        variant: which shop; "isbjssp" with a scenario gives the clairvoyant reference, which knows every shutdown.
        time_limit: wall seconds, building the model included; None for no such limit. The building itself is
            not cut short: of 2,000 operations it takes 3 CPU seconds, with shutdowns 8.
        deterministic_limit: the solver's own seconds of work; None for no such limit.
        workers: search threads.
        hint: a valid schedule of the same problem; the search starts from it and the result is never worse.
            Default: none, but where there are shutdowns the schedule of the rule MWKR.
        on_incumbent: called from another thread whenever makespan or bound improve; what it raises ends
            the search and is raised here.
        progress: finish a run that has come this far, with swaps or in the classic shop.

    Raises:
        UnknownNameError, InvalidInstanceError, UsageError: an impossible problem, limit, worker count or seed.
        InvalidScheduleError: a hint that is not a schedule of this problem.
        KeyboardInterrupt: at once; the search is stopped first.
    """
    clock, cpu = time.perf_counter(), time.process_time()
    _check_limits(time_limit, deterministic_limit, workers, seed)
    if hint is None and progress is None and variant == "isbjssp" and scenario is not None:
        # With nothing but one operation at a time to go by, every operation has dozens of shutdowns in reach,
        # and no better schedule is found within 10 CPU s (la26, la36; p = 0.1).
        config = ShopConfig(variant, on_interrupt=scenario.on_interrupt)
        hint = rules.rollout(instance, "mwkr", config, scenario=scenario).schedule
    if hint is not None:
        validate(hint, instance, variant, scenario)
        if progress is not None:
            progress.check(hint, instance)
    horizon = hint.makespan if hint is not None else None
    model = build_model(instance, variant, scenario, horizon=horizon, progress=progress)

    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.num_workers = workers
    parameters.random_seed = seed
    # The linear relaxation is weak here: without it la17 (swaps) is proven in 10 CPU s instead of 18.
    parameters.linearization_level = 0
    # Else Ctrl-C would end one solve and not the program.
    parameters.catch_sigint_signal = False
    if deterministic_limit is not None:
        parameters.max_deterministic_time = deterministic_limit

    watch = _Watch(solver, clock, model.bound, on_incumbent)
    if hint is not None:
        model.add_hint(hint, instance)
        # It is complete and so becomes the first schedule by itself; a search along it only delays better ones.
        parameters.hint_conflict_limit = 0
        watch.saw(hint.makespan, None)
    if time_limit is not None:
        parameters.max_time_in_seconds = max(0.0, time_limit - (time.perf_counter() - clock))
    status = watch.search(model.cp)

    schedule = hint
    if status in ("optimal", "feasible"):
        schedule = complete(instance, variant, scenario, model.starts(solver.value))
        validate(schedule, instance, variant, scenario)
    if schedule is not None:
        watch.saw(schedule.makespan, schedule.makespan if status == "optimal" else None)
        status = "optimal" if schedule.makespan == watch.bound else "feasible"
    return Solution(
        status=status,
        objective=None if schedule is None else schedule.makespan,
        bound=watch.bound,
        wall_s=time.perf_counter() - clock,
        cpu_s=time.process_time() - cpu,
        deterministic_s=solver.deterministic_time,
        schedule=schedule,
        history=tuple(watch.history),
        workers=workers,
        seed=seed,
        version=f"ortools {metadata.version('ortools')}",
    )


def _check_limits(time_limit: float | None, deterministic_limit: float | None, workers: int, seed: int) -> None:
    for name, limit in (("time limit", time_limit), ("deterministic limit", deterministic_limit)):
        if limit is not None and not 0 <= limit < math.inf:
            raise UsageError(f"{name} is {limit}; it must be at least 0 seconds, or None for no limit")
    if workers < 1:
        raise UsageError(f"workers is {workers}; at least 1 is needed")
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed is {seed}; CP-SAT takes 0 to {LARGEST_SEED}")


class _Watch:
    """One search: keeps its history, passes it on, and ends it when the caller's patience does."""

    def __init__(
        self,
        solver: cp_model.CpSolver,
        clock: float,
        bound: int,
        on_incumbent: Callable[[Incumbent], None] | None,
    ) -> None:
        self.solver = solver
        self.clock = clock
        self.objective: int | None = None
        self.bound = bound
        self.history: list[Incumbent] = []
        self.error: BaseException | None = None
        self._on_incumbent = on_incumbent
        self._lock = Lock()  # bounds and schedules come from several search threads

    def search(self, cp: cp_model.CpModel) -> Status:
        """Run the solver in another thread, so that Ctrl-C reaches this one meanwhile."""
        self.solver.best_bound_callback = lambda bound: self.saw(None, math.ceil(bound - 1e-6))
        ended = Event()  # a thread that Ctrl-C kept us from joining passes for dead in Python 3.11, so ask this
        Thread(target=self._solve, args=(cp, ended), name="cp-sat", daemon=True).start()
        try:
            ended.wait()
        except BaseException as error:
            self.error = error  # nobody is told anything from now on
            while not ended.wait(0.05):
                self.solver.stop_search()  # again and again: before it begins, a search hears nothing
            raise
        if self.error is not None:
            raise self.error
        status = self.solver.response_proto.status
        assert status in STATUS, f"CP-SAT refuses the model: {cp.validate()}"
        return STATUS[status]

    def _solve(self, cp: cp_model.CpModel, ended: Event) -> None:
        try:
            self.solver.solve(cp, _Incumbents(self))
        except BaseException as error:  # raised again by `search`, in the caller's thread
            self.error = error
        finally:
            ended.set()

    def saw(self, objective: int | None, bound: int | None) -> None:
        """Note a makespan or a bound; only improvements enter the history."""
        with self._lock:
            improved = objective is not None and (self.objective is None or objective < self.objective)
            if improved:
                self.objective = objective
            if bound is not None and bound > self.bound:
                self.bound, improved = bound, True
            if not improved or self.error is not None:
                return
            self.history.append(Incumbent(time.perf_counter() - self.clock, self.objective, self.bound))
            if self._on_incumbent is None:
                return
            try:
                self._on_incumbent(self.history[-1])
            except BaseException as error:  # must not unwind through the solver's own threads
                self.error = error
                self.solver.stop_search()


class _Incumbents(cp_model.CpSolverSolutionCallback):
    """Tells a watch of every better schedule."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def on_solution_callback(self) -> None:
        self._watch.saw(int(self.objective_value), math.ceil(self.best_objective_bound - 1e-6))
