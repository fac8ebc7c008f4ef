"""EB+: prompts and decodes in one step, or apart, whichever a closed form favours."""

from __future__ import annotations

from typing import Literal, get_args

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.crossover import Traffic, lines, most_requests, refill_share, saved_s
from dispatchgym.solvers.llm.filling import UNTIL_EVENT, Filling

Mode = Literal["auto", "mixed", "exclusive"]


class EbPlus:
    """Mixed steps, first come, first served, until `crossover.saved_s` says that steps of their own are faster.

    Then up to `most_requests` decode until the share `refill_share` of them has ended, and prompts are read in steps
    without decodes until their places are taken.

    Source: Zhang et al., arXiv 2606.00516 (ICML 2026), propositions 1, 3 and 4; weifang231/eb-vllm. Departures: the
    share is theta_0, of outputs that end with a constant chance, without the correction for a rising one; the lines
    come from the latency profile instead of a calibration run; means are of the requests present and of the last
    outputs instead of moving averages; before any output has ended, steps are mixed. Fewer requests than fit are all
    that are counted on: their share is waited for, not that of a full batch.

    Args:
        mode: "mixed" or "exclusive" for one of the two throughout.
        risk: chance that the requests served at a time outgrow the pool.
        every: ends between two looks at the traffic.
        window: outputs that their mean is taken of.
    """

    name = "eb-plus"
    oracle = False

    def __init__(self, mode: Mode = "auto", risk: float = 0.01, every: int = 16, window: int = 100) -> None:
        if mode not in get_args(Mode):
            raise UsageError(f"eb-plus: mode {mode!r} is not one of {', '.join(map(repr, get_args(Mode)))}")
        if not 0 < risk <= 1:
            raise UsageError(f"eb-plus: risk {risk} is not above 0 and at most 1")
        self.mode = mode
        self.risk = risk
        self.every = every
        self.window = window

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._spec = spec
        self._next = 1  # ends at which to look at the traffic
        self.exclusive = self.mode == "exclusive"
        self.share = 0.5 if self.exclusive else 0.0
        self.most = spec.config.max_seqs
        self._refilling = True

    def decide(self, view: EngineView) -> Plan:
        if view.finished >= self._next:
            self._next = view.finished + self.every
            self._look(view)
        fill = Filling(view)
        if self.exclusive:
            return self._apart(view, fill)
        fill.decode()
        fill.read_all()
        for k in range(len(view.waiting)):
            if not fill.let_in(k):
                break
        return fill.plan()

    def _look(self, view: EngineView) -> None:
        present = len(view.running) + len(view.waiting)
        if not present:
            return
        prompt = float(view.running.prompt_tokens.sum() + view.waiting.prompt_tokens.sum()) / present
        traffic = Traffic(present, prompt, float(view.history[-self.window :].mean()))
        line = lines(self._spec.profile, traffic, view.token_budget)
        self.share = refill_share(line, traffic)
        pool = view.kv_blocks * view.block_tokens
        self.most = min(most_requests(self.share, traffic, pool, self.risk), self._spec.config.max_seqs)
        at_once = Traffic(min(present, self.most), traffic.prompt, traffic.output)
        line = lines(self._spec.profile, at_once, view.token_budget)
        self.exclusive = self.mode == "exclusive" or (self.mode == "auto" and saved_s(line, self.share, at_once) > 0)

    def _apart(self, view: EngineView, fill: Filling) -> Plan:
        running, waiting = view.running, view.waiting
        served = min(self.most, len(running) + len(waiting))
        places = served - len(running)
        if places >= max(1.0, self.share * served) or not running.decoding.all():
            self._refilling = True
        if self._refilling or not len(running):
            fill.read_all()
            for k in range(min(places, len(waiting))):
                if not fill.let_in(k):
                    break
        if not fill.grants:
            self._refilling = False
            fill.decode()
        return fill.plan(poll=UNTIL_EVENT)
