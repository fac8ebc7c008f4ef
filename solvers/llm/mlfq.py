"""FastServe's multi-level feedback queue with skip-join."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, RequestTable
from dispatchgym.solvers.llm.costs import prefill_s
from dispatchgym.solvers.llm.peak import Numbers
from dispatchgym.solvers.llm.ranked import ranked_step


class Mlfq:
    """The less service a request has had, the higher its queue; queue i lasts `quantum_s` * 2^i of service.

    A request joins the queue whose quantum covers reading its prompt (skip-join). Unserved for `starved_s`, it
    starts again at the top, as if it had had no service. Preemption moves KV to the host where there is room.

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
        self._before: dict[int, float] = {}  # request -> service that no longer counts

    def decide(self, view: EngineView) -> Plan:
        return ranked_step(view, self._key(view, view.running), self._key(view, view.waiting), how="swap", poll=2)

    def _key(self, view: EngineView, table: RequestTable) -> Numbers:
        budget = self._spec.config.token_budget
        first = np.array([prefill_s(self._spec.profile, n, budget) for n in table.prompt_tokens.tolist()])
        starved = view.now_s - np.maximum(table.run_s, table.arrival_s) > self.starved_s
        for r, service_s in zip(table.id[starved].tolist(), table.service_s[starved].tolist(), strict=True):
            self._before[r] = service_s
        before = np.array([self._before.get(r, 0.0) for r in table.id.tolist()])
        raised = np.array([r in self._before for r in table.id.tolist()], bool)
        service = np.maximum(np.where(raised, 0.0, first), table.service_s - before)
        level = np.ceil(np.log2(np.maximum(service / self.quantum_s, 1.0)))
        return np.asarray(np.minimum(level, self.levels) * 1e9 + table.arrival_s)
