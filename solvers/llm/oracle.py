"""A scheduler that is told what no engine knows: a mark for the others, not a choice."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.costs import prefills_s
from dispatchgym.solvers.llm.filling import Filling
from dispatchgym.solvers.llm.moore import moore
from dispatchgym.solvers.llm.peak import Numbers, peak_tokens

TIGHT = 0.5


class Oracle:
    """Told output lengths, it never preempts: a request comes in only where the batch will fit to its end.

    Prompts go by deadline, those left aside that cost the most others their deadlines (Moore's rule); where KV is what
    is short, by output length instead, the shortest first. While decoding requests have a bound on the time between
    tokens, the prompts of a step are cut so that it keeps half of it. A batch without deadlines that is all there goes
    longest output first, so that it ends together.

    Source: Moore, 1968, for the deadlines; Jaillet et al., arXiv 2502.07115, for admission and the shortest first.
    The combination is ours.

    Args:
        by: 'auto', or one order for all: 'deadline', 'shortest', 'longest'.
        exclusive: prompts run in steps without decodes, where bounds allow, and may be interrupted.
    """

    name = "oracle"
    oracle = True

    def __init__(self, by: str = "auto", exclusive: bool = True) -> None:
        self.by = by
        self.exclusive = exclusive

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._spec = spec

    def decide(self, view: EngineView) -> Plan:
        assert view.oracle is not None
        running, waiting = view.running, view.waiting
        fill = Filling(view)
        since = view.now_s - running.last_token_s
        late = running.decoding & (since > TIGHT * running.tpot_slo_s)
        reading = np.flatnonzero(~running.decoding)
        if not (len(reading) or len(waiting)) or late.any() or not self.exclusive:
            fill.decode()
            if late.any():
                self._cut(view, fill)
        before = len(fill.grants)
        self._read(view, fill, reading)
        if len(fill.grants) == before and not before:
            fill.decode()
        alone = before == 0 and fill.prefills > 0
        return fill.plan(interruptible=alone, poll=1)

    def _cut(self, view: EngineView, fill: Filling) -> None:
        """Prompt tokens that leave a step within half the tightest bound."""
        bound = float(view.running.tpot_slo_s[view.running.decoding].min())
        profile = self._spec.profile
        if np.isfinite(bound) and profile.token_s > 0:
            room = (TIGHT * bound - profile.base_s) / profile.token_s
            fill.budget = min(fill.budget, max(0, int(room)))

    def _read(self, view: EngineView, fill: Filling, reading: Numbers) -> None:
        assert view.oracle is not None
        running, waiting = view.running, view.waiting
        budget = self._spec.config.token_budget
        left = np.concatenate([(running.known - running.computed)[reading], waiting.left])
        due = np.concatenate([running.deadline_s[reading], waiting.deadline_s])
        output = np.concatenate([view.oracle.running_output[reading], view.oracle.waiting_output])
        if not len(left):
            return
        cost = prefills_s(self._spec.profile, left, budget)
        order = self._order(view, due, output, cost)
        held = running.known.astype(np.float64)
        more = (view.oracle.running_output - running.generated).astype(np.float64)
        room = float(view.kv_blocks * view.block_tokens)
        short = np.isfinite(due).any() and self.exclusive
        for j in order.tolist():
            if fill.budget <= 0:
                break
            if j < len(reading):
                if running.group[reading[j]] >= 0:  # an interrupted step goes on as it was, or rests
                    if not fill.grants:
                        fill.read(int(reading[j]))
                        break
                else:
                    fill.read(int(reading[j]))
                continue
            k = j - len(reading)
            new_held = np.append(held, waiting.known[k])
            new_more = np.append(more, max(1, output[j] - waiting.generated[k]))
            # The last block may hold one token only; the last token is never held.
            fits = peak_tokens(new_held + view.block_tokens - 1, new_more - 1) <= room
            if (fits or not len(held)) and fill.let_in(k):
                held, more = new_held, new_more
                if short and fill.prefills and left[j] > 2048:
                    break  # a long prompt alone: what comes after it would only make it late
            elif view.free_blocks <= view.kv_blocks // 2:
                break

    def _order(self, view: EngineView, due: Numbers, output: Numbers, cost: Numbers) -> Numbers:
        by = self.by
        if by == "auto":
            scarce, bounded = view.free_blocks < view.kv_blocks // 2, np.isfinite(due).any()
            at_once = bool((view.waiting.arrival_s == view.now_s).all()) or not bounded
            by = "shortest" if scarce else "deadline" if bounded else "longest" if at_once else "shortest"
        if by == "shortest":
            return np.asarray(np.argsort(output, kind="stable"))
        if by == "longest":
            return np.asarray(np.argsort(-output, kind="stable"))
        return moore(view.now_s, due, cost)
