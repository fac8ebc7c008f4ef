"""Schedulers by the names people type: `vllm`, `sarathi+chunk=256`, `past-future+tuned`, `bundle:NAME`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import Bundle
from dispatchgym.agents.evaluation.family import AnyPolicy, Kind
from dispatchgym.agents.evaluation.llm import tuned
from dispatchgym.agents.evaluation.llm.closed_loop import closed_loop
from dispatchgym.agents.evaluation.llm.judge import value_of
from dispatchgym.agents.evaluation.llm.problem import WORLDS, LlmAnswer, LlmProblem, Run, Scenario, engine_and_executor
from dispatchgym.agents.evaluation.measures import MEASURES
from dispatchgym.agents.evaluation.solver_policies import ortools_version
from dispatchgym.agents.llm_policy import ChoicePolicy
from dispatchgym.agents.runtime import RuntimeName
from dispatchgym.agents.simulation.names import scheduler
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.policy import CompiledPolicy, Policy
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.registry import Registry, unknown_name
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from dispatchgym.solvers.llm.timetable import Timetable

EVERYWHERE: frozenset[str] = frozenset(WORLDS)

Make = Callable[[], Policy | CompiledPolicy]

PORTFOLIO = (
    "oracle", "mc-sf", "srtf", "batch-llm+lengths=oracle", "flow-prefill", "laps", "i-dlm-stationary", "eb-plus",
    "vllm", "sarathi", "aggressive",
)  # fmt: skip
"""What the best in hindsight is chosen from."""

DRAWS = frozenset(("past-future", "trail", "ltr", "batch-llm"))
"""Schedulers whose runs depend on the seed even where the requests do not."""


@dataclass(frozen=True, slots=True)
class SchedulerPolicy:
    """A scheduler with constants of its own.

    Args:
        name: as typed.
        make: what makes a fresh one.
        kind: 'clairvoyant' for one that is told output lengths, or guesses made of them.
    """

    name: str
    make: Make
    kind: Kind = "rule"
    variants: frozenset[str] = EVERYWHERE

    @property
    def is_random(self) -> bool:
        return self.name.partition("+")[0] in DRAWS

    def builder(self, variant: str) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"numba": numba.__version__, "numpy": np.__version__}

    def prepare(self, problem: LlmProblem) -> Run:
        return serve(self.make, problem)


@dataclass(frozen=True, slots=True)
class TunedScheduler:
    """A scheduler with the constants that were best on the training workloads of the contest at hand; its usual ones
    in a contest where nothing of it is tuned."""

    scheduler: str
    variants: frozenset[str] = EVERYWHERE

    @property
    def name(self) -> str:
        return f"{self.scheduler}+tuned"

    @property
    def kind(self) -> Kind:
        return parse_scheduler(self.scheduler).kind

    @property
    def is_random(self) -> bool:
        return self.scheduler in DRAWS

    def builder(self, variant: str) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"numba": numba.__version__, "numpy": np.__version__, "tuned": tuned.digest()}

    def prepare(self, problem: LlmProblem) -> Run:
        spec = tuned.table().get(problem.variant, {}).get(self.scheduler, self.scheduler)
        return serve(scheduler(spec), problem, {"tuned": spec})


@dataclass(frozen=True, slots=True)
class BestInHindsight:
    """Of PORTFOLIO and all that is tuned for the contest, the one that turned out best on these very requests."""

    name: str = "best-in-hindsight"
    kind: Kind = "clairvoyant"
    variants: frozenset[str] = EVERYWHERE
    is_random: bool = False

    def builder(self, variant: str) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"numba": numba.__version__, "numpy": np.__version__, "tuned": tuned.digest()}

    def prepare(self, problem: LlmProblem) -> Run:
        names = (*PORTFOLIO, *tuned.table().get(problem.variant, {}).values())
        runs = {name: serve(scheduler(name), problem) for name in names}
        better = MEASURES[problem.metric].better

        def run(scenario: Scenario, seed: int) -> LlmAnswer:
            answers = {name: each(replace(scenario, watch=None), seed) for name, each in runs.items()}
            values = {name: better(value_of(problem, answer, scenario)) for name, answer in answers.items()}
            best = min(values, key=values.__getitem__)
            answer = answers[best] if scenario.watch is None else runs[best](scenario, seed)
            return replace(answer, notes={"best": best})

        return run


@dataclass(frozen=True, slots=True)
class HindsightPolicy:
    """The optimum that gaps are measured against, as CP-SAT found it, carried out on the engine."""

    name: str = "hindsight"
    kind: Kind = "solver"
    variants: frozenset[str] = frozenset(("small",))
    is_random: bool = False

    def builder(self, variant: str) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"ortools": ortools_version()}

    def prepare(self, problem: LlmProblem) -> Run:
        def run(scenario: Scenario, seed: int) -> LlmAnswer:
            found = scenario.hindsight
            assert found is not None, "the world 'small' has a hindsight optimum"
            answer = serve(lambda: Timetable(found.start), problem)(scenario, seed)
            return replace(answer, status=found.status)

        return run


@dataclass(frozen=True, slots=True)
class LearnedScheduler:
    """A bundle's network, which plans every step choice by choice.

    Args:
        called: the bundle's name or path as given.
        folder: where it lies.
        digest: of its manifest: two bundles at one path are two policies.
        runtime: that computes its logits.
    """

    called: str
    folder: Path
    digest: str
    runtime: RuntimeName = "numpy"
    kind: Kind = "learned"
    variants: frozenset[str] = EVERYWHERE
    is_random: bool = False

    @property
    def name(self) -> str:
        return f"bundle:{self.called}"

    def builder(self, variant: str) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"numba": numba.__version__, "numpy": np.__version__, "bundle": self.digest[:16]}

    def prepare(self, problem: LlmProblem) -> Run:
        loaded = _loaded(self.folder, self.digest, self.runtime)
        return serve(lambda: ChoicePolicy(loaded.runtime, loaded.engine, self.name), problem)


@lru_cache(maxsize=8)
def _loaded(folder: Path, digest: str, runtime: RuntimeName) -> Bundle:
    """The bundle, read once a process."""
    loaded = bundles.load(folder, runtime)
    if loaded.digest != digest:
        raise UsageError(f"{folder}: the bundle has changed since the evaluation began")
    return loaded


def serve(make: Make, problem: LlmProblem, notes: dict[str, Any] | None = None) -> Run:
    """The run of a fresh scheduler on a problem."""
    traffic = problem.instance
    times = traffic.step_times()

    def run(scenario: Scenario, seed: int) -> LlmAnswer:
        engine, executor = engine_and_executor(problem, scenario)
        if traffic.clients:
            record = closed_loop(
                scenario.workload, make(), engine, times, scenario.seed,
                clients=traffic.clients, until_s=traffic.until_s, executor=executor,
            )  # fmt: skip
        else:
            record = simulate(scenario.workload, make(), engine, times, scenario.seed, executor=executor)
        return LlmAnswer(record, notes=notes or {})

    return run


HERE = "dispatchgym.agents.evaluation.llm"
POLICIES = Registry(
    "scheduler",
    {
        **dict.fromkeys(SCHEDULERS, f"{HERE}.policies:parse_scheduler"),
        "best-in-hindsight": f"{HERE}.policies:parse_best",
        "hindsight": f"{HERE}.policies:parse_hindsight",
        "merit": f"{HERE}.policies:parse_merit",
        "bundle": f"{HERE}.policies:parse_bundle",
    },
)
"""First word of a policy's name -> parser of the whole name."""

