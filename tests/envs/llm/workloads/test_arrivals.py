"""Arrival processes against what probability says of them."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.llm.workloads import arrivals
from dispatchgym.envs.llm.workloads.lengths import correlated_uniforms, from_quantiles

RATED = sorted(set(arrivals.ARRIVALS) - {"at-once"})


@pytest.mark.parametrize("kind", RATED)
def test_arrivals_rise_and_keep_their_rate(kind: str) -> None:
    times = arrivals.arrivals(kind, np.random.default_rng(0), 60_000, 5.0)
    assert times.shape == (60_000,)
    assert times[0] >= 0
    assert (np.diff(times) >= 0).all()
    assert 60_000 / times[-1] == pytest.approx(5.0, rel=0.08)


@pytest.mark.parametrize("kind", RATED)
def test_doubling_the_rate_halves_the_mean_gap(kind: str) -> None:
    slow, fast = (arrivals.arrivals(kind, np.random.default_rng(1), 40_000, rate)[-1] for rate in (4.0, 8.0))
    assert slow / fast == pytest.approx(2.0, rel=0.12)


@pytest.mark.parametrize("kind", sorted(arrivals.ARRIVALS))
def test_a_few_or_no_requests_are_fine(kind: str) -> None:
    for n in (0, 1, 2):
        assert arrivals.arrivals(kind, np.random.default_rng(2), n, 1.0).shape == (n,)


def test_gamma_gaps_have_the_variation_asked_for() -> None:
    for cv in (0.5, 1.0, 3.0):
        gaps = np.diff(arrivals.gamma(np.random.default_rng(3), 200_000, 2.0, cv=cv))
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.04)


def test_the_diurnal_rate_follows_its_sine() -> None:
    times = arrivals.diurnal(np.random.default_rng(4), 400_000, 100.0, period_s=400.0, depth=0.5)
    phase = times[times < 4000] % 400
    # Mean rate over the quarter about a sine's top: 1 + depth * sin averaged = 1 + 0.5 * 2 sqrt(2) / pi.
    rate = ((phase > 50) & (phase < 150)).mean() * 4
    assert rate == pytest.approx(1 + 0.5 * 2 * np.sqrt(2) / np.pi, rel=0.02)


def test_bursts_are_as_dense_as_their_ratio_says() -> None:
    times = arrivals.burst(np.random.default_rng(5), 300_000, 20.0, ratio=9.0, burst_s=100.0, calm_s=100.0)
    # Half the time at rate c and half at 9c with (c + 9c) / 2 = 20: c = 4. A second is nearly always wholly in one.
    count = np.histogram(times, np.arange(0.0, times[-1], 1.0))[0]
    assert np.percentile(count, 25) == pytest.approx(4, abs=1)
    assert np.percentile(count, 75) == pytest.approx(36, abs=2)


def test_impossible_processes_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="rate_per_s is 0"):
        arrivals.poisson(rng, 5, 0)
    with pytest.raises(UsageError, match="rate_per_s is nan"):
        arrivals.burst(rng, 5, float("nan"))
    with pytest.raises(UsageError, match="depth is 2"):
        arrivals.diurnal(rng, 5, 1.0, depth=2)
    with pytest.raises(UnknownNameError, match="did you mean 'poisson'"):
        arrivals.arrivals("poison", rng, 5, 1.0)


def test_draws_from_quantiles_have_them_and_the_mean() -> None:
    u = (np.arange(200_000) + 0.5) / 200_000
    drawn = from_quantiles(u, (1, 10, 20, 1000), (0, 0.5, 0.9, 1), mean=25.0)
    assert np.quantile(drawn, [0.5, 0.9]) == pytest.approx([10, 20], rel=1e-3)
    assert drawn.mean() == pytest.approx(25.0, rel=1e-3)
    assert from_quantiles(np.array([0.0, 0.25, 1.0]), (2, 4), (0, 1)).tolist() == [2.0, 2.5, 4.0]
    with pytest.raises(ValueError, match="mean 999"):
        from_quantiles(u, (1, 10), (0, 1), mean=999)


def test_correlated_ranks_are_uniform_with_the_rank_correlation() -> None:
    u, v = correlated_uniforms(np.random.default_rng(6), 100_000, -0.5)
    for x in (u, v):
        assert np.quantile(x, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.01)
    assert np.corrcoef(u.argsort().argsort(), v.argsort().argsort())[0, 1] == pytest.approx(-0.5, abs=0.01)
