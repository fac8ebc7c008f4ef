"""What dispatch rules score and how the best job is chosen: the compiled core of rules and look-ahead."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.jobshop.state import F64, Problem, Shop

SPT, LPT, MWKR, LWKR, MOR, LOR, FIFO, LIFO, LRPT, FDD_MWKR, RANDOM = range(11)

MEANING = {
    "spt": "shortest processing time of the next operation",
    "lpt": "longest processing time of the next operation",
    "mwkr": "most work remaining, the next operation included",
    "lwkr": "least work remaining",
    "mor": "most operations remaining",
    "lor": "least operations remaining",
    "fifo": "ready for the longest time",
    "lifo": "ready for the shortest time",
    "lrpt": "longest remaining processing time after the next operation",
    "fdd/mwkr": "smallest ratio of flow due date to work remaining (Sels, Gheysen and Vanhoucke 2012)",
    "random": "a uniform draw",
}
RULES = tuple(MEANING)
"""Names, in the order of the codes above."""


@inlined
def score(rule: int, duration: int, work: int, ops: int, ready: int, flow_due: int, draw: float) -> float:
    """Priority of one job under one rule; the highest goes first."""
    if rule == SPT:
        return -float(duration)
    if rule == LPT:
        return float(duration)
    if rule == MWKR:
        return float(work)
    if rule == LWKR:
        return -float(work)
    if rule == MOR:
        return float(ops)
    if rule == LOR:
        return -float(ops)
    if rule == FIFO:
        return -float(ready)
    if rule == LIFO:
        return float(ready)
    if rule == LRPT:
        return float(work - duration)
    if rule == FDD_MWKR:
        return -float(flow_due) / max(float(work), 1.0)
    return draw


@inlined
def draw(state: npt.NDArray[np.uint64]) -> float:
    """The next uniform number in [0, 1) of a splitmix64 stream (Steele, Lea and Flood 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inlined
def choose(
    problem: Problem,
    shop: Shop,
    i: int,
    rule: int,
    cap: int,
    noise: float,
    state: npt.NDArray[np.uint64],
    priority: F64,
) -> int:
    """The rule's action in environment i.

    A job that is not in the shop is passed over while `cap` jobs are; if only such jobs are legal the
    rule WAITs, and where WAIT is not legal it admits one all the same. With noise > 0 the choice is drawn
    with weights exp(z / noise), z the scores standardised over the legal jobs.
    """
    k = shop.slot[i]
    wait = shop.mask.shape[1] - 1
    full = shop.in_shop[i] >= cap
    others = False  # a legal job that is in the shop already
    if full:
        for j in range(problem.num_jobs[k]):
            if shop.mask[i, j] == 1 and shop.next_op[i, j] > problem.job_ptr[k, j]:
                others = True
        if not others and shop.mask[i, wait] == 1:
            return int(wait)
    best = -1
    total = square = 0.0
    count = 0
    for j in range(problem.num_jobs[k]):
        if shop.mask[i, j] == 0:
            continue
        o = shop.next_op[i, j]
        if full and others and o == problem.job_ptr[k, j]:
            continue
        p = problem.duration[k, o]
        value = score(
            rule,
            p,
            p + problem.tail[k, o],
            problem.job_ptr[k, j + 1] - o,
            shop.ready[i, j],
            problem.earliest[k, j] + problem.head[k, o] + p,
            draw(state) if rule == RANDOM else 0.0,
        )
        priority[j] = value
        total += value
        square += value * value
        count += 1
        if best < 0 or value > priority[best]:
            best = j
    if noise > 0 and count > 1:
        spread = np.sqrt(max(square / count - (total / count) ** 2, 0.0))
        scale = noise * spread if spread > 0 else 1.0
        best = -1
        highest = 0.0
        for j in range(problem.num_jobs[k]):
            if shop.mask[i, j] == 0 or (full and others and shop.next_op[i, j] == problem.job_ptr[k, j]):
                continue
            value = priority[j] - scale * np.log(-np.log(max(draw(state), 1e-300)))  # Gumbel-max draw
            if best < 0 or value > highest:
                best, highest = j, value
    return best


def cap_in_jobs(cap: float | None, num_machines: int) -> int:
    """A cap given as a share of the machines, in whole jobs, at least 1; None is no cap."""
    if cap is None:
        return int(np.iinfo(np.int32).max)
    if not cap > 0:
        raise UsageError(f"cap is {cap}; it is a share of the machines and must be above 0")
    return max(1, int(cap * num_machines + 0.5))
