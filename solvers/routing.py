"""Which replica takes a request: rules of today's routers, as scores over replicas.

A rule is a function `view -> scores`, one score a replica, higher first; equal scores go by lot. It keeps no state:
what it needs to remember, the router that calls it remembers and shows in the view.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.registry import Registry

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RoutingView:
    """What a router knows when a request comes.

    Attributes:
        replicas: their names, n of them; a name stays while its replica lives.
        outstanding: requests sent and not yet answered, shape (n,).
        last_sent: serial number of the last request that each was sent, -1 for none, shape (n,).
        matched: leading characters of this prompt that each replica was sent before, shape (n,).
        held: characters that each replica was sent and are still remembered, shape (n,).
        prompt_length: characters of the prompt; 0 where the router cannot see it.
        session: what names the conversation, "" for none.
        rng: for rules that draw.
    """

    replicas: tuple[str, ...]
    outstanding: I64
    last_sent: I64
    matched: I64
    held: I64
    prompt_length: int
    session: str
    rng: np.random.Generator


def random(view: RoutingView) -> F64:
    """Any replica."""
    return np.zeros(len(view.replicas))


def round_robin(view: RoutingView) -> F64:
    """Whoever has waited longest for a request."""
    return -view.last_sent.astype(np.float64)


def shortest_queue(view: RoutingView) -> F64:
    """Fewest requests outstanding (join the shortest queue)."""
    return -view.outstanding.astype(np.float64)


def power_of_two(view: RoutingView) -> F64:
    """The shorter queue of two drawn at random; the others after them (Mitzenmacher 2001)."""
    scores = -view.outstanding.astype(np.float64)
    drawn = view.rng.permutation(len(scores))[:2]
    scores[drawn] += view.outstanding.max(initial=0) + 1
    return scores


def session_hash(view: RoutingView) -> F64:
    """A session stays with its replica, and moves only if that goes away: highest random weight (Thaler and
    Ravishankar 1998). Requests without a session go to the shortest queue."""
    if not view.session:
        return shortest_queue(view)
    weights = [
        int.from_bytes(hashlib.blake2b(f"{view.session}\0{name}".encode(), digest_size=6).digest(), "big")
        for name in view.replicas
    ]
    return np.array(weights, np.float64)


def cache_aware(view: RoutingView) -> F64:
    """SGLang's router: the longest known prefix if it covers 30 % of the prompt, else whoever holds least; the shortest
    queue when queues differ by more than 64 requests and half, or the prompt cannot be seen."""
    queues = view.outstanding
    if view.prompt_length == 0:
        return shortest_queue(view)
    if queues.max(initial=0) - queues.min(initial=0) > 64 and queues.max() > 1.5 * queues.min():
        return shortest_queue(view)
    if view.matched.max(initial=0) > 0.3 * view.prompt_length:
        return view.matched.astype(np.float64)
    return -view.held.astype(np.float64)


ROUTING_RULES = Registry(
    "routing rule",
    {
        name: f"dispatchgym.solvers.routing:{name.replace('-', '_')}"
        for name in ("random", "round-robin", "shortest-queue", "power-of-two", "session-hash", "cache-aware")
    },
)
