"""The pilot method by name, for evaluations: `pilot`, or `pilot:RULE` with the rule's own options."""

from __future__ import annotations

from dataclasses import dataclass

from dispatchgym.agents.evaluation.family import Kind
from dispatchgym.agents.evaluation.policies import Answer, RulePolicy, Run, parse_rule, shop_config
from dispatchgym.agents.evaluation.problem import Problem
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.solvers.jobshop import pilot


@dataclass(frozen=True, slots=True)
class PilotPolicy:
    """Every candidate is tried to the end; see `solvers.jobshop.pilot`.

    Args:
        base: says which shops and which builder, and, with `alone`, who plays on.
        alone: only `base` plays on, instead of the three rules of the graph `pilot`.
    """

    base: RulePolicy
    alone: bool

    @property
    def name(self) -> str:
        return f"pilot:{self.base.name}" if self.alone else "pilot"

    @property
    def kind(self) -> Kind:
        return "rule"

    @property
    def variants(self) -> frozenset[Variant]:
        return self.base.variants

    @property
    def is_random(self) -> bool:
        return False

    def builder(self, variant: Variant) -> str | None:
        return self.base.builder(variant)

    def versions(self) -> dict[str, str | int]:
        return self.base.versions()

    def prepare(self, problem: Problem) -> Run:
        cap, notes = self.base.chosen_cap(problem)
        config = shop_config(problem.variant, self.base.delta, problem.on_interrupt)
        rules = [(self.base.rule, cap)] if self.alone else []

        def run(scenario: Scenario | None, seed: int) -> Answer:
            found = pilot.rollout(problem.instance, config, rules=rules, scenario=scenario)
            return Answer(found.schedule, decisions=found.decisions, notes=notes)

        return run


def parse_pilot(spec: str, delta: float = 0.0) -> PilotPolicy:
    """`pilot`, or `pilot:lrpt+cap0.7`.

    Raises:
        UnknownNameError, UsageError: as `parse_rule`; or a rule that draws.
    """
    head, colon, tail = spec.lower().partition(":")
    if head != "pilot":
        raise UsageError(f"policy {spec!r}: write pilot, or pilot:RULE such as pilot:lrpt+cap0.7")
    base = parse_rule(tail if colon else "lrpt", delta)
    if base.is_random:
        raise UsageError(
            f"policy {spec!r}: {base.rule!r} draws, but the pilot needs a rule that does not; try pilot:lrpt"
        )
    return PilotPolicy(base, bool(colon))
