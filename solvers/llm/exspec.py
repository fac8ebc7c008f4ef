"""EXSPEC and EQSPEC: batches of speculative decoding on dense tensors."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.filling import Filling


class EqSpec:
    """Every step verifies a draft for the first `batch` requests, whatever their lengths: the engine realigns them.

    Source: arXiv 2510.22876; eBay/spec_dec. Departure: prompts run in steps of their own as requests come in. On a
    paged engine there is nothing to realign; `ragged_s` of the profile prices it for a dense one.

    Args:
        draft: tokens drafted; the engine's `max_spec` bounds it.
        batch: requests of a step.
        window: requests among which EXSPEC looks for equal lengths.
    """

    name = "eqspec"
    oracle = False
    groups = False

    def __init__(self, draft: int = 5, batch: int = 16, window: int = 48) -> None:
        self.draft = draft
        self.batch = batch
        self.window = window

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._tokens = 1 + min(self.draft, spec.config.max_spec)
        self.grouped = 0
        self.fallbacks = 0

    def decide(self, view: EngineView) -> Plan:
        fill = Filling(view)
        fill.read_all()
        for k in range(min(len(view.waiting), self.window - len(view.running))):
            if not fill.let_in(k):
                break
        if fill.grants:
            return fill.plan()
        chosen = np.zeros(len(view.running), bool)
        chosen[self._members(view)] = True
        fill.decode(chosen, self._tokens)
        return Plan(grants=fill.grants)

    def _members(self, view: EngineView) -> np.ndarray:
        active = np.flatnonzero(view.running.decoding)[: self.window]
        if self.groups:
            lengths, counts = np.unique(view.running.computed[active], return_counts=True)
            full = lengths[counts >= min(self.batch, len(active))]
            if len(full):
                first = active[np.isin(view.running.computed[active], full)][0]
                same = active[view.running.computed[active] == view.running.computed[first]]
                self.grouped += 1
                return np.asarray(same[: self.batch])
        self.fallbacks += 1
        return np.asarray(active[: self.batch])


class ExSpec(EqSpec):
    """Of a window, the first `batch` requests of equal length, which need no realigning; without such, as EQSPEC."""

    name = "exspec"
    groups = True
