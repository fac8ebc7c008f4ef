"""Dispatch rules of the job shop: what they score, and rollouts at full speed.

A rule scores every legal job; the highest goes next, ties go to the lowest job number. The work-in-process
cap on top of any rule admits a new job only while fewer jobs than the cap are in the shop: in blocking
shops *when* to let a job in matters more than *which* (see docs/results.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.kernel import is_over, reset, step
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule
from dispatchgym.envs.jobshop.state import F64, I32, Mode, Problem, Shop
from dispatchgym.envs.registry import unknown_name

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


@dataclass(frozen=True, slots=True)
class ShopView:
    """What a rule may look at: one row a legal job. Times are int64 in instance time units.

    `work` and `ops` count the job's operations not started yet, the next one included; `ready` is when the
    job can start it (end of the operation before, or release); `flow_due` is its release plus its work up to
    and including the next operation.
    """

    job: npt.NDArray[np.int32]
    duration: npt.NDArray[np.int64]
    work: npt.NDArray[np.int64]
    ops: npt.NDArray[np.int64]
    ready: npt.NDArray[np.int64]
    flow_due: npt.NDArray[np.int64]


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


@compiled
def _score_view(
    rule: int,
    duration: np.ndarray,
    work: np.ndarray,
    ops: np.ndarray,
    ready: np.ndarray,
    flow_due: np.ndarray,
    draw: np.ndarray,
    out: np.ndarray,
) -> None:
    for c in range(len(out)):
        out[c] = score(rule, duration[c], work[c], ops[c], ready[c], flow_due[c], draw[c])


def scores(rule: str, view: ShopView, rng: np.random.Generator | None = None) -> npt.NDArray[np.float64]:
    """Priorities of the jobs in `view`, shape (legal jobs,); the highest goes first.

    Raises:
        UnknownNameError: no such rule.
        UsageError: rule "random" without `rng`.
    """
    code = rule_code(rule)
    if code == RANDOM and rng is None:
        raise UsageError("rule 'random' draws; pass rng=np.random.default_rng(seed)")
    draw = rng.random(len(view.job)) if rng is not None else np.zeros(len(view.job))
    out = np.empty(len(view.job))
    _score_view(code, view.duration, view.work, view.ops, view.ready, view.flow_due, draw, out)
    return out


def view_of(batch: ShopBatch, i: int = 0) -> ShopView:
    """The view of environment i's legal jobs."""
    shop, problem, k = batch.shop, batch.problem, batch.shop.slot[i]
    job = np.flatnonzero(shop.mask[i, :-1]).astype(np.int32)
    o = shop.next_op[i, job]
    duration = problem.duration[k, o]
    return ShopView(
        job=job,
        duration=duration,
        work=duration + problem.tail[k, o],
        ops=(problem.job_ptr[k, job + 1] - o).astype(np.int64),
        ready=shop.ready[i, job],
        flow_due=problem.earliest[k, job] + problem.head[k, o] + duration,
    )


def rule_code(name: str) -> int:
    """The kernel's number for a rule; the closest names in the error otherwise."""
    if name not in MEANING:
        raise unknown_name("rule", name, RULES)
    return RULES.index(name)


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


@compiled
def _play(
    problem: Problem,
    shop: Shop,
    mode: Mode,
    rule: I32,
    cap: I32,
    noise: F64,
    stream: npt.NDArray[np.uint64],
    priority: F64,
) -> None:
    """Play every environment to its end; rule, cap, noise and random stream (envs, 1) are per environment."""
    for i in range(len(shop.slot)):
        reset(problem, shop, mode, i)
        while not is_over(shop, i):
            step(problem, shop, mode, i, choose(problem, shop, i, rule[i], cap[i], noise[i], stream[i], priority))


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished run: its schedule and how many decisions it took."""

    schedule: Schedule
    decisions: int


def cap_in_jobs(cap: float | None, num_machines: int) -> int:
    """A cap given as a share of the machines, in whole jobs, at least 1; None is no cap."""
    if cap is None:
        return int(np.iinfo(np.int32).max)
    if not cap > 0:
        raise UsageError(f"cap is {cap}; it is a share of the machines and must be above 0")
    return max(1, int(cap * num_machines + 0.5))


def play(
    batch: ShopBatch,
    rule: str | Sequence[str],
    *,
    cap: float | Sequence[float | None] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> npt.NDArray[np.int64]:
    """Play all environments of a batch from their start to their end under a rule.

    Args:
        batch: loaded with instances (and scenarios); it is reset here and over afterwards.
        rule: one name, or one an environment.
        cap: most jobs in the shop as a share of the machines; one value, or one an environment.
        noise: 0 for the rule itself; above it, randomised runs (see `choose`).
        seed: of the random draws; environment i uses stream (seed, i).

    Returns:
        Makespans, shape (N,).
    """
    n = batch.num_envs
    names = [rule] * n if isinstance(rule, str) else list(rule)
    caps: list[float | None] = list(cap) if isinstance(cap, Sequence) else [cap] * n
    if noise < 0:
        raise UsageError(f"noise is {noise}; it must not be negative")
    known = {name: rule_code(name) for name in set(names)}
    codes = np.array([known[name] for name in names], np.int32)
    machines = batch.problem.num_machines[batch.shop.slot]
    limits = np.array([cap_in_jobs(c, int(m)) for c, m in zip(caps, machines, strict=True)], np.int32)
    stream = np.asarray(np.random.SeedSequence(seed).generate_state(n, np.uint64), np.uint64).reshape(n, 1)
    priority = np.empty(batch.capacity.jobs)
    _play(batch.problem, batch.shop, batch.mode, codes, limits, np.full(n, float(noise)), stream, priority)
    return batch.makespan


def rollout(
    instance: Instance,
    rule: str,
    config: ShopConfig | None = None,
    *,
    cap: float | None = None,
    scenario: Scenario | None = None,
    seed: int = 0,
    noise: float = 0.0,
) -> Rollout:
    """One run of a rule on one instance.

    Args:
        config: which shop and builder; default the classic shop, non-delay.
        scenario: shutdowns of the interrupting shop.

    Other arguments as in `play`.

    Raises:
        UnknownNameError: no such rule.
        UsageError: the run ended in a deadlock, which the safety check rules out.
    """
    batch = _loaded(instance, config or ShopConfig(), scenario, 1)
    play(batch, rule, cap=cap, noise=noise, seed=seed)
    return Rollout(batch.schedule(0), int(batch.shop.decisions[0]))


def best_of(
    instance: Instance,
    rule: str,
    runs: int,
    config: ShopConfig | None = None,
    *,
    cap: float | None = None,
    scenario: Scenario | None = None,
    seed: int = 0,
    noise: float = 0.5,
) -> Rollout:
    """The best of `runs` randomised runs of a rule; `decisions` counts those of all runs."""
    if runs < 1:
        raise UsageError(f"runs is {runs}; at least 1 is needed")
    batch = _loaded(instance, config or ShopConfig(), scenario, runs)
    best = int(np.argmin(play(batch, rule, cap=cap, noise=noise, seed=seed)))
    return Rollout(batch.schedule(best), int(batch.shop.decisions.sum()))


def _loaded(instance: Instance, config: ShopConfig, scenario: Scenario | None, runs: int) -> ShopBatch:
    batch = ShopBatch.of([instance], config, envs_per_instance=runs)
    if scenario is not None:
        batch.load_scenarios(range(runs), [scenario] * runs)
    return batch
