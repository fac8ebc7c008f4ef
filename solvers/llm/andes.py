"""Andes: serve whose reader would miss the tokens most."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, RequestTable
from dispatchgym.solvers.llm.peak import Numbers
from dispatchgym.solvers.llm.ranked import ranked_step


class Andes:
    """A knapsack every quantum: most quality gained for the KV held, where quality is tokens there when they are read.

    A reader expects the first token at its bound and then one every bound on the time between tokens; what is out
    but not yet read is a buffer, and whoever has one can wait. While the pool is half empty everyone is served.

    Source: Liu et al., Andes, arXiv 2404.16283, whose cap on preemptions is an average over requests as well.
    Departure: the gain is the share of the tokens to be read within the horizon that are not out yet.

    Args:
        ttft_s, tpot_s: the reader's expectation where a request has no bounds.
        horizon_s: how far ahead the gain looks.
        most_preemptions: for each request that came, on average.
    """

    name = "andes"
    oracle = False

    def __init__(
        self, ttft_s: float = 1.0, tpot_s: float = 0.2, horizon_s: float = 2.0, most_preemptions: float = 1.0
    ) -> None:
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.horizon_s = horizon_s
        self.most_preemptions = most_preemptions

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._ordered = 0

    def value(self, view: EngineView, table: RequestTable) -> Numbers:
        """Gain for each token of KV, the larger the better."""
        ttft = np.where(np.isfinite(table.ttft_slo_s), table.ttft_slo_s, self.ttft_s)
        tpot = np.where(np.isfinite(table.tpot_slo_s), table.tpot_slo_s, self.tpot_s)
        read = np.clip((view.now_s + self.horizon_s - table.arrival_s - ttft) / tpot + 1, 0, table.max_new_tokens)
        missing = np.maximum(read - table.generated, 0)
        return np.asarray(missing / np.maximum(read, 1) / np.maximum(table.known, 1))

    def decide(self, view: EngineView) -> Plan:
        running = -self.value(view, view.running)
        came = view.finished + len(view.running) + len(view.waiting)
        if self._ordered >= self.most_preemptions * came or view.free_blocks > view.kv_blocks // 2:
            running[:] = -np.inf
        plan = ranked_step(view, running, -self.value(view, view.waiting), how="swap", poll=8)
        self._ordered += len(plan.preempt)
        return plan
