"""Runs of one workload under one scheduler, and the greatest rate at which a scheduler still keeps its promises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dispatchgym.envs.api import InvalidPlanError
from dispatchgym.envs.llm.backends import SIMULATOR, RunsOn
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.metrics import Metrics, measure, slo_met
from dispatchgym.envs.llm.policy import CompiledPolicy, Policy
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload

LEAST_SCALE, MOST_SCALE = 2.0**-4, 2.0**8
"""Ends of the search for the capacity, as multiples of the workload's rate."""

STEPS = 256
"""Of the search: its scales divide the octaves between its ends evenly."""

FINENESS = (MOST_SCALE / LEAST_SCALE) ** (1.0 / STEPS) - 1.0
"""How much greater one scale of the search is than the one before."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all schedulers of a comparison share."""

    workload: Workload
    engine: EngineConfig
    profile: Profile
    seed: int
    strict: bool
    runs_on: RunsOn = SIMULATOR


@dataclass(frozen=True, slots=True)
class Capacity:
    """The greatest multiple of the workload's rate with the target attainment.

    Args:
        scale: the greatest that was tried and kept it; None where even the least did not.
        tried: (scale, attainment) of every run, by scale.
    """

    scale: float | None
    tried: tuple[tuple[float, float], ...]

    @property
    def is_open(self) -> bool:
        """It was kept at the greatest scale: the capacity is that or more."""
        return self.scale == MOST_SCALE


@dataclass(frozen=True, slots=True)
class Run:
    """One scheduler on the workload.

    Args:
        scale: how many times as fast as it is everything arrived.
        oracle: it is told output lengths, which no real engine is.
        record, metrics: None where it failed; `message` says why then.
        wall_s, cpu_s: of this run.
        capacity: where it was asked for.
    """

    name: str
    oracle: bool
    record: Record | None
    metrics: Metrics | None
    wall_s: float
    cpu_s: float
    message: str = ""
    scale: float = 1.0
    capacity: Capacity | None = None


Make = Callable[[], Policy | CompiledPolicy]
"""A fresh scheduler: none keeps state from one run to the next."""


def run(name: str, make: Make, setting: Setting, scale: float = 1.0) -> Run:
    """The scheduler on the workload arriving `scale` times as fast, with every step and token kept."""
    wall, cpu = time.perf_counter(), time.process_time()
    record, metrics, message, oracle = None, None, "", False
    try:
        policy = make()
        oracle = policy.oracle
        workload = faster(setting.workload, scale)
        runs_on = setting.runs_on
        record = simulate(
            workload,
            policy,
            setting.engine,
            setting.profile,
            setting.seed,
            tokens=True,
            strict=setting.strict,
            executor=None if runs_on.is_simulated else partial(runs_on.backend().executor, workload=workload),
        )
    except InvalidPlanError as error:
        message = str(error)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if record is not None:
        metrics = measure(record)
    return Run(name, oracle, record, metrics, wall, cpu, message, scale)


def judge(name: str, make: Make, setting: Setting, target: float | None, near: float = 1.0) -> Run:
    """The scheduler on the workload as it is, and its capacity where a target is given, searched from `near`."""
    found = run(name, make, setting)
    if target is None or found.metrics is None:
        return found
    try:
        return replace(found, capacity=capacity(partial(attainment, make, setting), target, near))
    except InvalidPlanError as error:
        return replace(found, record=None, metrics=None, message=str(error))


def attainment(make: Make, setting: Setting, scale: float) -> float:
    """Share of all requests that met every SLO when everything arrives `scale` times as fast."""
    workload = faster(setting.workload, scale)
    record = simulate(
        workload, make(), setting.engine, setting.profile, setting.seed, steps=False, strict=setting.strict
    )
    first, rest = slo_met(record)
    return float((first & rest).mean())


def faster(workload: Workload, scale: float) -> Workload:
    """The same requests, arriving `scale` times as fast."""
    return workload if scale == 1.0 else replace(workload, arrival_s=workload.arrival_s / scale)


def capacity(of: Callable[[float], float], target: float, near: float = 1.0) -> Capacity:
    """The greatest scale of the search at which `of` gives at least `target`, if `of` falls with the scale.

    Args:
        of: scale -> attainment.
        near: scale to begin at; the nearer to the capacity, the fewer runs.
    """
    tried: dict[float, float] = {}
    start = round(STEPS * math.log(near / LEAST_SCALE) / math.log(MOST_SCALE / LEAST_SCALE))
    step, stride = min(max(start, 0), STEPS), 2
    kept, lost = -1, STEPS + 1
    while kept + 1 < lost:
        scale = _scale(step)
        tried[scale] = of(scale)
        if tried[scale] >= target:
            kept = step
        else:
            lost = step
        # Ever longer strides until the answer has been both, then halving between the two.
        if kept >= 0 and lost <= STEPS:
            step = (kept + lost) // 2
        else:
            step = min(kept + stride, STEPS) if kept >= 0 else max(lost - stride, 0)
            stride *= 2
    return Capacity(_scale(kept) if kept >= 0 else None, tuple(sorted(tried.items())))


def _scale(step: int) -> float:
    return float(LEAST_SCALE * (MOST_SCALE / LEAST_SCALE) ** (step / STEPS))


def rate_per_s(workload: Workload) -> float:
    """Mean arrivals a second; infinite for a batch that is all there at once."""
    span = float(workload.arrival_s[-1] - workload.arrival_s[0])
    return (len(workload) - 1) / span if span > 0 else math.inf


def with_slos(workload: Workload, ttft_s: float | None, tpot_s: float | None) -> Workload:
    """The workload with these bounds for every request; None leaves its own. `tpot_s` bounds the mean of a request."""
    given: dict[str, Any] = {}
    if ttft_s is not None:
        given["ttft_slo_s"] = np.full(len(workload), ttft_s)
    if tpot_s is not None:
        given |= {"tpot_slo_s": np.full(len(workload), tpot_s), "slo_kind": "mean"}
    return replace(workload, **given)


def has_slos(workload: Workload) -> bool:
    """Whether any request has a bound."""
    return bool(np.isfinite(workload.ttft_slo_s).any() or np.isfinite(workload.tpot_slo_s).any())
