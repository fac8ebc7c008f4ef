"""What a policy is asked to solve: an instance in a shop, under a shutdown law."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

from dispatchgym.envs.jobshop import scenario as scenarios
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario
from dispatchgym.envs.jobshop.schedule import Variant

ReferenceKind = Literal["optimum", "best-known", "bound", "clairvoyant"]
"""Proven least makespan; best value anyone published; a proven lower bound; CP-SAT told every shutdown beforehand."""

WORLDS: dict[Variant, str] = {
    "jssp": "Classic job shop",
    "bws": "Blocking job shop, swaps allowed",
    "bns": "Blocking job shop, no swaps",
    "isbjssp": "Interrupting blocking job shop",
}
"""Variant -> what a reader calls it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The makespan that gaps are measured against, and what may be claimed of it."""

    value: int
    kind: ReferenceKind


@dataclass(frozen=True, slots=True)
class Problem:
    """One instance of a suite in one shop.

    Args:
        suite: the suite it belongs to.
        group: problems that are averaged together, such as '15x15'.
        instance: jobs and machines.
        variant: the shop.
        reference: known before the run, or None.
        shutdown_probability: per machine and mean operation duration; 0 outside the interrupting shop.
        on_interrupt: what a repair does to the operation it interrupted.
    """

    suite: str
    group: str
    instance: Instance
    variant: Variant
    reference: Reference | None = None
    shutdown_probability: float = 0.0
    on_interrupt: OnInterrupt = "resume"

    @property
    def family(self) -> str:
        return "jobshop"

    @property
    def metric(self) -> str:
        return "makespan"

    @property
    def varies(self) -> bool:
        return self.has_shutdowns

    @property
    def setting(self) -> str:
        return f"{self.variant} {self.shutdown_probability} {self.on_interrupt}"

    @property
    def records(self) -> int:
        return self.instance.num_ops

    @property
    def has_shutdowns(self) -> bool:
        """Whether the run differs from seed to seed even under a policy that draws nothing."""
        return self.variant == "isbjssp" and self.shutdown_probability > 0

    def scenario_name(self, seed: int) -> str | None:
        """How results name the shutdowns of `seed`, or None in a shop that knows none."""
        if self.variant != "isbjssp":
            return None
        law = f"p={self.shutdown_probability:g},{self.on_interrupt}"
        return f"{law},seed={seed}" if self.has_shutdowns else law

    def scenario(self, seed: int) -> Scenario | None:
        """The shutdowns of `seed`: the same for every policy, and for every p, of one instance."""
        if self.variant != "isbjssp":
            return None
        drawn_with = derived_seed("scenario", self.instance.digest, str(seed))
        return scenarios.draw(self.instance, self.shutdown_probability, drawn_with, self.on_interrupt)


def with_shutdowns(problem: Problem, probabilities: tuple[float, ...], on_interrupt: OnInterrupt) -> list[Problem]:
    """`problem` once for each shutdown probability, a group each; itself outside the interrupting shop.

    The reference of the blocking shop only holds where nothing is ever down.
    """
    if problem.variant != "isbjssp":
        return [problem]
    return [
        replace(
            problem,
            group=f"{problem.group} p={p:g}",
            reference=problem.reference if p == 0 else None,
            shutdown_probability=p,
            on_interrupt=on_interrupt,
        )
        for p in probabilities
    ]


def derived_seed(*names: str) -> int:
    """A seed in 0 .. 2**31 - 1 made of names, never of an order, so that no result depends on what ran before it."""
    return int.from_bytes(hashlib.sha256("|".join(names).encode()).digest()[:4], "big") >> 1
