"""LLM engines under random traffic as a world to train in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.agents.llm_in_turn import EnginesInTurn
from dispatchgym.agents.llm_runs import EngineRuns
from dispatchgym.agents.playing import play_out
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.worlds import Losses
from dispatchgym.envs.api import GraphSpec, UsageError
from dispatchgym.envs.llm.backends import AUTO, SIMULATED, TINY, Backend, RunsOn
from dispatchgym.envs.llm.batch import ChoicesConfig, Reward
from dispatchgym.envs.llm.draws import DrawConfig, Serving, draw, largest_engine
from dispatchgym.envs.llm.graph import SPEC
from dispatchgym.envs.llm.metrics import slo_met
from dispatchgym.envs.llm.profile import load_profile, profile_names
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.schedulers import SCHEDULERS

Engines = EngineRuns | EnginesInTurn

MERIT = "merit"
"""As a rule's name: the linear rule that ranks the choices, by itself."""

TRAINED = Reward(crowd=0.0, recompute=0.0, lasting=0.8)
"""Goodput to first order: requests in time, less the time that all takes times their usual share."""


@dataclass(frozen=True, slots=True)
class LLMSource:
    """Where training problems come from, what is paid, and what runs the steps.

    Args:
        choices: how the choices of a step are listed.
        draw: random problems.
        reward: see there; in the unit of a request that met its bounds.
        steps: decisions after which an episode is played to its end by the merit.
        executor: "simulated", or "torch" or module:attr for real steps, whose times are then the clock; see `RunsOn`.
            Needs `draw.profile`, so that rates and bounds suit the model's speed, and runs one episode at a time.
        model, device: of a real executor, as in `RunsOn`.
    """

    choices: ChoicesConfig = field(default_factory=ChoicesConfig)
    draw: DrawConfig = field(default_factory=DrawConfig)
    reward: Reward = TRAINED
    steps: int = 1500
    executor: str = SIMULATED
    model: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.executor == SIMULATED and (self.model or self.device):
            raise UsageError("llm.model and llm.device go with llm.executor=torch; without, step times are simulated")
        if self.executor != SIMULATED and self.draw.profile is None:
            raise UsageError(
                f"llm.executor is {self.executor!r}: the traffic drawn must suit its speed; name its step times by "
                f"llm.draw.profile, one of {', '.join(profile_names())} or a file that `dispatchgym calibrate` wrote"
            )

    @property
    def is_simulated(self) -> bool:
        """Step times come from the problems' profiles."""
        return self.executor == SIMULATED

    def backend(self) -> Backend | None:
        """What runs the steps, with room for the largest engine that may be drawn; None for the profiles."""
        if self.is_simulated:
            return None
        assert self.draw.profile is not None
        backend = RunsOn(self.executor, self.model or TINY, self.device or AUTO).backend()
        one = Workload(np.zeros(1), np.ones(1, np.int32), np.ones(1, np.int32))
        engine = backend.fit(largest_engine(self.draw.longest), one)
        backend.executor(fresh_state(one, engine, load_profile(self.draw.profile), 0, steps=False, tokens=False), one)
        return backend

    def problems(self, count: int, seed: Sequence[int], backend: Backend | None = None) -> list[Serving]:
        """`count` problems that fit the backend, with their reference times by the profile."""
        streams = np.random.SeedSequence(seed).spawn(count)
        drawn = [draw(np.random.default_rng(stream), self.draw) for stream in streams]
        if backend is not None:
            drawn = [replace(each, engine=backend.fit(each.engine, each.workload)) for each in drawn]
        return [each.referenced() for each in drawn]

    def runs(self, num_instances: int, rollouts: int, lanes: int, device: torch.device | str, steps: float) -> Engines:
        """Engines of these problems: all at a time, or one after the other, each for so many decisions."""
        backend = self.backend()
        if backend is None:
            return EngineRuns(num_instances, rollouts, self.choices, self.reward, lanes, device)
        return EnginesInTurn(num_instances, rollouts, self.choices, self.reward, device, backend, steps)


