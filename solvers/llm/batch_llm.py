"""BatchLLM: requests that share a prefix run together, those with much to decode first."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Pin, Plan
from dispatchgym.solvers.llm.filling import Filling
from dispatchgym.solvers.llm.lengths import Kind, Lengths


@dataclass(slots=True)
class Node:
    """A piece of text that the requests below it share; `ends` are requests whose text ends here."""

    text: tuple[int, ...] = ()
    children: list[Node] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def leaves(self) -> list[int]:
        return self.ends + [r for child in self.children for r in child.leaves()]


def prefix_tree(texts: dict[int, tuple[int, ...]]) -> Node:
    """Radix tree of texts, given as blocks; request -> its text."""
    root = Node()
    for request, text in texts.items():
        node, at = root, 0
        while True:
            child = next((c for c in node.children if at < len(text) and c.text[0] == text[at]), None)
            if child is None:
                if at < len(text):
                    node.children.append(Node(text[at:], [], [request]))
                else:
                    node.ends.append(request)
                break
            same = 0
            while same < len(child.text) and at + same < len(text) and child.text[same] == text[at + same]:
                same += 1
            if same < len(child.text):  # split
                child.children, child.ends = [Node(child.text[same:], child.children, child.ends)], []
                child.text = child.text[:same]
            node, at = child, at + same
    return root


def flatten(root: Node) -> list[tuple[tuple[int, ...], list[int]]]:
    """Groups (shared prefix, requests): the first level of the tree after lifting what gains by it.

    Bottom-up: child g of c, with several requests below, becomes c's sibling with c's text before its own if sharing
    g's own text among its requests saves more than computing c's once more: (leaves(g) - 1) * len(g) > len(c).
    """

    def lift(node: Node, parent: Node | None) -> None:
        for child in list(node.children):
            lift(child, node)
        if parent is None:
            return
        for g in list(node.children):
            leaves = len(g.leaves())
            if leaves > 1 and (leaves - 1) * len(g.text) > len(node.text):
                node.children.remove(g)
                parent.children.append(Node(node.text + g.text, g.children, g.ends))
        if not node.leaves():
            parent.children.remove(node)
        elif len(node.children) == 1 and not node.ends:
            only = node.children[0]
            node.text, node.children, node.ends = node.text + only.text, only.children, only.ends

    lift(root, None)
    return [(g.text, g.leaves()) for g in root.children] + [((), [r]) for r in root.ends]


class BatchLlm:
    """Groups by shared prefix, largest ratio of decode to prompt first; a group's prefix is kept until its last member.

    The tree is built from those that wait, and again when new requests have come (the rolling online variant; with all
    present at the start, the offline original). Requests are let in as long as the batch's expected peak of KV fits.

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
        self._rank: dict[int, int] = {}
        self._group: dict[int, frozenset[int]] = {}
        self._shared: dict[int, int] = {}
        self._pinned: dict[frozenset[int], int] = {}

    def decide(self, view: EngineView) -> Plan:
        running_guess, waiting_guess = self.lengths.guess(view)
        running, waiting = view.running, view.waiting
        if any(r not in self._rank for r in waiting.id.tolist()):
            self._regroup(view, waiting_guess)
        fill = Filling(view)
        fill.decode()
        fill.read_all()
        promised = int((running.prompt_tokens + running_guess).sum())
        room = self.cap * view.kv_blocks * view.block_tokens
        for k in sorted(range(len(waiting)), key=lambda k: self._rank[int(waiting.id[k])]):
            promised += int(waiting.prompt_tokens[k] + waiting_guess[k] - waiting.cached_tokens[k])
            if (promised > room and (len(running) or fill.grants)) or not fill.let_in(k):
                break
        return fill.plan(pins=self._pins(view))

    def _regroup(self, view: EngineView, guess: np.ndarray) -> None:
        waiting = view.waiting
        place = {int(r): k for k, r in enumerate(waiting.id)}
        assert view.texts is not None
        groups = flatten(prefix_tree({r: tuple(view.texts.hashes[r].tolist()) for r in place}))

        def ratio(members: list[int]) -> float:
            index = [place[r] for r in members]
            return float(guess[index].sum() / waiting.prompt_tokens[index].sum())

        groups.sort(key=lambda g: (-ratio(g[1]), min(g[1])))
        ordered = [(text, r, members) for text, members in groups for r in sorted(members)]
        for rank, (text, r, members) in enumerate(ordered):
            self._rank[r] = rank
            self._group[r] = frozenset(members)
            self._shared[r] = len(text) * view.texts.block_tokens

    def _pins(self, view: EngineView) -> list[Pin]:
        """Pin the prefix of a group once a member has read it; let go when the last member is in."""
        pins = []
        still = {self._group[r] for r in view.waiting.id.tolist() if len(self._group[r]) > 1}
        for k in np.flatnonzero(view.running.decoding).tolist():
            r = int(view.running.id[k])
            group = self._group.get(r)
            if group in still and group not in self._pinned:
                self._pinned[group] = r
                pins.append(Pin(r, self._shared[r]))
        over = [g for g in self._pinned if g not in still]
        return pins + [Pin(self._pinned.pop(g), 0) for g in over]
