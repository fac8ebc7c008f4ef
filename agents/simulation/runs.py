"""Runs of one workload under one scheduler, and the greatest rate at which a scheduler still keeps its promises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dispatchgym.envs.api import InvalidPlanError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.metrics import Metrics, measure, slo_met
from dispatchgym.envs.llm.policy import CompiledPolicy, Policy
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload

LEAST_SCALE, MOST_SCALE = 2.0**-4, 2.0**8
"""Ends of the search for the capacity, as multiples of the workload's rate."""

HALVINGS = 8
"""Of the search: each halves the interval of the logarithm; 8 of 12 octaves leave 3.3 %."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all schedulers of a comparison share."""

    workload: Workload
    engine: EngineConfig
    profile: Profile
    seed: int
    strict: bool


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
        record = simulate(
            faster(setting.workload, scale),
            policy,
            setting.engine,
            setting.profile,
            setting.seed,
            tokens=True,
            strict=setting.strict,
        )
    except InvalidPlanError as error:
        message = str(error)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if record is not None:
        metrics = measure(record)
    return Run(name, oracle, record, metrics, wall, cpu, message, scale)


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


def capacity(of: Callable[[float], float], target: float, advance: Callable[[], None] = lambda: None) -> Capacity:
    """Search by halving for the greatest scale at which `of` gives at least `target`; `of` should fall.

    Args:
        of: scale -> attainment. advance: called after each run, `HALVINGS` + 1 times at most.
    """
    tried: dict[float, float] = {}

    def holds(exponent: float) -> bool:
        scale = 2.0**exponent
        tried[scale] = of(scale)
        advance()
        return tried[scale] >= target

    low, high = math.log2(LEAST_SCALE), math.log2(MOST_SCALE)
    kept = False
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low, kept = middle, True
        else:
            high = middle
    if high == math.log2(MOST_SCALE):
        low = high if holds(high) else low
    found = 2.0**low if kept or holds(low) else None
    return Capacity(found, tuple(sorted(tried.items())))


def rate_per_s(workload: Workload) -> float:
    """Mean arrivals a second; infinite for a batch that is all there at once."""
    span = float(workload.arrival_s[-1] - workload.arrival_s[0])
    return (len(workload) - 1) / span if span > 0 else math.inf


def with_slos(workload: Workload, slos: Mapping[str, float]) -> Workload:
    """The workload with these bounds where it has none of its own: `ttft_slo_s`, `tpot_slo_s`."""
    columns = {name: getattr(workload, name) for name in slos}
    if all(np.isinf(column).all() for column in columns.values()):
        return replace(
            workload, slo_kind="mean", **{name: np.full(len(workload), value) for name, value in slos.items()}
        )
    return workload
