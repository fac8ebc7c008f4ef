"""A step being filled: what most schedulers written over the view have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.policy import EngineView, Plan

UNTIL_EVENT = 1 << 30
"""Steps to hold when nothing can change before a request arrives or ends."""


class Filling:
    """Grants so far, and what is left for more: token budget, free blocks, places.

    Attributes:
        grants: (request, tokens) in order.
        budget, free, places: tokens, blocks and requests that still fit.
        short: the running did not find enough blocks, so the engine will preempt.
    """

    def __init__(self, view: EngineView, budget: int | None = None) -> None:
        self.view = view
        self.grants: list[tuple[int, int]] = []
        self.budget = view.token_budget if budget is None else min(budget, view.token_budget)
        self.free = view.free_blocks
        self.places = view.free_seqs
        self.short = False
        self.prefills = 0

    def decode(self, who: npt.NDArray[np.bool_] | None = None, tokens: int = 1) -> None:
        """The next `tokens` tokens of the running requests that decode (of those, `who`), in order of admission."""
        r = self.view.running
        chosen = r.decoding if who is None else r.decoding & who
        index = np.flatnonzero(chosen)[: self.budget // tokens]
        need = np.maximum(self.view.blocks_for(r.computed[index] + tokens) - r.blocks[index], 0)
        self.grants += [(i, tokens) for i in r.id[index].tolist()]
        self.budget -= tokens * len(index)
        self.free -= int(np.sum(need))
        self.short = self.short or self.free < 0

    def read(self, k: int, piece: int | None = None) -> int:
        """The next piece of the prompt of running request number k of the view; returns its tokens."""
        r = self.view.running
        n = min(int(r.known[k] - r.computed[k]), self.budget, piece or self.budget)
        if n > 0:
            need = int(self.view.blocks_for(int(r.computed[k]) + n)) - int(r.blocks[k])
            self._take(int(r.id[k]), n, max(0, need))
            self.short = self.short or self.free < 0
        return max(n, 0)

    def read_all(self, piece: int | None = None) -> None:
        """The next pieces of all running requests that still read their prompt, in order of admission."""
        for k in np.flatnonzero(~self.view.running.decoding).tolist():
            self.read(k, piece)

    def let_in(self, k: int, piece: int | None = None, *, spare: int = 0) -> int:
        """Admit waiting request number k of the view, if its whole prompt fits; returns its tokens, 0 if not.

        Blocks of the prefix cache are counted as if they were free: cautious.
        """
        w = self.view.waiting
        if self.places <= 0 or self.budget <= 0 or self.short:
            return 0
        whole = int(self.view.blocks_for(int(w.known[k]))) + spare
        n = min(int(w.left[k]), self.budget, piece or self.budget)
        if whole > self.free or n <= 0:
            return 0
        self.places -= 1
        held = int(w.computed[k]) if w.host_blocks[k] else int(w.cached_tokens[k])
        self._take(int(w.id[k]), n, int(self.view.blocks_for(held + n)))
        return n

    def _take(self, request: int, tokens: int, blocks: int) -> None:
        self.grants.append((request, tokens))
        self.budget -= tokens
        self.free -= blocks
        self.prefills += 1

    def plan(self, *, poll: int = 1, **orders: Any) -> Plan:
        """The plan. One that only decodes is held until a request arrives or ends; `poll` steps while others wait."""
        hold = 1
        if self.grants and not self.prefills and not self.short:
            hold = UNTIL_EVENT if not len(self.view.waiting) else poll
        return Plan(grants=self.grants, hold_steps=hold, **orders)
