"""Learning-rate schedules: share of the training that is left (1 at the start, 0 at the end) -> rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.registry import unknown_name


def constant(_: float) -> float:
    """1 throughout."""
    return 1.0


def linear(left: float) -> float:
    """From 1 straight down to 0; best for the last iterate (arXiv 2310.07831)."""
    return left


def cosine(left: float) -> float:
    """From 1 down to 0 along half a cosine wave."""
    return 0.5 * (1.0 - math.cos(math.pi * left))


SHAPES: Mapping[str, Callable[[float], float]] = {"constant": constant, "linear": linear, "cosine": cosine}
"""A new schedule is one more entry."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """`peak` times a shape, after a linear warm-up; called as Stable-Baselines3 calls its schedules.

    Args:
        peak: highest rate.
        shape: a name in SHAPES.
        warm_up: share of the training until `peak` is reached.
    """

    peak: float
    shape: str = "linear"
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise unknown_name("schedule", self.shape, SHAPES)
        if not 0.0 <= self.warm_up < 1.0:
            raise UsageError(f"warm_up is {self.warm_up}; it must be a share from 0 up to 1")

    def __call__(self, left: float) -> float:
        done = 1.0 - left
        if done < self.warm_up:
            return self.peak * (done / self.warm_up)
        return self.peak * SHAPES[self.shape](left / (1.0 - self.warm_up))