FORMS = (
    (", ".join(SCHEDULERS), "a published scheduler; docs/simulate.md says what each is"),
    ("SCHEDULER+NAME=VALUE", "with a constant of its own, such as sarathi+chunk=256"),
    ("SCHEDULER+tuned", "with the constants that were best on the training workloads of each contest"),
    ("menu", "of nine schedulers the one that a simulation of the last 100 requests found best; no learning"),
    ("oracle, best-in-hindsight", "told output lengths; and the best of eleven and all tuned on these very requests"),
    ("hindsight", "llm/small: the optimum without preemption, by CP-SAT"),
    ("merit", "the rule that learned schedulers start from"),
    ("bundle:NAME, bundle:PATH", "a learned scheduler"),
)
"""How a policy may be written, and what it is: what `--list` prints."""


def parse_policy(spec: str, delta: float = 0.0) -> AnyPolicy:
    """The scheduler called `spec`; `delta` is for job shops.

    Raises:
        UnknownNameError: with the closest names.
        UsageError: a known scheduler with an option that it does not have.
    """
    text = spec.strip()
    head = re.split(r"[@+:]", text, maxsplit=1)[0].lower()
    if head not in POLICIES:
        raise unknown_name("scheduler", head, [*POLICIES, *bundles.typed("llm")])
    policy: AnyPolicy = POLICIES[head](text)
    return policy


def parse_scheduler(spec: str) -> SchedulerPolicy | TunedScheduler:
    """`NAME` or `NAME+CONSTANT=VALUE`."""
    if spec.endswith("+tuned"):
        return _tuned(spec)
    make = scheduler(spec)
    try:
        made = make()
    except TypeError as error:
        raise UsageError(f"scheduler {spec!r}: {error}") from error
    return SchedulerPolicy(spec, make, "clairvoyant" if made.oracle else "rule")


def _tuned(spec: str) -> TunedScheduler:
    name = spec.removesuffix("+tuned")
    known = sorted({each for found in tuned.table().values() for each in found})
    if name not in known:
        raise unknown_name("tuned scheduler", spec, [f"{each}+tuned" for each in known])
    return TunedScheduler(name)


def parse_best(spec: str) -> BestInHindsight:
    """`best-in-hindsight`, which has no options."""
    if spec.lower() != "best-in-hindsight":
        raise UsageError(f"policy {spec!r}: best-in-hindsight has no options")
    return BestInHindsight()


def parse_hindsight(spec: str) -> HindsightPolicy:
    """`hindsight`, which has no options."""
    if spec.lower() != "hindsight":
        raise UsageError(f"policy {spec!r}: hindsight has no options")
    return HindsightPolicy()


def parse_merit(spec: str) -> SchedulerPolicy:
    """`merit`, which has no options."""
    if spec.lower() != "merit":
        raise UsageError(f"policy {spec!r}: merit has no options")
    return SchedulerPolicy("merit", ChoicePolicy)


def parse_bundle(spec: str) -> LearnedScheduler:
    """`bundle:NAME` or `bundle:PATH`.

    Raises:
        UnknownNameError: no such bundle; BundleError: one that cannot be trusted; UsageError: a bundle of another
            family.
    """
    called = spec.partition(":")[2]
    if not called:
        names = ", ".join(bundles.shipped("llm")) or "none"
        raise UsageError(f"policy {spec!r}: write bundle:NAME or bundle:PATH; shipped for LLM engines are {names}")
    folder = bundles.find(called).resolve()
    loaded = bundles.load(folder, "numpy")
    _ = loaded.engine  # raises for a bundle of another family
    runtime: RuntimeName = "onnx" if bundles.ONNX in loaded.manifest["files"] else "numpy"
    return LearnedScheduler(called, folder, loaded.digest, runtime)
