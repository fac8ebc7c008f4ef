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
from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.kernel import is_over, reset, step
from dispatchgym.envs.jobshop.priority import MEANING, RANDOM, cap_in_jobs, choose, score
from dispatchgym.envs.jobshop.priority import RULES as RULES
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule
from dispatchgym.envs.jobshop.state import F64, I32, Mode, Problem, Shop
from dispatchgym.envs.registry import unknown_name


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
