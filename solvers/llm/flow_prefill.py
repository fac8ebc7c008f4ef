"""FlowPrefill: prompts by feasible deadline, interrupted in the middle of a forward pass."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.costs import prefill_s, prefills_s
from dispatchgym.solvers.llm.filling import Filling
from dispatchgym.solvers.llm.peak import Numbers


class FlowPrefill:
    """One prompt owns the GPU: of those that can still meet their deadline the earliest, then the hopeless ones.

    Decided anew when a request arrives, which interrupts the forward pass at the next segment boundary, and when a
    prompt is read. Short prompts join a short head as long as its slack stays above a tenth of its bound.

    Source: arXiv 2602.16603; HSIEHCHIACHI/FlowPrefill. Departures: the original serves prompts alone, with decoding
    elsewhere; here decode steps run while no prompt is pending, and before the next prompt step when a decoding
    request is half way to its bound on the time between tokens.

    Args:
        batch_tokens: longest head that others join, and most tokens of such a batch.
        slack: share of the head's bound that batching must leave.
        preempt: interrupt forward passes; without, decide between steps only.
    """

    name = "flow-prefill"
    oracle = False

    def __init__(self, batch_tokens: int = 2048, slack: float = 0.1, preempt: bool = True) -> None:
        self.batch_tokens = batch_tokens
        self.slack = slack
        self.preempt = preempt

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._profile = spec.profile
        self._chunk = spec.config.token_budget

    def _predict(self, tokens: int) -> float:
        return prefill_s(self._profile, tokens, self._chunk)

    def priorities(self, view: EngineView) -> tuple[Numbers, Numbers]:
        """Of the running and the waiting; the highest goes first."""
        result = []
        for table in (view.running, view.waiting):
            total = prefills_s(self._profile, table.known, self._chunk)
            slack = table.deadline_s - view.now_s - np.maximum(total - table.service_s, 0)
            result.append(np.where(slack >= 0, 1.0, -1.0) / table.deadline_s)
        return result[0], result[1]

    def decide(self, view: EngineView) -> Plan:
        running, waiting = view.running, view.waiting
        fill = Filling(view)
        reading = np.flatnonzero(~running.decoding)
        late = running.decoding & (view.now_s - running.last_token_s > 0.5 * running.tpot_slo_s)
        if late.any() or (not len(reading) and not len(waiting)):
            fill.decode()
            if fill.grants:
                return fill.plan()
        own, others = self.priorities(view)
        best = reading[np.argmax(own[reading])] if len(reading) else -1
        ranked = np.argsort(-others, kind="stable").tolist()
        if ranked and (best < 0 or others[ranked[0]] > own[best]) and fill.let_in(ranked[0]):
            self._join(view, fill, ranked)
        elif best >= 0:
            fill.read(int(best))
        else:
            fill.decode()
        return fill.plan(interruptible=self.preempt)

    def _join(self, view: EngineView, fill: Filling, ranked: list[int]) -> None:
        waiting, head = view.waiting, ranked[0]
        tokens, least = int(waiting.left[head]), self.slack * waiting.ttft_slo_s[head]
        left_s = waiting.deadline_s[head] - view.now_s
        if tokens > self.batch_tokens or left_s < least or not np.isfinite(left_s):
            return
        for k in ranked[1:]:
            more = tokens + int(waiting.left[k])
            if more > self.batch_tokens:
                continue
            if left_s - self._predict(more) < least:
                break
            if fill.let_in(k):
                tokens = more
