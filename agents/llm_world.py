"""LLM engines under random traffic as a world to train in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.agents.llm_runs import EngineRuns
from dispatchgym.agents.playing import play_out
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.worlds import Losses
from dispatchgym.envs.api import GraphSpec
from dispatchgym.envs.llm.batch import ChoicesConfig, Reward
from dispatchgym.envs.llm.draws import DrawConfig, Serving, draw
from dispatchgym.envs.llm.graph import SPEC
from dispatchgym.envs.llm.metrics import slo_met
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.solvers.llm.schedulers import SCHEDULERS

MERIT = "merit"
"""As a rule's name: the linear rule that ranks the choices, by itself."""

TRAINED = Reward(crowd=0.0, recompute=0.0, lasting=0.8)
"""Goodput to first order: requests in time, less the time that all takes times their usual share."""


@dataclass(frozen=True, slots=True)
class LLMSource:
    """Where training problems come from, and what is paid.

    Args:
        choices: how the choices of a step are listed.
        draw: random problems.
        reward: see there; in the unit of a request that met its bounds.
        steps: decisions after which an episode is played to its end by the merit.
    """

    choices: ChoicesConfig = field(default_factory=ChoicesConfig)
    draw: DrawConfig = field(default_factory=DrawConfig)
    reward: Reward = TRAINED
    steps: int = 1500

    def problems(self, count: int, seed: Sequence[int]) -> list[Serving]:
        """`count` problems with their reference times."""
        streams = np.random.SeedSequence(seed).spawn(count)
        return [draw(np.random.default_rng(stream), self.draw).referenced() for stream in streams]


class LLMExam:
    """Losses: per cent by which the goodput is below that of meeting all bounds in the time of first come first served.

    Args:
        source: of the problems. count, seed: how many, and which.
    """

    def __init__(self, source: LLMSource, count: int, seed: int, lanes: int = 1) -> None:
        self.source = source
        self.lanes = lanes
        self.problems = source.problems(count, (seed, 1))

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
        return np.array([loss(simulate(p.workload, SCHEDULERS[rule](), p.engine, p.profile), p) for p in self.problems])

    def greedy(self, network: GraphNetwork) -> Losses:
        return self._played(network, 1, 0.0)

    def best_of(self, network: GraphNetwork, samples: int) -> Losses:
        best: Losses = self._played(network, samples, 1.0).reshape(-1, samples).min(axis=1)
        return best

    def _runs(self, rollouts: int, device: torch.device | str) -> EngineRuns:
        source = self.source
        runs = EngineRuns(len(self.problems), rollouts, source.choices, source.reward, self.lanes, device)
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

    @property
    def steps(self) -> int:
        return self.source.steps

    def runs(self, num_instances: int, rollouts: int, lanes: int, device: torch.device | str) -> EngineRuns:
        return EngineRuns(num_instances, rollouts, self.source.choices, self.source.reward, lanes, device)

    def start(self, runs: EngineRuns, seed: Sequence[int], rollout: int | None = None) -> npt.NDArray[np.float64]:
        runs.start(self.source.problems(runs.num_envs // runs.rollouts, seed))
        unit: npt.NDArray[np.float64] = 100.0 / runs.requests
        return unit

    def finish(self, runs: EngineRuns) -> npt.NDArray[np.float64]:
        return runs.finish()

    def outcome(self, runs: EngineRuns) -> Mapping[str, npt.NDArray[np.number]]:
        return {"loss": runs.loss}

    def exam(self, count: int, seed: int, lanes: int) -> LLMExam:
        return LLMExam(self.source, count, seed, lanes)
