"""FastServe's multi-level feedback queue with skip-join."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, RequestTable
from dispatchgym.solvers.llm.costs import prefill_s
from dispatchgym.solvers.llm.peak import Numbers
from dispatchgym.solvers.llm.ranked import ranked_step


class Mlfq:
    """The less service a request has had, the higher its queue; queue i lasts `quantum_s` * 2^i of service.

    A request joins the queue whose quantum covers reading its prompt (skip-join). Unserved for `starved_s`, it is
    raised to the top until served. Preemption moves KV to the host where there is room.

    Source: Wu et al., FastServe; constants as in hao-ai-lab/vllm-ltr. Departures: no proactive swapping; a prompt's
    time comes from the latency profile.
    """

    name = "mlfq"
    oracle = False
    levels = 16

    def __init__(self, quantum_s: float = 0.01, starved_s: float = 3.0) -> None:
        self.quantum_s = quantum_s
        self.starved_s = starved_s

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._spec = spec

    def decide(self, view: EngineView) -> Plan:
        return ranked_step(view, self._key(view, view.running), self._key(view, view.waiting), how="swap", poll=2)

    def _key(self, view: EngineView, table: RequestTable) -> Numbers:
        budget = self._spec.config.token_budget
        first = np.array([prefill_s(self._spec.profile, n, budget) for n in table.prompt_tokens.tolist()])
        service = np.maximum(first, table.service_s)
        level = np.ceil(np.log2(np.maximum(service / self.quantum_s, 1.0)))
        idle = view.now_s - np.maximum(table.run_s, table.arrival_s)
        level = np.where(idle > self.starved_s, 0, np.minimum(level, self.levels))
        return np.asarray(level * 1e9 + table.arrival_s)
