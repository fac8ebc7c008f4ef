"""The best that could have been done: when to let in each request of a small trace, by CP-SAT, all lengths known.

Time goes in rounds, one token a round for every request that runs, and nobody is preempted or paused; the k-th token
of a request with prompt s holds s + k - 1 tokens of KV while its round runs. That is this engine with blocks of one
token and steps of one length. A scheduler that preempts can do better there, where computing anew takes no time.

Source: Jaillet et al., arXiv 2502.07115, section 3, whose memory counts one token more for every request.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ortools.sat.python import cp_model

from dispatchgym.envs.api import UsageError

Objective = Literal["completion", "makespan", "in-time"]
"""Least sum of the ends of all requests; least end of the last; most requests with their first token by `due`."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What is to be served; sequences of equal length.

    Args:
        prompt: tokens. output: rounds. arrival: first round, from 0, in which the request may run.
        due: last round in which the first token counts as in time; left out, none is late.
    """

    prompt: Sequence[int]
    output: Sequence[int]
    arrival: Sequence[int]
    due: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, slots=True)
class HindsightModel:
    """A model and its variables: `start[i][t]` is whether request i makes its first token in round t."""

    cp: cp_model.CpModel
    start: list[dict[int, cp_model.IntVar]]


@dataclass(frozen=True, slots=True)
class Hindsight:
    """What came of a solve.

    Args:
        status: 'optimal', 'feasible' (stopped at the limit), or 'unknown'.
        objective: reached by `start`, None without any. bound: proven; nothing is better.
        start: the round of each request's first token.
        wall_s: of the solve.
    """

    status: str
    objective: int | None
    bound: int
    start: tuple[int, ...]
    wall_s: float


def build_model(
    requests: Requests, memory: int, *, objective: Objective = "completion", most: int = 0
) -> HindsightModel:
    """A variable for each request and round in which it may begin; a row for each round's KV.

    Args:
        memory: tokens of KV that fit.
        most: requests that run in a round, 0 for any number.

    Raises:
        UsageError: a request that never fits.
    """
    cp = cp_model.CpModel()
    horizon = max(requests.arrival, default=0) + sum(requests.output)
    held: list[list[cp_model.LinearExprT]] = [[] for _ in range(horizon)]
    members: list[list[cp_model.LinearExprT]] = [[] for _ in range(horizon)]
    start: list[dict[int, cp_model.IntVar]] = []
    ends: list[cp_model.LinearExprT] = []
    in_time: list[cp_model.LinearExprT] = []
    for i in range(len(requests)):
        length = requests.output[i]
        if requests.prompt[i] + length - 1 > memory:
            raise UsageError(f"hindsight: request {i} needs more than {memory} tokens of KV")
        own = {t: cp.new_bool_var(f"start_{i}_{t}") for t in range(requests.arrival[i], horizon - length + 1)}
        cp.add_exactly_one(own.values())
        for t, begins in own.items():
            for k in range(length):
                held[t + k].append((requests.prompt[i] + k) * begins)
                members[t + k].append(begins)
        ends.append(sum((t + length) * begins for t, begins in own.items()))
        in_time += [begins for t, begins in own.items() if not requests.due or t <= requests.due[i]]
        start.append(own)
    for terms in held:
        cp.add(sum(terms) <= memory)
    if most:
        for terms in members:
            cp.add(sum(terms) <= most)
    if objective == "in-time":
        cp.maximize(sum(in_time))
    elif objective == "makespan":
        latest = cp.new_int_var(0, horizon, "makespan")
        for end in ends:
            cp.add(latest >= end)
        cp.minimize(latest)
    else:
        cp.minimize(sum(ends))
    return HindsightModel(cp, start)


def solve(
    requests: Requests,
    memory: int,
    *,
    objective: Objective = "completion",
    most: int = 0,
    hint: Sequence[int] = (),
    deterministic_limit: float = 10.0,
    workers: int = 1,
    seed: int = 0,
) -> Hindsight:
    """The best rounds found, and what nothing can beat.

    Args:
        hint: rounds of the first tokens to begin with.
        deterministic_limit: the same work on every machine, about seconds.

    Raises:
        UsageError: as `build_model`.
    """
    model = build_model(requests, memory, objective=objective, most=most)
    for own, given in zip(model.start, hint, strict=False):
        for t, begins in own.items():
            model.cp.add_hint(begins, t == given)
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = deterministic_limit
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    solver.parameters.linearization_level = 2
    began = time.perf_counter()
    status = solver.solve(model.cp)
    wall_s = time.perf_counter() - began
    bound = round(solver.best_objective_bound)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Hindsight("unknown", None, max(bound, 0), (), wall_s)
    start = tuple(next(t for t, begins in own.items() if solver.value(begins)) for own in model.start)
    said = "optimal" if status == cp_model.OPTIMAL else "feasible"
    return Hindsight(said, round(solver.objective_value), bound, start, wall_s)
