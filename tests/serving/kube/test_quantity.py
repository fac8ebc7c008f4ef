"""Quantities, beside the official client's parser."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from dispatchgym.envs.packing.instance import MAX_AMOUNT
from dispatchgym.serving.kube.quantity import PayloadError, amount


@pytest.mark.parametrize(
    ("text", "units", "milli"),
    [
        ("500m", 1, 500),
        ("1.5", 2, 1500),
        ("128Mi", 134_217_728, 134_217_728_000),
        ("1e3", 1000, 1_000_000),
        ("2E2", 200, 200_000),
        ("1E", MAX_AMOUNT, MAX_AMOUNT),  # exa, not an exponent; beyond what is counted
        (".5", 1, 500),
        ("100n", 1, 1),
        ("+3", 3, 3000),
        (0, 0, 0),
        (0.25, 1, 250),
    ],
)
def test_amounts_round_up(text: object, units: int, milli: int) -> None:
    assert (amount(text), amount(text, thousandths=True)) == (units, milli)


@given(
    number=st.one_of(st.integers(0, 10**6).map(str), st.decimals(0, 10**4, places=3).map(str)),
    suffix=st.sampled_from(("", "n", "u", "m", "k", "M", "G", "Ki", "Mi", "Gi")),
)
def test_amounts_are_those_of_the_official_client(number: str, suffix: str) -> None:
    assert amount(number + suffix) == math.ceil(parse_quantity(number + suffix))


@pytest.mark.parametrize(
    "value", ["", "m", "1 Gi", "-1", "1e999", "0x10", "1Kib", "١", "9" * 200, None, True, [], "NaN"]
)
def test_what_is_no_quantity_is_refused(value: object) -> None:
    with pytest.raises(PayloadError, match="quantity"):
        amount(value)
