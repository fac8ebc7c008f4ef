"""The same traffic under the same scheduler, over a real model and over its profile: how far apart the two are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.calibrate import StepCost, relative_errors, step_cost
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.executor import Batch, Executor, StepResult
from dispatchgym.envs.llm.metrics import Metrics, measure
from dispatchgym.envs.llm.policy import CompiledPolicy, Policy
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.record import Record, Steps
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.steps import emit
from dispatchgym.envs.llm.workload import Workload

F64 = npt.NDArray[np.float64]
Make = Callable[[], Policy | CompiledPolicy]

NUDGE = 0.01
"""Of all steps' times: who arrives during which step hangs on them, and with it what few requests feel."""

WARM_STEPS = 20
"""Of a run's first steps, whose times say more about caches and clocks than about steps."""


@dataclass(frozen=True, slots=True)
class Twin:
    """A run on a model and one on a profile.

    Attributes:
        scheduler: its name.
        real, simulated: what came of them.
        faster, slower: what comes of the simulated run if all of its steps take NUDGE less, or more.
        costs: the model's steps, as they came.
        step_errors: |predicted / measured - 1| of each of them, shape (steps,).
        same_ledger: the simulated engine, told the model's step times, makes the same steps to the last block.
    """

    scheduler: str
    real: Metrics
    simulated: Metrics
    faster: Metrics
    slower: Metrics
    costs: list[StepCost]
    step_errors: F64
    same_ledger: bool

    @property
    def mape(self) -> float:
        """Mean of the steps' errors."""
        return float(self.step_errors.mean())

    @property
    def worst_decile(self) -> float:
        """Mean of the greatest tenth of the steps' errors."""
        return float(np.sort(self.step_errors)[-max(1, len(self.step_errors) // 10) :].mean())

    def compared(self) -> list[tuple[str, list[float]]]:
        """Name, and value in the four runs, of what users feel; seconds, and tokens a second."""
        runs = (self.real, self.simulated, self.faster, self.slower)
        rows = [
            (f"{what[:-2].upper()} {point.upper()}", [float(getattr(getattr(run, what), point)) for run in runs])
            for what in ("ttft_s", "tpot_s", "e2e_s")
            for point in ("p50", "p90", "p99")
        ]
        rows.append(("throughput", [run.throughput_tps for run in runs]))
        rows.append(("goodput", [run.goodput_tps for run in runs]))
        return rows


def twin(
    name: str, make: Make, workload: Workload, config: EngineConfig, profile: Profile,
    executor: Callable[[State], Executor], seed: int = 0,
) -> Twin:  # fmt: skip
    """Run the workload both ways.

    Args:
        make: a fresh scheduler.
        executor: on the model, for an engine's arrays.
    """
    noted: list[_Noted] = []

    def noting(state: State) -> Executor:
        noted.append(_Noted(executor(state)))
        return noted[0]

    real = simulate(workload, make(), config, profile, seed, tokens=True, executor=noting)
    simulated, faster, slower = (
        measure(simulate(workload, make(), config, profile.scaled(factor), seed, tokens=True))
        for factor in (1.0, 1 - NUDGE, 1 + NUDGE)
    )
    replayed = simulate(
        workload, make(), config, profile, seed, executor=lambda state: _Replayed(state, noted[0].results)
    )
    costs = noted[0].costs[WARM_STEPS:] or noted[0].costs
    errors = relative_errors(profile, costs)
    return Twin(name, measure(real), simulated, faster, slower, costs, errors, _same_steps(real, replayed))


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """How alike two rankings are: 1 the same, -1 the opposite; pairs that tie in either count for neither (tau-b)."""
    x = np.sign(np.subtract.outer(a, a))
    y = np.sign(np.subtract.outer(b, b))
    norm = math.sqrt(float((x != 0).sum()) * float((y != 0).sum()))
    return float((x * y).sum()) / norm if norm else math.nan


def at_load(workload: Workload, share: float, make: Make, config: EngineConfig, profile: Profile) -> Workload:
    """The workload at a share of the rate at which the simulated engine, never idle, gets it done."""
    together = replace(workload, arrival_s=np.zeros(len(workload)))
    seconds = simulate(together, make(), config, profile, steps=False).end_s
    span = float(workload.arrival_s[-1] - workload.arrival_s[0])
    arrival_s = workload.arrival_s - workload.arrival_s[0]
    return replace(workload, arrival_s=arrival_s * (seconds / share / span) if span > 0 else arrival_s)


class _Noted:
    """An executor that keeps what it ran and how long that took."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.results: list[StepResult] = []
        self.costs: list[StepCost] = []

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        result = self._executor.run(batch, interrupt_s)
        self.results.append(result)
        if result.segments_done is None and batch.group < 0 and not len(batch.swap_out) and not len(batch.swap_in):
            cost = step_cost(batch.start, batch.tokens, batch.decode, result.duration_s)
            before = self.costs[-1] if self.costs else cost
            plain_s = before.seconds if before.is_plain and self.costs else 0.0
            self.costs.append(replace(cost, plain_before_s=plain_s))
        return result


class _Replayed:
    """Does again what an executor did before, step by step."""

    def __init__(self, state: State, results: Sequence[StepResult]) -> None:
        self._state = state
        self._results = iter(results)

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        done = next(self._results)
        if done.segments_done is None:
            emit(self._state)
            rows = self._state.batch[: self._state.eng["batch"][0]]
            return StepResult(done.duration_s, rows["emitted"], rows["stopped"])
        return done


def _same_steps(a: Record, b: Record) -> bool:
    return all(np.array_equal(getattr(a.steps, each.name), getattr(b.steps, each.name)) for each in fields(Steps))
