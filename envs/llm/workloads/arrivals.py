"""Arrival processes: when requests come. All give float64 seconds, sorted, shape (n,), from a generator.

Rates are means over the long run; a finite draw lies about them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.registry import unknown_name

Times = npt.NDArray[np.float64]


def at_once(rng: np.random.Generator, n: int, rate_per_s: float = 1.0) -> Times:
    """Everybody at time 0: an offline batch. Takes a rate like the others and does not look at it."""
    return np.zeros(n)


def poisson(rng: np.random.Generator, n: int, rate_per_s: float) -> Times:
    """Independent arrivals."""
    return gamma(rng, n, rate_per_s, cv=1.0)


def gamma(rng: np.random.Generator, n: int, rate_per_s: float, *, cv: float = 2.0) -> Times:
    """Gaps from a gamma distribution whose standard deviation is `cv` means; 1 is Poisson, more is burstier."""
    _positive(rate_per_s=rate_per_s, cv=cv)
    shape = 1.0 / cv**2
    times: Times = np.cumsum(rng.gamma(shape, 1.0 / (shape * rate_per_s), n))
    return times


def diurnal(
    rng: np.random.Generator, n: int, rate_per_s: float, *, period_s: float = 3600.0, depth: float = 0.6
) -> Times:
    """Poisson with a rate that swings by `depth` (0 to 1) of its mean as a sine over `period_s`; starts at the mean."""
    _positive(rate_per_s=rate_per_s, period_s=period_s)
    if not 0.0 <= depth <= 1.0:
        raise UsageError(f"depth is {depth}; it must lie between 0 and 1")
    due = np.cumsum(rng.exponential(1.0, n))
    # The rate's integral has no closed inverse: tabulate it, at 200 points a period.
    end = float(due[-1] if n else 0.0) / rate_per_s + period_s
    t = np.linspace(0.0, end, int(200 * end / period_s) + 2)
    turn = 2.0 * np.pi / period_s
    times: Times = np.interp(due, rate_per_s * (t + depth / turn * (1.0 - np.cos(turn * t))), t)
    return times


def burst(
    rng: np.random.Generator,
    n: int,
    rate_per_s: float,
    *,
    ratio: float = 8.0,
    burst_s: float = 10.0,
    calm_s: float = 50.0,
) -> Times:
    """Poisson with two rates by turns: `ratio` times as many arrivals a second in a burst as in calm.

    Bursts and calms last exponential times of the given means; the first is a calm.
    """
    _positive(rate_per_s=rate_per_s, ratio=ratio, burst_s=burst_s, calm_s=calm_s)
    calm_rate = rate_per_s * (burst_s + calm_s) / (ratio * burst_s + calm_s)
    due = np.cumsum(rng.exponential(1.0, n))
    needed = float(due[-1]) if n else 0.0
    t, mass, edges, masses = 0.0, 0.0, [0.0], [0.0]
    while mass <= needed:
        for mean_s, rate in ((calm_s, calm_rate), (burst_s, ratio * calm_rate)):
            stay = float(rng.exponential(mean_s))
            t, mass = t + stay, mass + stay * rate
            edges.append(t)
            masses.append(mass)
    times: Times = np.interp(due, masses, edges)
    return times


def wandering(
    rng: np.random.Generator,
    n: int,
    rate_per_s: float,
    *,
    spread: float = 0.2,
    memory_s: float = 600.0,
    cv: float = 1.0,
) -> Times:
    """A rate that wanders: log-normal about its mean with deviation `spread`, forgetting in `memory_s`.

    The rate changes every ten seconds, as a first-order autoregression of its logarithm. While it stays, gaps are as
    those of `gamma` with `cv`.
    """
    _positive(rate_per_s=rate_per_s, spread=spread, memory_s=memory_s, cv=cv)
    step_s = 10.0
    keep = float(np.exp(-step_s / memory_s))
    due = np.cumsum(rng.gamma(1.0 / cv**2, cv**2, n))
    needed = float(due[-1]) if n else 0.0
    log_rate, mass, masses = float(rng.normal(0.0, spread)), 0.0, [0.0]
    while mass <= needed:
        mass += step_s * rate_per_s * float(np.exp(log_rate - spread**2 / 2))
        masses.append(mass)
        log_rate = keep * log_rate + float(rng.normal(0.0, spread * np.sqrt(1.0 - keep**2)))
    times: Times = np.interp(due, masses, step_s * np.arange(len(masses)))
    return times


ARRIVALS: Mapping[str, Callable[[np.random.Generator, int, float], Times]] = {
    "at-once": at_once,
    "poisson": poisson,
    "gamma": gamma,
    "diurnal": diurnal,
    "burst": burst,
    "bursty": partial(burst, ratio=20.0),
    "wandering": wandering,
}
"""By name, with their usual parameters."""


def arrivals(kind: str, rng: np.random.Generator, n: int, rate_per_s: float) -> Times:
    """Arrivals of the process of that name.

    Raises:
        UnknownNameError: no such process. UsageError: a rate that is not positive.
    """
    if kind not in ARRIVALS:
        raise unknown_name("arrival process", kind, ARRIVALS)
    return ARRIVALS[kind](rng, n, rate_per_s)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise UsageError(f"{name} is {value}; it must be a positive number")