class LLMExam:
    """Losses: per cent by which the goodput is below that of meeting all bounds in the time of first come first served.

    That time is simulated; everything else runs where training does.

    Args:
        source: of the problems. count, seed: how many, and which.
    """

    def __init__(self, source: LLMSource, count: int, seed: int, lanes: int = 1) -> None:
        self.source = source
        self.lanes = lanes
        self.backend = source.backend()
        self.problems = source.problems(count, (seed, 1), self.backend)

    @property
    def groups(self) -> Sequence[str]:
        return [problem.group for problem in self.problems]

    @property
    def digest(self) -> str:
        h = hashlib.sha256()
        for problem in self.problems:
            w = problem.workload
            h.update(repr((problem.engine, problem.profile)).encode())
            for column in (w.arrival_s, w.prompt_tokens, w.output_tokens, w.ttft_slo_s, w.tpot_slo_s):
                h.update(column.tobytes())
        return h.hexdigest()

    def by_rule(self, rule: str) -> Losses:
        if rule == MERIT:
            runs = self._runs(1, "cpu")
            runs.finish()
            return runs.loss
        return np.array([loss(self._scheduled(rule, problem), problem) for problem in self.problems])

    def _scheduled(self, rule: str, problem: Serving) -> Record:
        run = None if self.backend is None else partial(self.backend.executor, workload=problem.workload)
        return simulate(problem.workload, SCHEDULERS[rule](), problem.engine, problem.profile, executor=run)

    def greedy(self, network: GraphNetwork) -> Losses:
        return self._played(network, 1, 0.0)

    def best_of(self, network: GraphNetwork, samples: int) -> Losses:
        best: Losses = self._played(network, samples, 1.0).reshape(-1, samples).min(axis=1)
        return best

    def _runs(self, rollouts: int, device: torch.device | str) -> Engines:
        runs = self.source.runs(len(self.problems), rollouts, self.lanes, device, np.inf)
        runs.start(self.problems)
        return runs

    def _played(self, network: GraphNetwork, rollouts: int, temperature: float) -> Losses:
        runs = self._runs(rollouts, next(network.parameters()).device)
        play_out(network, runs, temperature)
        return runs.loss


def loss(record: Record, problem: Serving) -> float:
    """Of a simulation, as `EngineRuns.loss`."""
    first, rest = slo_met(record)
    share = float((first & rest).mean())
    return 100.0 * (1.0 - share * problem.reference_s / max(record.end_s, 1e-9))


@dataclass(frozen=True, slots=True)
class LLMWorld:
    """Engines under random traffic.

    Reward: what `Reward` pays, in per cent of the requests.
    """

    source: LLMSource

    @property
    def spec(self) -> GraphSpec:
        return SPEC

    @property
    def most_choices(self) -> int:
        return self.source.choices.most

    def steps(self, num_envs: int) -> int:
        return self.source.steps if self.source.is_simulated else self.source.steps * num_envs

    def runs(self, num_instances: int, rollouts: int, lanes: int, device: torch.device | str) -> Engines:
        return self.source.runs(num_instances, rollouts, lanes, device, self.source.steps)

    def start(self, runs: Engines, seed: Sequence[int], rollout: int | None = None) -> npt.NDArray[np.float64]:
        runs.start(self.source.problems(runs.num_envs // runs.rollouts, seed, runs.backend))
        unit: npt.NDArray[np.float64] = 100.0 / runs.requests
        return unit

    def finish(self, runs: Engines) -> npt.NDArray[np.float64]:
        return runs.finish()

    def outcome(self, runs: Engines) -> Mapping[str, npt.NDArray[np.number]]:
        return {"loss": runs.loss}

    def exam(self, count: int, seed: int, lanes: int) -> LLMExam:
        return LLMExam(self.source, count, seed, lanes)
