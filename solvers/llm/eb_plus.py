"""EB+: prompts and decodes in one step, or apart, whichever the mix favours."""

from __future__ import annotations

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.filling import Filling


class EbPlus:
    """vLLM's steps while decodes are at most `share` of a step's tokens; above that prompts run in steps of their own.

    Source: arXiv 2606.00516 (ICML 2026), whose crossover on an H200 is 0.8. Departure: the closed form is this one
    threshold.

    Args:
        share: decode tokens of a mixed step, at most.
    """

    name = "eb-plus"
    oracle = False

    def __init__(self, share: float = 0.8) -> None:
        self.share = share

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        running = view.running
        decodes = int(running.decoding.sum())
        prompts = int((running.known - running.computed)[~running.decoding].sum() + view.waiting.left.sum())
        prompts = min(prompts, view.token_budget - decodes)
        mixed = decodes <= self.share * (decodes + prompts)
        fill = Filling(view)
        if mixed:
            fill.decode()
        fill.read_all()
        for k in range(len(view.waiting)):
            if not fill.let_in(k):
                break
        if not fill.grants:
            fill.decode()
        return fill.plan()
