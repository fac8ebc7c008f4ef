"""Memory-constrained shortest first."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.filling import Filling
from dispatchgym.solvers.llm.lengths import Kind, Lengths
from dispatchgym.solvers.llm.peak import peak_tokens


class McSf:
    """vLLM's steps; the shortest predicted output comes in first, as long as the batch never outgrows the pool.

    The check is the peak over all completion times; the first request that fails it stops admission.

    Source: Jaillet et al., arXiv 2502.07115. Departures: prompts are read in pieces, continuous time.

    Args:
        lengths: where output lengths come from.
        sigma: noise of "noisy" lengths.
        reserve: share of the pool left free; 0 suits true lengths.
        poll: decode steps between two rounds while requests wait: who did not fit may, once the running have moved on.
    """

    name = "mc-sf"

    def __init__(self, lengths: Kind = "oracle", sigma: float = 0.5, reserve: float = 0.0, poll: int = 1) -> None:
        self.lengths = Lengths(lengths, sigma)
        self.oracle = lengths != "max"
        self.reserve = reserve
        self.poll = poll

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.lengths.reset(seed)

    def decide(self, view: EngineView) -> Plan:
        fill = Filling(view)
        fill.decode()
        fill.read_all()
        if len(view.waiting) and not fill.short:
            room = view.kv_blocks * view.block_tokens * (1 - self.reserve)
            running, waiting = self.lengths.guess(view)
            held, left = view.running.known, running - view.running.generated
            for k in np.argsort(waiting - view.waiting.generated, kind="stable").tolist():
                held = np.append(held, view.waiting.known[k])
                left = np.append(left, waiting[k] - view.waiting.generated[k])
                # The last block may hold one token only; the last token is never held.
                if peak_tokens(held + view.block_tokens - 1, left - 1) > room or not fill.let_in(k):
                    break
        return fill.plan(poll=self.poll)
