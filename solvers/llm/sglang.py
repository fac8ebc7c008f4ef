"""SGLang's scheduler: prompts before decodes, admission by an expected share of the longest outputs."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.filling import Filling
from dispatchgym.solvers.llm.sglang_order import CACHE_AWARE, Order, check, ordered

LONGEST_NEW = 4096  # most output tokens counted for a request
ROOM_AFTER = 20  # decode steps for which there must be room after a retraction
DECAY_STEPS = 600


class SGLang:
    """A step reads prompts if any can be let in, else it decodes.

    The running are expected to put out `ratio` of what they may; the head comes in if its prompt and all it may put
    out fit beside that. The ratio falls from 0.7 to 0.14 over 600 decode steps; when a decode step finds no room,
    requests with the fewest outputs (of these, the longest prompts) are retracted until there is room for 20 steps,
    and the ratio rises to what the rest really need.

    Source: sgl-project/sglang, managers/schedule_policy.py and scheduler.py. Departures: retracted requests go to the
    head of the queue; prefixes are compared by whole blocks.

    Args:
        order: of the queue; see `sglang_order`.
        conservativeness: factor on the ratio's start and floor.
    """

    name = "sglang"
    oracle = False

    def __init__(self, order: Order = "fcfs", conservativeness: float = 1.0) -> None:
        check(order)
        self.order = order
        self.texts = order in CACHE_AWARE
        self.start = min(0.7 * conservativeness, 1.0)
        self.floor = 0.14 * self.start
        self.decay = (self.start - self.floor) / DECAY_STEPS

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.ratio = self.start
        self._rng = np.random.default_rng(seed)

    def decide(self, view: EngineView) -> Plan:
        running = view.running
        if not len(running):
            self.ratio = self.start
        fill = Filling(view)
        fill.read_all()
        self._let_in(view, fill)
        if fill.grants:
            return fill.plan()
        need = int(np.maximum(view.blocks_for(running.computed + 1) - running.blocks, 0).sum())
        retracted = self._retract(view) if need > view.free_blocks else []
        if not retracted:
            self.ratio = max(self.ratio - self.decay, self.floor)
        fill.decode(~np.isin(running.id, retracted))
        return fill.plan(preempt=[(r, "recompute") for r in retracted])

    def _let_in(self, view: EngineView, fill: Filling) -> None:
        running, waiting = view.running, view.waiting
        expected = np.minimum(running.max_new_tokens - running.generated, LONGEST_NEW).sum() * self.ratio
        room = fill.free * view.block_tokens - expected
        for k in ordered(view, self.order, self._rng).tolist():
            total = int(waiting.left[k] + min(waiting.max_new_tokens[k] - waiting.generated[k], LONGEST_NEW))
            alone = not len(running) and not fill.grants
            if (total >= room and not alone) or not fill.let_in(k):
                break
            room -= total

    def _retract(self, view: EngineView) -> list[int]:
        """Requests to retract, and the new ratio."""
        running = view.running
        order = np.lexsort((-running.prompt_tokens, running.generated))
        free, alive = view.free_blocks * view.block_tokens, len(order)
        retracted = []
        for k in order[:-1].tolist():
            if free >= alive * ROOM_AFTER:
                break
            free += int(running.blocks[k]) * view.block_tokens
            alive -= 1
            retracted.append(int(running.id[k]))
        rest = ~np.isin(running.id, retracted)
        decoded, longest = running.generated[rest].sum(), running.max_new_tokens[rest].sum()
        self.ratio = float(min(1.0, (decoded + ROOM_AFTER * rest.sum()) / (longest + 1)))
        return retracted
