"""BatchLLM: requests that share a prefix run together, those with much to decode first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Pin, Plan
from dispatchgym.solvers.llm.filling import Filling
from dispatchgym.solvers.llm.identity import Who, who
from dispatchgym.solvers.llm.lengths import Kind, Lengths
from dispatchgym.solvers.llm.prefix_tree import flatten, prefix_tree


class Seat(NamedTuple):
    """Place in the order; whom it shares a prefix with, named by the prefix's last block; the prefix's tokens."""

    rank: int
    group: int | None
    shared: int


class BatchLlm:
    """Groups by shared prefix, largest ratio of decode to prompt first; a group's prefix is kept until its last member.

    The tree is built from those present, and again when new requests have come (the rolling online variant; with all
    there at the start, the offline original). Requests are let in as long as the batch's expected peak of KV fits.

    Source: Zheng et al., arXiv 2412.03594 v3; microsoft/MixLLM. Departures: the prefix is computed by the first member,
    and pinned; the cap on KV counts guessed outputs.

    Args:
        lengths: where output lengths come from.
        sigma: noise of "noisy" lengths.
        cap: share of the pool that prompts and guessed outputs may fill.
    """

    name = "batch-llm"
    texts = True

    def __init__(self, lengths: Kind = "noisy", sigma: float = 0.3, cap: float = 0.95) -> None:
        self.lengths = Lengths(lengths, sigma)
        self.oracle = lengths != "max"
        self.cap = cap

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.lengths.reset(seed)
        self._seats: dict[Who, Seat] = {}
        self._pinned: dict[int, Who] = {}

    def decide(self, view: EngineView) -> Plan:
        running_guess, waiting_guess = self.lengths.guess(view)
        running, waiting = view.running, view.waiting
        queue = who(waiting)
        if any(each not in self._seats for each in queue):
            self._regroup(view, np.concatenate([running_guess, waiting_guess]))
        fill = Filling(view)
        fill.decode()
        fill.read_all()
        promised = int((running.prompt_tokens + running_guess).sum())
        room = self.cap * view.kv_blocks * view.block_tokens
        for k in sorted(range(len(waiting)), key=lambda k: self._seats[queue[k]].rank):
            promised += int(waiting.prompt_tokens[k] + waiting_guess[k] - waiting.cached_tokens[k])
            if (promised > room and (len(running) or fill.grants)) or not fill.let_in(k):
                break
        return fill.plan(pins=self._pins(view))

    def _regroup(self, view: EngineView, guess: np.ndarray) -> None:
        texts, everyone = view.texts, who(view.running) + who(view.waiting)
        assert texts is not None
        prompt = np.concatenate([view.running.prompt_tokens, view.waiting.prompt_tokens])
        groups = flatten(prefix_tree({k: tuple(texts.hashes[r].tolist()) for k, (r, _) in enumerate(everyone)}))
        groups.sort(key=lambda g: (-float(guess[g[1]].sum() / prompt[g[1]].sum()), min(g[1])))
        ordered = [(text, k, len(members) > 1) for text, members in groups for k in sorted(members)]
        self._seats = {
            everyone[k]: Seat(rank, text[-1] if text and shared else None, len(text) * texts.block_tokens)
            for rank, (text, k, shared) in enumerate(ordered)
        }

    def _pins(self, view: EngineView) -> list[Pin]:
        """Pin the prefix of a group once a member has read it; let go when the last member is in."""
        pins: list[Pin] = []
        running, queue = who(view.running), who(view.waiting)
        here = dict(running + queue)
        still = {self._seats[each].group for each in queue} - {None}

        def unpin(number: int, arrival_s: float) -> None:
            if here.get(number, arrival_s) == arrival_s:  # else it is another's, and the pin went with its owner
                pins.append(Pin(number, 0))

        for k in np.flatnonzero(view.running.decoding).tolist():
            seat = self._seats.get(running[k])
            if seat is None or seat.group is None or seat.group not in still:
                continue
            owner = self._pinned.get(seat.group)
            if owner is None or here.get(owner[0]) != owner[1]:  # a live engine lets go of what a gone one pinned
                self._pinned[seat.group] = running[k]
                pins.append(Pin(running[k][0], seat.shared))
                if owner is not None:
                    unpin(*owner)
        for group in [g for g in self._pinned if g not in still]:
            unpin(*self._pinned.pop(group))
        return pins
