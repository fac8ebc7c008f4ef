"""Steps that serve the best by a score, whoever runs now."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dispatchgym.envs.llm.policy import EngineView, Plan
from dispatchgym.solvers.llm.filling import UNTIL_EVENT, Filling
from dispatchgym.solvers.llm.peak import Numbers


def ranked_step(
    view: EngineView, running_key: Numbers, waiting_key: Numbers, *, how: Literal["recompute", "swap"], poll: int = 1
) -> Plan:
    """The best by key (smallest first; ties: the running, then arrival) that fit into the pool together.

    Running requests that are not among them pause with what they hold; of these, the worst are preempted (`how`)
    until the chosen fit. Decodes first, then prompts by key. Holds the plan for `poll` decode steps.
    """
    running, waiting = view.running, view.waiting
    count = len(running)
    settled = running.preemptions >= view.max_preemptions
    key = np.concatenate([np.where(settled, -np.inf, running_key), waiting_key]).astype(np.float64)
    own = np.maximum(view.blocks_for(running.known + 1), running.blocks)
    need = np.concatenate([own, np.asarray(view.blocks_for(waiting.known + 1))])
    order = np.argsort(key, kind="stable")
    fits = np.cumsum(need[order]) <= view.kv_blocks
    fits[0] = True
    chosen = order[fits][: count + view.free_seqs]
    serve = np.zeros(len(key), bool)
    serve[chosen] = True

    come = [k - count for k in chosen.tolist() if k >= count]
    taken = int(need[chosen].sum()) - int(running.blocks[serve[:count]].sum())
    free, places = view.free_blocks, view.free_seqs
    preempt: list[int] = []
    for k in order[::-1].tolist():  # the worst first
        if free >= taken and places >= len(come):
            break
        if k < count and not serve[k]:
            free += int(running.blocks[k])
            places += 1
            preempt.append(int(running.id[k]))

    fill = Filling(view)
    fill.free, fill.places = free, places
    fill.decode(serve[:count])
    for k in chosen.tolist():
        if k >= count:
            fill.let_in(k - count)
        elif not running.decoding[k]:
            fill.read(k)
    orders = [(r, how) for r in preempt]
    worst = [int(running.id[k]) for k in order[::-1].tolist() if k < count]
    everyone = len(fill.grants) == count and not len(waiting)
    hold = (UNTIL_EVENT if everyone else poll) if fill.grants and not fill.prefills else 1
    return Plan(grants=fill.grants, preempt=orders, victims=worst, hold_steps=hold)
