"""FastServe's multi-level feedback queue with skip-join."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, RequestTable
from dispatchgym.solvers.llm.costs import prefills_s
from dispatchgym.solvers.llm.identity import Who, who
from dispatchgym.solvers.llm.peak import Numbers
from dispatchgym.solvers.llm.ranked import ranked_step


class Mlfq:
    """The less service a request has had, the higher its queue; queue i lasts `quantum_s` * 2^i of service.

    A request joins the queue whose quantum covers reading its prompt (skip-join). Unserved for `starved_s`, looked at
    every `every` steps, it joins anew, as if it had had no service. Nobody preempts within a queue. Preemption moves KV
    to the host; whose KV finds no room there is not preempted.

    Source: Wu et al., FastServe; constants as in hao-ai-lab/vllm-ltr. Departures: no proactive swapping; times come
    from the latency profile; the starved join by the time to read all their tokens again, not at the top, and wait
    twice as long for every further time: with more of them than fit each would run for a step and be preempted again.
    """

    name = "mlfq"
    oracle = False
    levels = 16

    def __init__(self, quantum_s: float = 0.01, starved_s: float = 3.0, every: int = 100) -> None:
        self.quantum_s = quantum_s
        self.starved_s = starved_s
        self.every = every

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._spec = spec
        self._before: dict[Who, float] = {}  # service that no longer counts
        self._raised: dict[Who, int] = {}  # times
        self._looked = -self.every

    def decide(self, view: EngineView) -> Plan:
        if view.step >= self._looked + self.every:
            self._looked = view.step
            here = {*who(view.running), *who(view.waiting)}
            self._before = {each: service_s for each, service_s in self._before.items() if each in here}
            self._raised = {each: times for each, times in self._raised.items() if each in here}
            self._raise_starved(view, view.running)
            self._raise_starved(view, view.waiting)
        running = self._level(view.running) * 1e9 + view.running.arrival_s
        running[view.running.blocks > view.host_free] = -np.inf
        waiting = self._level(view.waiting) * 1e9 + view.waiting.arrival_s + 5e8
        return ranked_step(view, running, waiting, how="swap", poll=2)

    def _raise_starved(self, view: EngineView, table: RequestTable) -> None:
        everyone = who(table)
        raised = np.array([self._raised.get(each, 0) for each in everyone])
        starved = view.now_s - np.maximum(table.run_s, table.arrival_s) > self.starved_s * 2.0**raised
        for k in np.flatnonzero(starved).tolist():
            self._before[everyone[k]] = float(table.service_s[k])
            self._raised[everyone[k]] = int(raised[k]) + 1

    def _level(self, table: RequestTable) -> Numbers:
        """Number of the queue that each request is in, 0 the highest."""
        budget = self._spec.config.token_budget
        first = prefills_s(self._spec.profile, table.known, budget)
        before = np.array([self._before.get(each, 0.0) for each in who(table)])
        service = np.maximum(first, table.service_s - before)
        level = np.ceil(np.log2(np.maximum(service / self.quantum_s, 1.0)))
        return np.asarray(np.minimum(level, self.levels))
