"""What an environment plays: which instance next, and with which shutdowns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop import library, scenario
from dispatchgym.envs.jobshop.batch import Builder, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.envs.jobshop.state import Capacity

Generator = Callable[[np.random.Generator], Instance]
Source = str | Instance | Sequence[str | Instance] | Generator
"""An instance, or its name; several, of which each reset draws one; or a generator of instances."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """Draws the instance and the shutdowns of an episode from the environment's own random generator."""

    source: tuple[Instance, ...] | Generator
    config: ShopConfig
    shutdown_probability: float

    @classmethod
    def of(cls, given: Source, config: ShopConfig, shutdown_probability: float | None) -> Episodes:
        """Load names, keep generators; shutdowns have probability 0.1 unless said otherwise.

        Raises:
            UnknownNameError: no such instance.
            UsageError: an empty list, or a shutdown probability for a shop without shutdowns.
        """
        if config.variant != "isbjssp" and shutdown_probability is not None:
            raise UsageError(
                f"shutdown_probability is {shutdown_probability}, but variant {config.variant!r} has no shutdowns; "
                "they need InterruptingJobShop-v0"
            )
        return cls(_loaded(given), config, 0.1 if shutdown_probability is None else shutdown_probability)

    @property
    def capacity(self) -> Capacity:
        """The largest instance of a list; of a generator its first draw, which may not be its largest."""
        if isinstance(self.source, tuple):
            return Capacity.of(self.source)
        return Capacity.of([self.source(np.random.default_rng(0))])

    def draw(
        self, rng: np.random.Generator, given: Source | None = None, replay: Scenario | None = None
    ) -> tuple[Instance, Scenario | None]:
        """The next instance and its scenario; `given` and `replay` stand in for what would be drawn.

        Raises:
            UsageError: a scenario for a shop without shutdowns.
        """
        source = self.source if given is None else _loaded(given)
        if isinstance(source, tuple):
            instance = source[0] if len(source) == 1 else source[int(rng.integers(len(source)))]
        else:
            instance = source(rng)
        if self.config.variant != "isbjssp":
            if replay is not None:
                raise UsageError(
                    f"variant {self.config.variant!r} has no shutdowns; a scenario needs InterruptingJobShop-v0"
                )
            return instance, None
        if replay is None:
            seed = int(rng.integers(2**31))
            replay = scenario.draw(instance, self.shutdown_probability, seed, self.config.on_interrupt)
        return instance, replay


def shop_of(
    variant: Variant, swap: bool, builder: Builder, delta: float | None, on_interrupt: OnInterrupt
) -> ShopConfig:
    """The shop that an environment's arguments describe.

    Raises:
        UsageError: swaps forbidden where they cannot be, or what ShopConfig refuses.
    """
    if not swap:
        if variant != "bws":
            raise UsageError(f"swap=False exists in BlockingJobShop-v0 only, not in variant {variant!r}")
        variant = "bns"
    return ShopConfig(variant, builder, delta, on_interrupt)


def _loaded(given: Source) -> tuple[Instance, ...] | Generator:
    if isinstance(given, str):
        return (library.load(given),)
    if isinstance(given, Instance):
        return (given,)
    if callable(given):
        return given
    if not given:
        raise UsageError("instance is an empty list; name at least one")
    return tuple(library.load(one) if isinstance(one, str) else one for one in given)
