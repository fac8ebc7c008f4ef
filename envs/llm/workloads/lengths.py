"""Draws of lengths: by quantiles, pairs of ranks that go together, log-normal ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def from_quantiles(u: Floats, quantiles: Sequence[float], at: Sequence[float], mean: float | None = None) -> Floats:
    """The values at the ranks `u` (0 to 1) of a distribution with these quantiles at these ranks.

    Between two quantiles the value rises as a power of the rank: the first, or that with which the mean is `mean`.

    Raises:
        ValueError: no distribution with these quantiles has this mean.
    """
    values, ranks = np.asarray(quantiles, np.float64), np.asarray(at, np.float64)
    rise, width = np.diff(values), np.diff(ranks)
    power = 1.0
    if mean is not None:
        # The mean of low + rise * t**p over t in 0..1 is low + rise / (p + 1).
        share = (mean - float((width * values[:-1]).sum())) / float((width * rise).sum())
        if not 0.0 < share < 1.0:
            raise ValueError(f"mean {mean} is outside what the quantiles allow")
        power = 1.0 / share - 1.0
    k = np.clip(np.searchsorted(ranks, u, side="right") - 1, 0, len(rise) - 1)
    drawn: Floats = values[k] + rise[k] * ((u - ranks[k]) / width[k]) ** power
    return drawn


def log_normal(rng: np.random.Generator, n: int, median: float, deviation: float, low: int, high: int) -> Ints:
    """Whole numbers whose logarithm is normal, cut to low .. high."""
    drawn: Ints = np.clip(np.rint(median * np.exp(rng.normal(0.0, deviation, n))), low, high).astype(np.int64)
    return drawn


def correlated_uniforms(rng: np.random.Generator, n: int, rank_correlation: float) -> tuple[Floats, Floats]:
    """Two columns of ranks, each uniform on 0 to 1, with the given Spearman correlation: a Gaussian copula."""
    # Pearson's correlation of the normals behind a Spearman correlation, Kruskal (1958).
    r = 2.0 * math.sin(math.pi * rank_correlation / 6.0)
    x = rng.standard_normal(n)
    y = r * x + math.sqrt(1.0 - r**2) * rng.standard_normal(n)
    return normal_cdf(x), normal_cdf(y)


def normal_cdf(x: Floats) -> Floats:
    """Ranks of standard normal values."""
    return np.array([0.5 * (1.0 + math.erf(value / math.sqrt(2.0))) for value in x])
