"""What a scheduler of an LLM engine is asked to serve, and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from dispatchgym.agents.evaluation.llm.captured import CapturedPrompts
from dispatchgym.agents.simulation.runs import with_slos
from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.backends import SIMULATOR, RunsOn
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.executor import Executor, SimulatedExecutor
from dispatchgym.envs.llm.profile import Profile, load_profile
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.hindsight import Hindsight, Requests, solve

WORLDS: dict[str, str] = {
    "past-future": "Admission under KV pressure (Past-Future)",
    "flow-prefill": "Prompts with deadlines (FlowPrefill)",
    "laps": "Short prompts between long ones (LAPS)",
    "batch-llm": "Offline batch with shared prefixes (BatchLLM)",
    "i-dlm": "Strided decoding in a stable batch (I-DLM)",
    "exspec": "Batched speculative decoding on dense tensors (EXSPEC)",
    "small": "Small traces with a hindsight bound",
    "own": "Own traffic",
}
"""World -> what a reader calls it."""

METRICS: dict[str, str] = {
    "past-future": "goodput_tps",
    "flow-prefill": "goodput_rps",
    "laps": "goodput_rps",
    "batch-llm": "goodput_tps",
    "i-dlm": "goodput_tps",
    "exspec": "goodput_tps",
    "small": "hindsight_pct",
    "own": "goodput_rps",
}
"""World -> the value of a run."""

FIRST_SEED = 2**32
"""Of the tested workloads; what trains or tunes draws seeds below 2**31."""


@dataclass(frozen=True)
class Traffic:
    """A recipe for workloads on an engine; the seed is what is drawn. Small: it travels to worker processes.

    Args:
        name: what results call it.
        workload: a name that `workloads.load` knows, or a file.
        engine: size and limits.
        requests: how many, None for all of a file.
        parameters: of a generator.
        rate_scale: everything arrives so many times as fast.
        rate_per_s: of twins, and of files without arrival times.
        ttft_slo_s, tpot_slo_s: bounds of every request, None for the workload's own.
        profile: step times.
        terms: coefficients of the profile that this contest replaces.
        content: digest of a file's bytes.
        clients: so many clients wait for an answer before they ask again, see `closed_loop`; 0: requests come when they
            come.
        until_s: seconds that clients go on.
        captured: steps of short prompts are captured, see `captured`.
    """

    name: str
    workload: str
    engine: EngineConfig
    requests: int | None = None
    parameters: tuple[tuple[str, Any], ...] = ()
    rate_scale: float = 1.0
    rate_per_s: float | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    profile: str = "h200-8b"
    terms: tuple[tuple[str, float], ...] = ()
    content: str = ""
    clients: int = 0
    until_s: float = 0.0
    captured: bool = False

    @property
    def is_plain(self) -> bool:
        """The plain engine under arrivals that nobody's answers hold up: what is tuned on, and in `llm/all`."""
        return not (self.clients or self.captured)

    @cached_property
    def digest(self) -> str:
        """sha256 of all that a run depends on besides the seed."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    @property
    def is_drawn(self) -> bool:
        """Whether seeds give different requests."""
        return self.workload in workloads.GENERATORS or self.workload.endswith("-twin")

    def draw(self, seed: int) -> Workload:
        """The requests of a seed.

        Raises:
            DispatchGymError: a workload that cannot be made or read.
        """
        made = workloads.load(
            self.workload,
            requests=self.requests if self.is_drawn else None,
            rate_scale=self.rate_scale,
            rate_per_s=self.rate_per_s,
            seed=seed,
            parameters=dict(self.parameters),
        )
        if self.requests is not None and self.requests < len(made):
            made = made.take(np.arange(self.requests))
        return with_slos(made, self.ttft_slo_s, self.tpot_slo_s)

    def step_times(self) -> Profile:
        """The profile with this contest's terms."""
        terms: dict[str, Any] = dict(self.terms)
        return replace(load_profile(self.profile), **terms)

    def executor(self, state: State) -> Executor:
        """What runs the steps, where somebody looks on or steps are captured."""
        times = self.step_times()
        if self.captured:
            return CapturedPrompts(state, times)
        return SimulatedExecutor(state, times.segments, times.pause_s)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed draws, the same for every policy.

    Args:
        workload: the requests. seed: of the engine and of the scheduler.
        hindsight: in the world "small", the best without preemption.
        watch: makes what runs the steps, where somebody looks on.
    """

    workload: Workload
    seed: int
    hindsight: Hindsight | None = None
    watch: Callable[[State], Executor] | None = None


@dataclass(frozen=True, slots=True)
class LlmProblem:
    """One traffic of a suite in one contest.

    Args:
        suite: the suite it belongs to.
        group: what is averaged together, such as a load.
        instance: the traffic and its engine.
        variant: the contest, a key of WORLDS.
        first_seed: of the workloads drawn.
        runs_on: what runs the steps.
    """

    suite: str
    group: str
    instance: Traffic
    variant: str
    first_seed: int = FIRST_SEED
    runs_on: RunsOn = SIMULATOR
    reference: None = None

    @property
    def family(self) -> str:
        return "llm"

    @property
    def metric(self) -> str:
        return METRICS[self.variant]

    @property
    def varies(self) -> bool:
        return self.instance.is_drawn

    @property
    def setting(self) -> str:
        where = "" if self.runs_on.is_simulated else f" {self.runs_on}"
        return f"{self.variant} {self.first_seed}{where}"

    @property
    def records(self) -> int:
        return 400

    def scenario_name(self, seed: int) -> str | None:
        """How results name the requests of a seed, or None where they are always the same."""
        return f"seed={seed}" if self.varies else None

    def scenario(self, seed: int) -> Scenario:
        """The requests of `seed`: the same for every policy, and for every load of the same kind of traffic."""
        drawn = self.first_seed + seed if self.varies else 0
        if self.variant == "small":
            return Scenario(*_in_rounds(self.instance, drawn, seed))
        return Scenario(self.instance.draw(drawn), seed)


def engine_and_executor(
    problem: LlmProblem, scenario: Scenario
) -> tuple[EngineConfig, Callable[[State], Executor] | None]:
    """The engine of a run, and what makes what runs its steps; None for the profile alone.

    Raises:
        UsageError: the requests cannot run on the problem's model.
    """
    traffic, workload = problem.instance, scenario.workload
    if problem.runs_on.is_simulated:
        return traffic.engine, scenario.watch or (traffic.executor if traffic.captured else None)
    backend = problem.runs_on.backend()
    return backend.fit(traffic.engine, workload), partial(backend.executor, workload=workload)


@lru_cache(maxsize=64)
def _in_rounds(traffic: Traffic, drawn: int, seed: int) -> tuple[Workload, int, Hindsight]:
    """Requests that arrive at whole rounds, and the best that can be done with them."""
    workload = traffic.draw(drawn)
    arrival = np.ceil(workload.arrival_s - 1e-9).astype(np.int64)
    requests = Requests(workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), arrival.tolist())
    found = solve(requests, traffic.engine.kv_blocks, most=traffic.engine.max_seqs)
    return replace(workload, arrival_s=arrival.astype(np.float64)), seed, found


@dataclass(frozen=True, slots=True)
class LlmAnswer:
    """What a policy made of one problem.

    Args:
        record: the run.
        status: 'ok', or a solver's.
        notes: what a reader should know about this run.
    """

    record: Record
    status: str = "ok"
    notes: Mapping[str, Any] = field(default_factory=dict)


Run = Callable[[Scenario, int], LlmAnswer]
"""What the seed drew, and a seed of the policy's own -> answer: the part that is timed."""
