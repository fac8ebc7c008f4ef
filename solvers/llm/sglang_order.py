"""The orders in which SGLang's queue can be served."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.policy import EngineView
from dispatchgym.solvers.llm.peak import Numbers
from dispatchgym.solvers.llm.prefix_tree import Node, prefix_tree

Order = Literal["fcfs", "lpm", "dfs-weight", "lof", "random", "hrrn", "shortest"]
CACHE_AWARE = ("lpm", "dfs-weight")
LPM_MOST = 128  # with more waiting, lpm is fcfs
COLD, ALIKE = 32, 32  # tokens: cached at most, and shared with one before at least, of who is put back


def check(order: str) -> None:
    """Refuse an order that is none.

    Raises:
        UsageError: it is none.
    """
    if order not in get_args(Order):
        raise UsageError(f"sglang: order {order!r} is not one of {', '.join(map(repr, get_args(Order)))}")


def ordered(view: EngineView, order: Order, rng: np.random.Generator) -> Numbers:
    """Places in the queue, who comes first first.

    "lpm": the longest cached prefix; "dfs-weight": depth first through the cached prefixes, the branch with the most
    waiting first; "lof": the longest output allowed; "hrrn": the highest ratio of waiting to work; "shortest": the
    shortest uncached prompt.

    Source: sgl-project/sglang, managers/schedule_policy.py.
    """
    waiting = view.waiting
    count = len(waiting)
    if order == "fcfs" or (order == "lpm" and count > LPM_MOST):
        return np.arange(count)
    if order == "random":
        return rng.permutation(count)
    if order == "lof":
        return np.argsort(-waiting.max_new_tokens, kind="stable")
    if order == "lpm":
        return np.lexsort((-waiting.cached_tokens, _put_back(view)))
    if order == "dfs-weight":
        return _depth_first(view)
    left = np.maximum(waiting.left, 1)
    if order == "shortest":
        return np.argsort(left, kind="stable")
    return np.argsort(-(view.now_s - waiting.arrival_s) / left, kind="stable")


def _put_back(view: EngineView) -> Numbers:
    """Requests with nothing in the cache that begin like one before them: that one warms the cache for them."""
    waiting, texts = view.waiting, view.texts
    late = np.zeros(len(waiting), bool)
    if texts is None:
        return late
    need = -(-ALIKE // texts.block_tokens)
    seen: set[int] = set()
    for k in np.flatnonzero(waiting.cached_tokens <= COLD).tolist():
        hashes = texts.hashes[int(waiting.id[k])]
        if len(hashes) < need:
            continue
        start = int(hashes[need - 1])  # names all before it, too
        late[k] = start in seen
        seen.add(start)
    return late


def _depth_first(view: EngineView) -> Numbers:
    waiting, texts = view.waiting, view.texts
    if texts is None:
        return np.arange(len(waiting))
    cached = (waiting.cached_tokens // texts.block_tokens).tolist()
    places = enumerate(zip(waiting.id.tolist(), cached, strict=True))
    root = prefix_tree({k: tuple(texts.hashes[r][:blocks].tolist()) for k, (r, blocks) in places})
    order: list[int] = []

    def visit(node: Node) -> None:
        for child in sorted(node.children, key=lambda c: -len(c.leaves())):
            visit(child)
        order.extend(node.ends)

    visit(root)
    return np.array(order, np.int64)
