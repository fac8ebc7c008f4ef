"""Shortest remaining output first, with true or guessed lengths; and TRAIL, which spares the nearly done."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.lengths import Kind, Lengths
from dispatchgym.solvers.llm.ranked import ranked_step


class Srtf:
    """Whoever has the least left to put out is served first, and preempts the others.

    Source: Schrage, 1968; as a baseline in hao-ai-lab/vllm-ltr.

    Args:
        lengths: where output lengths come from.
        sigma: noise of "noisy" lengths.
        spare: requests that have put out this share of their first guess are not preempted any more; inf: all may be.
        how: "recompute" or "swap".
    """

    name = "srtf"

    def __init__(
        self,
        lengths: Kind = "oracle",
        sigma: float = 0.5,
        spare: float = float("inf"),
        how: Literal["recompute", "swap"] = "recompute",
    ) -> None:
        self.lengths = Lengths(lengths, sigma)
        self.oracle = lengths != "max"
        self.spare = spare
        self.how = how

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.lengths.reset(seed)

    def decide(self, view: EngineView) -> Plan:
        running, waiting = self.lengths.guess(view)
        left = running - view.running.generated
        spared = view.running.generated >= self.spare * running
        return ranked_step(
            view, np.where(spared, left - 1e9, left), waiting - view.waiting.generated, how=self.how, poll=8
        )


class Trail(Srtf):
    """Srtf with noisy lengths that preempts a request only before it has put out 0.8 of its predicted length.

    Source: Shahout et al., TRAIL. Departure: the original predicts anew at every token from hidden states; here one
    guess a request, the truth times a lognormal factor.
    """

    name = "trail"

    def __init__(self, sigma: float = 0.3, spare: float = 0.8) -> None:
        super().__init__("noisy", sigma, spare)
