"""LAPS: short and long prompts apart, with an adaptive window in which short ones gather."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.costs import prefill_s
from dispatchgym.solvers.llm.filling import Filling

BUCKETS = (8, 16, 32, 64, 128, 256)  # lengths that graphs are captured for
DEEPEST = 64  # largest batch of them


class Laps:
    """Short prompts (memory-bound) run as a batch of their own; long ones (compute-bound) one at a time, in pieces.

    A batch of short prompts is dispatched when it is `depth` deep, when the window since its first is over, or when
    the least slack falls to `sigma_s`. After a full batch the window becomes the time it took to fill; after a
    partial one the depth becomes its size. The original's depth only ever shrinks: here it doubles after every
    full batch.

    Source: LAPS, arXiv 2601.11589 (MLSys 2026), algorithm 1. Departures: long prompts and decode steps use the time of
    the window; padding to the grid and what capturing it costs are the engine's affair (the suite `llm/laps` has a
    group with each), here buckets order the batch; the constants, which the paper does not give, are ours; decode
    steps, elsewhere in the original, run when nothing is to be read, or when a request is half way to its bound on
    the time between tokens.

    Args:
        short_tokens: longest short prompt.
        piece_tokens: piece of a long one.
        window_s: longest window.
        sigma_s: slack at which a batch must go.
        one_bucket: a batch holds prompts of one bucket alone, for an engine that pads all to the longest.
    """

    name = "laps"
    oracle = False

    def __init__(
        self,
        short_tokens: int = 256,
        piece_tokens: int = 2048,
        window_s: float = 0.006,
        sigma_s: float = 0.02,
        one_bucket: bool = False,
    ) -> None:
        self.short_tokens = short_tokens
        self.piece_tokens = piece_tokens
        self.longest_s = window_s
        self.sigma_s = sigma_s
        self.one_bucket = one_bucket

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._spec = spec
        self.window_s = self.longest_s
        self.depth = DEEPEST

    def decide(self, view: EngineView) -> Plan:
        running, waiting = view.running, view.waiting
        short = np.flatnonzero(waiting.left <= self.short_tokens)
        fill = Filling(view)
        late = running.decoding & (view.now_s - running.last_token_s > 0.5 * running.tpot_slo_s)
        if late.any():
            fill.decode()
            return fill.plan()
        if len(short) and self._is_due(view, short):
            self._dispatch(view, fill, short)
        if not fill.grants:
            self._long(view, fill)
        if not fill.grants:
            fill.decode()
        if fill.grants:
            # a window that runs out must not wait for a long stretch of decode steps
            return fill.plan() if not len(short) else Plan(grants=fill.grants)
        if len(short):
            return Plan(wait_until_s=self._opened_s(view, short) + self.window_s)
        return Plan()

    @staticmethod
    def _opened_s(view: EngineView, short: np.ndarray) -> float:
        return float(view.waiting.queued_s[short].min())

    def _is_due(self, view: EngineView, short: np.ndarray) -> bool:
        step_s = prefill_s(self._spec.profile, int(view.waiting.left[short].sum()), self._spec.config.token_budget)
        slack = float(view.waiting.deadline_s[short].min()) - view.now_s - step_s
        over = view.now_s >= self._opened_s(view, short) + self.window_s
        return over or len(short) >= self.depth or slack <= self.sigma_s

    def _dispatch(self, view: EngineView, fill: Filling, short: np.ndarray) -> None:
        opened_s = self._opened_s(view, short)
        bucket = np.searchsorted(BUCKETS, view.waiting.left[short])
        others = bucket != bucket[0]
        chosen = short[~others] if self.one_bucket else short[np.argsort(others, kind="stable")]
        for k in chosen[: self.depth].tolist():
            if not fill.let_in(k):
                break
        size = len(fill.grants)
        if size >= self.depth:
            self.window_s = float(np.clip(view.now_s - opened_s, 0.0, self.longest_s))
            self.depth = min(2 * self.depth, DEEPEST)
        elif size:
            self.depth = size

    def _long(self, view: EngineView, fill: Filling) -> None:
        """The piece of one long prompt: the one begun, or the first of the queue."""
        reading = np.flatnonzero(~view.running.decoding)
        if len(reading):
            fill.read(int(reading[0]), self.piece_tokens)
            return
        for k in np.flatnonzero(view.waiting.left > self.short_tokens)[:1].tolist():
            fill.let_in(k, self.piece_tokens)
