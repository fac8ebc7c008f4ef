"""Statistics against hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.agents.evaluation.statistics import (
    Interval,
    interquartile_mean,
    mean,
    paired_difference,
    stratified_bootstrap,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 9.0], 4.0),  # fewer than four values: nothing is dropped
        ([100.0, 2.0, 4.0, 0.0], 3.0),  # 0 and 100 go
        ([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 90.0], 4.5),  # 1, 2 and 9, 90 go: (3 + 4 + 5 + 6) / 4
    ],
)
def test_interquartile_mean_drops_a_quarter_at_each_end(values: list[float], expected: float) -> None:
    assert interquartile_mean(values) == expected


def test_interquartile_mean_works_on_every_row() -> None:
    assert interquartile_mean([[100.0, 2.0, 4.0, 0.0], [1.0, 1.0, 1.0, 5.0]]).tolist() == [3.0, 1.0]


def test_bootstrap_of_two_instances_has_the_quantiles_of_their_four_resamples() -> None:
    # The means are 0, 5, 5 and 10 with equal chance: the middle 40 % are all 5, the middle 95 % reach 0 and 10.
    strata = {"a": {"one": [0.0], "two": [10.0]}}
    assert stratified_bootstrap(strata, mean, confidence=0.4) == Interval(5.0, 5.0)
    assert stratified_bootstrap(strata, mean) == Interval(0.0, 10.0)


def test_bootstrap_draws_within_strata_only() -> None:
    # Unstratified, a draw of four zeros would be possible; here every draw holds two of each.
    strata = {"a": {"one": [0.0], "two": [0.0]}, "b": {"three": [10.0], "four": [10.0]}}
    assert stratified_bootstrap(strata, mean) == Interval(5.0, 5.0)


def test_bootstrap_draws_seeds_within_an_instance() -> None:
    assert stratified_bootstrap({"a": {"one": [0.0, 10.0]}}, mean) == Interval(0.0, 10.0)


def test_bootstrap_keeps_the_seeds_of_an_instance_together() -> None:
    # Drawing an instance draws 100 equal values with it; pooled draws would come close to 5 nearly always.
    strata = {"a": {"one": [0.0] * 100, "two": [10.0] * 100}}
    assert stratified_bootstrap(strata, mean) == Interval(0.0, 10.0)


def test_every_instance_weighs_the_same_however_many_of_its_runs_failed() -> None:
    # Padding a short instance with anything but its own value would move the interval off 3.
    strata = {"a": {"one": [3.0, 3.0, 3.0], "two": [3.0]}}
    assert stratified_bootstrap(strata, mean) == Interval(3.0, 3.0)
    # A resample of two "one" and no "two" is as likely as the reverse, so both ends are reached.
    assert stratified_bootstrap({"a": {"one": [0.0] * 30, "two": [10.0]}}, mean) == Interval(0.0, 10.0)


def test_nothing_that_varies_means_no_interval() -> None:
    assert stratified_bootstrap({"a": {"one": [3.0]}, "b": {"two": [5.0]}}, mean) is None


def test_bootstrap_is_the_same_every_time() -> None:
    values = np.random.default_rng(1).normal(size=12).tolist()
    strata = {"a": {str(k): [v] for k, v in enumerate(values)}}
    first = stratified_bootstrap(strata, interquartile_mean)
    assert first == stratified_bootstrap(strata, interquartile_mean)
    assert first != stratified_bootstrap(strata, interquartile_mean, seed=1)


def test_bootstrap_interval_of_a_normal_mean_is_about_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(50, 10, size=400)
    interval = stratified_bootstrap({"a": {str(k): [v] for k, v in enumerate(values)}}, mean)
    assert interval is not None
    half = 1.96 * values.std() / 20  # standard error of 400 values
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15)


def test_paired_differences_by_hand() -> None:
    ours = {"a": {"one": [5.0], "two": [7.0], "three": [4.0]}, "b": {"one": [9.0]}}
    base = {"a": {"one": [6.0], "two": [7.0], "three": [1.0]}, "b": {"one": [15.0]}}
    paired = paired_difference(ours, base)  # -1, 0, +3, -6
    assert paired is not None
    assert (paired.problems, paired.mean, paired.interquartile_mean) == (4, -1.0, -0.5)
    assert (paired.better, paired.equal, paired.worse) == (2, 1, 1)
    # Stratum a contributes three of -1, 0, 3; b always -6: the least mean is (-3 - 6) / 4, the greatest (9 - 6) / 4.
    assert paired.interval == Interval(-2.25, 0.75)


def test_pairing_leaves_out_what_only_one_side_solved() -> None:
    paired = paired_difference({"a": {"one": [5.0], "two": [7.0]}}, {"a": {"two": [6.0], "three": [0.0]}})
    assert paired is not None
    assert (paired.problems, paired.mean, paired.interval) == (1, 1.0, None)
    assert paired_difference({"a": {"one": [5.0]}}, {"a": {"two": [6.0]}}) is None
