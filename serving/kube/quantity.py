"""Amounts as Kubernetes writes them: "500m", "1.5", "128Mi", "2e9"."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from dispatchgym.envs.packing.instance import MAX_AMOUNT
from dispatchgym.serving.wire import RequestError


class PayloadError(RequestError):
    """An object of the Kubernetes API that cannot be read; the message names the field and the value."""


_FORM = re.compile(r"(\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d{1,2})?", re.ASCII)
_SUFFIX = {
    "": Fraction(1),
    **{letter: Fraction(1, 1000**power) for power, letter in enumerate("mun", 1)},
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", 1)},
}


def amount(value: Any, thousandths: bool = False) -> int:
    """A quantity rounded up to whole units, or to whole thousandths; at most MAX_AMOUNT.

    Args:
        value: text or a number, as JSON has it.

    Raises:
        PayloadError: not a quantity, or a negative one.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise PayloadError(f"{value!r:.60} is not a quantity; write text such as '500m' or '1Gi'")
    return _amount(str(value), thousandths)


@lru_cache(maxsize=4096)
def _amount(text: str, thousandths: bool) -> int:
    found = _FORM.fullmatch(text.removeprefix("+")) if len(text) <= 100 else None
    if found is None:
        raise PayloadError(f"{text!r:.60} is not a quantity; write text such as '500m' or '1Gi', not below 0")
    number, suffix = found.groups(default="")
    scale = _SUFFIX[suffix] if suffix in _SUFFIX else Fraction(10) ** int(suffix[1:])
    exact = Fraction(number) * scale * (1000 if thousandths else 1)
    return min(-(-exact.numerator // exact.denominator), MAX_AMOUNT)
