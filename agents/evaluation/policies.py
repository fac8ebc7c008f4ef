"""Policies by the names people type: `mwkr`, `mwkr+cap0.7`, `sampled:mwkr@128`, `cp-sat@10s+hint:mwkr`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args

import numba
import numpy as np

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.evaluation import tuning
from dispatchgym.agents.evaluation.family import AnyPolicy, Kind
from dispatchgym.agents.evaluation.problem import Problem
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant
from dispatchgym.envs.registry import Registry, unknown_name
from dispatchgym.solvers.jobshop import rules

P = TypeVar("P", bound=AnyPolicy)

ALL_VARIANTS: frozenset[Variant] = frozenset(get_args(Variant))

MOST_SAMPLES = 1_000_000

SAMPLES_AT_ONCE = 256
"""Runs that share one batch: keeps memory small whatever the number of samples."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy made of one problem.

    Args:
        schedule: None when the policy found none.
        status: 'ok' for a policy that just runs to its end; a solver's own status otherwise.
        decisions: choices made, None where the word has no meaning.
        bound: proven lower bound of the makespan, if the policy proves any.
        history: (wall_s, objective, bound) each time a solver improved.
        notes: what a reader should know about this run, such as a tuned constant.
    """

    schedule: Schedule | None
    status: str = "ok"
    decisions: int | None = None
    bound: int | None = None
    history: tuple[tuple[float, int | None, int], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


Run = Callable[[Scenario | None, int], Answer]
"""Scenario and seed -> answer: the part that is timed."""


class Policy(Protocol):
    """What an evaluation asks of a policy. Immutable and picklable: it travels to worker processes.

    Attributes:
        name: canonical; the same policy always has the same name.
        kind: how it works, which decides what it may be compared with.
        variants: the shops it can run in.
        is_random: whether two seeds may differ where there are no shutdowns.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def variants(self) -> frozenset[Variant]: ...
    @property
    def is_random(self) -> bool: ...

    def builder(self, variant: Variant) -> str | None:
        """The schedule builder's name, None for a policy that places operations itself."""

    def versions(self) -> dict[str, str | int]:
        """Whatever besides the package decides its results: library versions, worker counts."""

    def prepare(self, problem: Problem) -> Run:
        """Do what need not be timed (tune, load weights) and return the run itself."""


@dataclass(frozen=True, slots=True)
class RulePolicy:
    """A priority rule, under a limit on the jobs in the shop or without.

    Args:
        rule: a name in `rules.RULES`.
        cap: largest number of jobs in the shop as a share of the machines; 'tuned' chooses it on generated instances.
        delta: the classic shop's schedule builder, 0 non-delay to 1 active.
        has_own_delta: whether `delta` was named with the rule; such a rule runs in the classic shop only.
    """

    rule: str
    cap: float | Literal["tuned"] | None = None
    delta: float = 0.0
    has_own_delta: bool = False

    @property
    def name(self) -> str:
        cap = "" if self.cap is None else "+cap=tuned" if self.cap == "tuned" else f"+cap{self.cap:g}"
        builder = "" if not self.has_own_delta else "+active" if self.delta == 1 else f"+delta{self.delta:g}"
        return f"{self.rule}{cap}{builder}"

    @property
    def kind(self) -> Kind:
        return "rule"

    @property
    def variants(self) -> frozenset[Variant]:
        return frozenset(("jssp",)) if self.has_own_delta else ALL_VARIANTS

    @property
    def is_random(self) -> bool:
        return self.rule == "random"

    def builder(self, variant: Variant) -> str | None:
        return shop_config(variant, self.delta).builder_name

    def versions(self) -> dict[str, str | int]:
        return {"numba": numba.__version__, "numpy": np.__version__}

    def prepare(self, problem: Problem) -> Run:
        cap, notes = self.chosen_cap(problem)

        def run(scenario: Scenario | None, seed: int) -> Answer:
            rollout = self.rollout(problem, scenario, seed, cap)
            return Answer(rollout.schedule, decisions=rollout.decisions, notes=notes)

        return run

    def rollout(self, problem: Problem, scenario: Scenario | None, seed: int, cap: float | None) -> rules.Rollout:
        """One run of the rule under the given cap."""
        config = shop_config(problem.variant, self.delta, problem.on_interrupt)
        return rules.rollout(problem.instance, self.rule, config, cap=cap, scenario=scenario, seed=seed)

    def chosen_cap(self, problem: Problem) -> tuple[float | None, dict[str, Any]]:
        """The cap to run `problem` with, and a note of it when it was tuned."""
        if self.cap != "tuned":
            return self.cap, {}
        instance, config = problem.instance, shop_config(problem.variant, self.delta, problem.on_interrupt)
        cap = tuning.best_cap(self.rule, instance.num_jobs, instance.num_machines, config, problem.shutdown_probability)
        return cap, {"cap": cap}


