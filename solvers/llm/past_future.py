"""The Past-Future scheduler: admission by the predicted peak of the KV in use."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.filling import Filling
from dispatchgym.solvers.llm.peak import Numbers, peak_tokens


class PastFuture:
    """vLLM's steps; the head of the queue is let in if the batch with it will stay below the pool at its peak.

    Past: how long a request goes on is drawn from the lengths of the last `window` requests that finished, given that
    it is longer than what is out so far (linear between neighbours); of a newcomer, preempted ones too, any of them.
    Future: the peak of the batch for these draws; several sets of draws for few running requests, the worst counts.
    First come, first served otherwise.

    Source: Gong et al., ASPLOS 2025 (arXiv 2507.10150), as coded in WuSiYu/lightllm-ae. Departures: any number of
    requests a round instead of one, so that admission alone differs between schedulers; prompts in pieces beside
    decodes.

    Args:
        window: output lengths remembered.
        reserve: share of the pool that the peak must leave free.
        initial: length that half the memory is filled with at the start; 0 for the longest the head may have.
        poll: decode steps between two rounds while requests wait.
    """

    name = "past-future"
    oracle = False

    def __init__(self, window: int = 1000, reserve: float = 0.05, initial: int = 0, poll: int = 2) -> None:
        self.window = window
        self.reserve = reserve
        self.initial = initial
        self.poll = poll

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def decide(self, view: EngineView) -> Plan:
        fill = Filling(view)
        fill.decode()
        fill.read_all()
        if len(view.waiting) and not fill.short:
            self._let_in(view, fill)
        return fill.plan(poll=self.poll)

    def _let_in(self, view: EngineView, fill: Filling) -> None:
        limit = view.kv_blocks * view.block_tokens * (1 - self.reserve)
        past = self._past(view)
        sets = min(5, 200 // max(len(view.running), 1) + 1)
        held = view.running.known.astype(np.float64)
        left = np.stack([self._conditional(past, view) for _ in range(sets)])
        for k in range(len(view.waiting)):
            more = np.minimum(self._rng.choice(past, (sets, 1)), view.waiting.max_new_tokens[k])
            new_held, new_left = np.append(held, view.waiting.known[k]), np.hstack([left, more])
            if peak_tokens(new_held, new_left) >= limit or not fill.let_in(k):
                break
            held, left = new_held, new_left

    def _past(self, view: EngineView) -> Numbers:
        """Sorted output lengths of the past."""
        past = view.history[-self.window :]
        half = self.window // 2
        missing = min(half, self.window - min(view.finished, self.window))
        first = self.initial or int(view.waiting.max_new_tokens[0])
        return np.sort(np.concatenate([np.full(missing, first), past]))

    def _conditional(self, past: Numbers, view: EngineView) -> Numbers:
        """A draw of the remaining output of each running request, given what is out."""
        out, most = view.running.generated, np.maximum(view.running.max_new_tokens, view.running.generated + 1)
        start = np.searchsorted(past, out, side="right")
        intervals = len(past) - start + 1  # knots: out, the lengths above it, the most
        place = self._rng.random(len(out)) * intervals
        whole = np.floor(place).astype(np.int64)

        def knot(i: Numbers) -> Numbers:
            inside = np.minimum(past[np.minimum(start + i - 1, len(past) - 1)], most)
            return np.where(i == 0, out, np.where(i == intervals, most, inside))

        low, high = knot(whole), knot(np.minimum(whole + 1, intervals))
        return np.asarray(low + (high - low) * (place - whole) - out)
