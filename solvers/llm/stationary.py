"""I-DLM's stationary batch: decoding goes on with the same members until somebody new arrives."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.filling import UNTIL_EVENT, Filling


class Stationary:
    """Strides of up to `stride` tokens for every request; the batch is kept as it is while nobody waits.

    Prompts run in steps of their own, before decoding. With nobody waiting the batch is held, requests that end
    drop out in place, and preparing it anew (`rebuild_s` of the profile) is saved.

    Source: I-DLM, arXiv 2604.11035; thuEcstasy/I-DLM. Departure: a stride is a verified draft of `stride` - 1 tokens
    under the engine's acceptance rate.

    Args:
        stride: tokens of a request and step; the engine's `max_spec` bounds it.
        steps: longest time the batch is held, in steps; 1 for a batch that is prepared anew at every step.
        look: arrivals end the hold; without, it goes on for `steps`.
    """

    name = "i-dlm-stationary"
    oracle = False

    def __init__(self, stride: int = 4, steps: int = UNTIL_EVENT, look: bool = True) -> None:
        self.stride = stride
        self.steps = steps
        self.look = look

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._stride = min(self.stride, 1 + spec.config.max_spec)

    def decide(self, view: EngineView) -> Plan:
        fill = Filling(view)
        fill.read_all()
        for k in range(len(view.waiting)):
            if not fill.let_in(k):
                break
        if fill.grants:
            return fill.plan()
        running = view.running
        room = np.minimum(self._stride, running.max_new_tokens - running.generated)
        for tokens in range(self._stride, 0, -1):
            fill.decode(room == tokens, tokens)
        through = frozenset(("finish",) if self.look else ("finish", "arrival"))
        return Plan(grants=fill.grants, hold_steps=1 if len(view.waiting) else self.steps, hold_through=through)