@dataclass(frozen=True, slots=True)
class SampledRule:
    """The best of many randomised runs of a rule.

    Not for the interrupting shop: keeping the best run there means having seen the shutdowns.

    Args:
        rule: what is randomised.
        samples: runs.
        noise: strength of the randomisation, as `rules.best_of` has it.
    """

    rule: RulePolicy
    samples: int
    noise: float

    @property
    def name(self) -> str:
        noise = "" if self.noise == DEFAULT_NOISE else f"+noise{self.noise:g}"
        return f"sampled:{self.rule.name}@{self.samples}{noise}"

    @property
    def kind(self) -> Kind:
        return "search"

    @property
    def variants(self) -> frozenset[Variant]:
        return self.rule.variants - {"isbjssp"}

    @property
    def is_random(self) -> bool:
        return True

    def builder(self, variant: Variant) -> str | None:
        return self.rule.builder(variant)

    def versions(self) -> dict[str, str | int]:
        return self.rule.versions()

    def prepare(self, problem: Problem) -> Run:
        cap, notes = self.rule.chosen_cap(problem)

        def run(scenario: Scenario | None, seed: int) -> Answer:
            config = shop_config(problem.variant, self.rule.delta)
            best, decisions = None, 0
            streams = np.random.SeedSequence(seed).generate_state(-(-self.samples // SAMPLES_AT_ONCE))
            for k, stream in enumerate(streams.tolist()):
                runs = min(SAMPLES_AT_ONCE, self.samples - k * SAMPLES_AT_ONCE)
                rollout = rules.best_of(
                    problem.instance, self.rule.rule, runs, config, cap=cap, seed=stream, noise=self.noise
                )
                decisions += rollout.decisions
                if best is None or rollout.schedule.makespan < best.makespan:
                    best = rollout.schedule
            return Answer(best, decisions=decisions, notes=notes)

        return run


DEFAULT_NOISE = 0.5
"""Gumbel noise in standard deviations of the scores of the legal jobs."""

FAMILIES = Registry(
    "policy",
    {
        "sampled": "dispatchgym.agents.evaluation.policies:parse_sampled",
        "pilot": "dispatchgym.agents.evaluation.pilot_policy:parse_pilot",
        "cp-sat": "dispatchgym.agents.evaluation.solver_policies:parse_cp_sat",
        "clairvoyant": "dispatchgym.agents.evaluation.solver_policies:parse_clairvoyant",
        "rolling": "dispatchgym.agents.evaluation.solver_policies:parse_rolling",
        "bundle": "dispatchgym.agents.learned_policy:parse_bundle",
        "learned": "dispatchgym.agents.learned_policy:parse_learned",
    },
)
"""First word of a policy's name -> parser of the whole name; rules need no entry."""

FORMS = (
    ("RULE", f"a priority rule: {', '.join(rules.RULES)}"),
    ("RULE+cap0.7", "the rule with at most 0.7 x machines jobs in the shop"),
    ("RULE+cap=tuned", "the cap chosen for each size on generated instances, never on the tested ones"),
    ("RULE+active, RULE+delta0.5", "the rule with its own schedule builder, whatever --builder says (classic shop)"),
    ("sampled:RULE@128", "the best of 128 randomised runs (+noise0.2: stronger randomisation); not with shutdowns"),
    ("pilot, pilot:RULE+cap0.7", "every candidate is tried to the end under three rules, or one; the best goes next"),
    (
        "cp-sat@10s, cp-sat@5d",
        "OR-Tools CP-SAT for 10 s of wall time, or for 5 deterministic seconds (the same work anywhere)",
    ),
    (
        "cp-sat@10s+hint:RULE",
        "started from the rule's schedule, or that of bundle:NAME or learned; +workers:4 for more search threads",
    ),
    ("clairvoyant@10s", "CP-SAT told every shutdown beforehand: the reference of the interrupting shop"),
    (
        "rolling@1s",
        "CP-SAT planning anew at each shutdown, repair and arrival, 1 s each (or 1d); knows no more than a rule",
    ),
    ("bundle:NAME, bundle:PATH", "a learned policy; @128: best of 128 sampled runs (+temperature0.7: closer ones)"),
    ("bundle:NAME+lookahead", "it prefers what also turns out well when a few rules play on (+lookahead8: less so)"),
    ("learned", "in each shop the shipped bundle that was trained for it; @128 as above"),
)
"""How a policy may be written, and what it is: what `--list` prints."""


def parse_policies(listed: str, delta: float = 0.0) -> list[Policy]:
    """The policies of a comma-separated list, in order, each once.

    Raises:
        UnknownNameError, UsageError: as `parse_policy`; or an empty list.
    """
    return in_list(listed, lambda spec: parse_policy(spec, delta))


def in_list(listed: str, parse: Callable[[str], P]) -> list[P]:
    """The policies of a comma-separated list in the order named, each once; `parse` knows one by its name."""
    policies = [parse(spec) for spec in listed.split(",") if spec.strip()]
    if not policies:
        raise UsageError("no policy named; say --policies mwkr,lrpt or see --list")
    return list({policy.name: policy for policy in policies}.values())


def parse_policy(spec: str, delta: float = 0.0) -> Policy:
    """The policy called `spec`; `delta` is the classic shop's builder unless the policy names its own.

    Raises:
        UnknownNameError: with the closest names.
        UsageError: a known policy with an option or a limit that it does not have.
    """
    text = spec.strip()
    head = re.split(r"[@+:]", text, maxsplit=1)[0].lower()
    if head in rules.RULES:
        return parse_rule(text, delta)
    if head in FAMILIES:
        policy: Policy = FAMILIES[head](text, delta)
        return policy
    raise unknown_name("policy", head, [*rules.RULES, *FAMILIES, *bundles.typed("jobshop")])


def parse_rule(spec: str, delta: float = 0.0) -> RulePolicy:
    """A rule and its options: `mwkr`, `mwkr+cap0.7`, `mwkr+cap=tuned`, `mwkr+active`."""
    rule, *options = spec.lower().split("+")
    if rule not in rules.RULES:
        raise unknown_name("rule", rule, rules.RULES)
    cap: float | Literal["tuned"] | None = None
    has_own_delta = False
    for option in options:
        if option == "cap=tuned":
            cap = "tuned"
        elif option.startswith("cap"):
            cap = number(spec, option, option.removeprefix("cap").removeprefix("="), 0.0, 1000.0)
            if cap == 0:
                raise UsageError(f"policy {spec!r}: a cap of 0 lets no job in; try cap0.7")
        elif option == "active":
            delta, has_own_delta = 1.0, True
        elif option.startswith("delta"):
            delta, has_own_delta = number(spec, option, option.removeprefix("delta"), 0.0, 1.0), True
        else:
            known = "cap0.7, cap=tuned, active, delta0.5"
            raise UsageError(f"policy {spec!r}: {option!r} is not an option of a rule; known: {known}")
    return RulePolicy(rule, cap, delta, has_own_delta)


def parse_sampled(spec: str, delta: float) -> SampledRule:
    """`sampled:RULE@128`, with the rule's options and `+noiseX` anywhere behind the rule."""
    head, limit, options = parts(spec.lower())
    rule = head.removeprefix("sampled").removeprefix(":")
    if not rule or not limit or not re.fullmatch(r"\d{1,7}", limit) or not 1 <= int(limit) <= MOST_SAMPLES:
        raise UsageError(
            f"policy {spec!r}: write sampled:RULE@RUNS, such as sampled:mwkr@128, up to {MOST_SAMPLES} runs"
        )
    noise = DEFAULT_NOISE
    for option in options:
        if option.startswith("noise"):
            noise = number(spec, option, option.removeprefix("noise"), 0.0, 1000.0)
    kept = [option for option in options if not option.startswith("noise")]
    return SampledRule(parse_rule("+".join([rule, *kept]), delta), int(limit), noise)


def parts(spec: str) -> tuple[str, str | None, list[str]]:
    """'head@limit+option+option' -> head, limit or None, options; the limit may stand behind any of them."""
    limits = re.findall(r"@([^+@]*)", spec)
    if len(limits) > 1:
        raise UsageError(f"policy {spec!r} has {len(limits)} limits; name one")
    head, *options = re.sub(r"@[^+@]*", "", spec).split("+")
    return head, limits[0] if limits else None, options


def number(spec: str, option: str, text: str, low: float, high: float) -> float:
    """The number in an option, within its range."""
    if not re.fullmatch(r"\d+(\.\d+)?|\.\d+", text) or not low <= float(text) <= high:
        raise UsageError(f"policy {spec!r}: {option!r} needs a number from {low:g} to {high:g}")
    return float(text)


def shop_config(variant: Variant, delta: float, on_interrupt: OnInterrupt = "resume") -> ShopConfig:
    """The simulator's settings; `delta` counts in the classic shop only, the others have one builder."""
    if variant != "jssp" or delta == 0:
        return ShopConfig(variant, on_interrupt=on_interrupt)
    return ShopConfig(variant, "active") if delta == 1 else ShopConfig(variant, "hybrid", delta)
