"""Learning to rank: served by the predicted rank of output lengths, with a guard against starvation."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, RequestTable
from dispatchgym.solvers.llm.identity import Who, who
from dispatchgym.solvers.llm.lengths import Kind, Lengths
from dispatchgym.solvers.llm.peak import Numbers
from dispatchgym.solvers.llm.ranked import ranked_step


class LearningToRank:
    """A score given once, the guessed output length, ranks all requests at every step; lower scores preempt.

    Whoever has gone `starved_s` without service is raised to the top, first come, first served, for `quantum_s`.

    Source: Fu et al., NeurIPS 2024; hao-ai-lab/vllm-ltr. Departures: the predictor is the truth with lognormal noise;
    starvation and quantum count in seconds instead of steps.
    """

    name = "ltr"

    def __init__(
        self, lengths: Kind = "noisy", sigma: float = 0.5, starved_s: float = 10.0, quantum_s: float = 30.0
    ) -> None:
        self.lengths = Lengths(lengths, sigma)
        self.oracle = lengths != "max"
        self.starved_s = starved_s
        self.quantum_s = quantum_s

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.lengths.reset(seed)
        self._raised: dict[Who, float] = {}  # until when

    def decide(self, view: EngineView) -> Plan:
        running, waiting = self.lengths.guess(view)
        self._raised = {each: until for each, until in self._raised.items() if until > view.now_s}
        keys = (self._key(view, view.running, running), self._key(view, view.waiting, waiting))
        return ranked_step(view, *keys, how="recompute", poll=8)

    def _key(self, view: EngineView, table: RequestTable, score: Numbers) -> Numbers:
        everyone = who(table)
        idle = view.now_s - np.maximum(table.run_s, table.arrival_s)
        starved = [everyone[k] for k in np.flatnonzero(idle > self.starved_s).tolist()]
        self._raised |= dict.fromkeys(starved, view.now_s + self.quantum_s)
        raised = [self._raised.get(each, -np.inf) > view.now_s for each in everyone]
        return np.where(raised, table.arrival_s - 1e9, score)
