"""Interquartile mean, stratified bootstrap intervals and paired differences: pure functions on numbers.

Why these: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Statistic = Callable[[F64], F64]
"""Reduces the last axis of an array of values."""

Clusters = Mapping[str, Sequence[float]]
"""Instance name -> its values, one a seed or scenario."""


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval."""

    low: float
    high: float


def mean(values: npt.ArrayLike) -> F64:
    """The mean over the last axis."""
    return np.asarray(np.mean(np.asarray(values, np.float64), axis=-1))


def interquartile_mean(values: npt.ArrayLike) -> F64:
    """The mean of the middle half over the last axis: the lowest and the highest quarter are dropped.

    Of n values floor(n / 4) are dropped at each end, so of fewer than four values nothing is.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(np.mean(ordered[..., cut : ordered.shape[-1] - cut], axis=-1))


def stratified_bootstrap(
    strata: Mapping[str, Clusters],
    statistic: Statistic,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """The percentile interval of `statistic` when instances, and seeds within them, are drawn anew.

    In each stratum (a group of like instances) as many instances are drawn with replacement as it
    has; from each drawn instance as many values, again with replacement, as the stratum's best
    covered instance has. So every instance weighs the same, whatever failed on it.

    Args:
        strata: group -> instance -> values; none may be empty.
        statistic: reduces the last axis, such as `interquartile_mean`.
        resamples: bootstrap draws.
        confidence: share of the draws inside the interval.
        seed: of the draws; the interval is the same every time.

    Returns:
        The interval, or None where nothing varies: one value an instance and one instance a stratum.
    """
    groups = [[np.asarray(values, np.float64) for values in clusters.values()] for clusters in strata.values()]
    if all(len(group) == 1 and len(group[0]) == 1 for group in groups):
        return None
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([_draw_stratum(group, resamples, rng) for group in groups], axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(statistic(drawn), [tail, 100 - tail])
    return Interval(float(low), float(high))


def _draw_stratum(clusters: Sequence[F64], resamples: int, rng: np.random.Generator) -> F64:
    """Resampled values of one stratum, shape (resamples, instances x values of the best covered instance)."""
    sizes = np.array([len(values) for values in clusters])
    table = np.zeros((len(clusters), int(sizes.max())))  # (instances, values), short rows padded and never drawn from
    for row, values in zip(table, clusters, strict=True):
        row[: len(values)] = values
    instance = rng.integers(len(clusters), size=(resamples, len(clusters), 1))
    value = np.floor(rng.random((resamples, *table.shape)) * sizes[instance]).astype(np.int64)
    return np.asarray(table[instance, value].reshape(resamples, -1))


class Paired(NamedTuple):
    """Differences to a base policy on the same instances; negative is better, as makespans are.

    Attributes:
        problems: instances (or scenarios) that both policies solved.
        mean: mean difference.
        interquartile_mean: mean of the middle half of the differences.
        interval: of the mean; None where nothing varies.
        better, equal, worse: on how many the policy beat, met or missed the base.
    """

    problems: int
    mean: float
    interquartile_mean: float
    interval: Interval | None
    better: int
    equal: int
    worse: int


def paired_difference(
    strata: Mapping[str, Clusters], base: Mapping[str, Clusters], *, resamples: int = 2000, seed: int = 0
) -> Paired | None:
    """`strata` minus `base`, position by position, over the instances that both have.

    Args:
        strata, base: group -> instance -> values. Values of one instance must be in the same order in
            both (same scenario, same place) and equally many.

    Returns:
        The summary, or None when the two share no instance.
    """
    differences: dict[str, dict[str, list[float]]] = {}
    for group, clusters in strata.items():
        for instance, values in clusters.items():
            other = base.get(group, {}).get(instance)
            if other is not None:
                pairs = [a - b for a, b in zip(values, other, strict=True)]
                differences.setdefault(group, {})[instance] = pairs
    flat = np.array([d for clusters in differences.values() for values in clusters.values() for d in values])
    if not flat.size:
        return None
    return Paired(
        problems=len(flat),
        mean=float(mean(flat)),
        interquartile_mean=float(interquartile_mean(flat)),
        interval=stratified_bootstrap(differences, mean, resamples=resamples, seed=seed),
        better=int((flat < 0).sum()),
        equal=int((flat == 0).sum()),
        worse=int((flat > 0).sum()),
    )
