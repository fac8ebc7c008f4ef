"""How a plan is brought about in an engine that fills its steps by rules of its own: vLLM's.

Such an engine runs its running list in order, then its queue in order, each request with all it has left, at most a
piece that is one for all, until the budget is spent. What can be set is who is on the lists, their order, the piece
and the budget. No engine is needed here, only numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dispatchgym.envs.llm.policy import EngineView, Plan


@dataclass(frozen=True, slots=True)
class Steering:
    """What an engine is told before it fills a step.

    Attributes:
        preempt: running requests that give up their blocks, in order.
        running, waiting: who may run, in order.
        budget: tokens of the step.
        piece: most tokens of a request, 0 for no bound.
        exact: the engine will run just what the plan says, blocks permitting.
    """

    preempt: tuple[int, ...]
    running: tuple[int, ...]
    waiting: tuple[int, ...]
    budget: int
    piece: int
    exact: bool


def steer(plan: Plan, view: EngineView) -> Steering:
    """What brings a plan about.

    Blocks are seen to here, by our engine's rules: a running request that finds none preempts the plan's victims in
    their order, then the last admitted that the step does not need.
    """
    running, waiting = view.running, view.waiting
    place = {r: k for k, r in enumerate(running.id.tolist())}
    queued = {r: k for k, r in enumerate(waiting.id.tolist())}
    spared = running.preemptions >= view.max_preemptions
    alive = set(place)
    preempt: list[int] = []
    free, budget = view.free_blocks, view.token_budget

    def oust(r: int) -> None:
        nonlocal free
        alive.discard(r)
        preempt.append(r)
        free += int(running.blocks[place[r]])

    for r, how in plan.preempt:
        if r in alive and how != "pause" and not spared[place[r]]:
            oust(r)
    granted: dict[int, int] = {}
    left: dict[int, int] = {}
    for r, n in plan.grants:
        if budget == 0:
            break
        if r in queued and r not in granted:
            k = queued[r]
            left[r] = int(waiting.left[k])
            n = min(int(n), left[r], budget)
            held = int(waiting.cached_tokens[k])
            need = int(view.blocks_for(held + n))
            if n <= 0 or need > free:
                continue
            free -= need
        elif r in alive and r not in granted:
            k = place[r]
            left[r] = int(running.known[k] - running.computed[k])
            n = min(int(n), left[r], budget)
            need = int(view.blocks_for(int(running.computed[k]) + n)) - int(running.blocks[k])
            if n <= 0:
                continue
            while need > free and r in alive:
                v = _victim(plan.victims, view, alive, granted, place)
                if v is None:
                    break
                budget += granted.pop(v, 0)
                oust(v)
            if r not in alive or need > free:
                continue
            free -= max(need, 0)
        else:
            continue
        granted[r] = n
        budget -= n
    ours = tuple(r for r in granted if r in place)
    theirs = tuple(r for r in granted if r in queued)
    piece, exact = _piece([(granted[r], left[r]) for r in (*ours, *theirs)])
    return Steering(tuple(preempt), ours, theirs, max(sum(granted.values()), 1), piece, exact)


def _victim(
    order: Iterable[int], view: EngineView, alive: set[int], granted: dict[int, int], place: dict[int, int]
) -> int | None:
    may = {r for r in alive if view.running.preemptions[place[r]] < view.max_preemptions}
    for v in order:
        if int(v) in may:
            return int(v)
    return next((r for r in reversed(view.running.id.tolist()) if r in may and r not in granted), None)


def _piece(rows: Sequence[tuple[int, int]]) -> tuple[int, bool]:
    """The bound on a request's tokens for (granted, left) in the engine's order; whether it makes exactly these."""
    cut = [n for n, left in rows if n < left]
    if not cut or (len(cut) == 1 and rows[-1][0] < rows[-1][1]):
        return 0, True  # the budget ends with the last
    piece = max(cut)
    exact = all(n == min(left, piece) for n, left in rows[:-1])
    return piece, exact
