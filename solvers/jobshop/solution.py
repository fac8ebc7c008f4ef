"""What an exact solver returns: a status, a bound, a schedule and how the two met over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dispatchgym.envs.jobshop.schedule import Schedule

Status = Literal["optimal", "feasible", "infeasible", "unknown"]
"""Proven least makespan; a schedule but no proof; proven that there is none; neither when the limit came."""


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A moment of a search at which the best makespan or the bound improved.

    Args:
        wall_s: seconds since the solve was called.
        objective: best makespan so far, None before the first schedule.
        bound: makespan proven to be a lower bound so far.
    """

    wall_s: float
    objective: int | None
    bound: int


@dataclass(frozen=True, slots=True)
class Solution:
    """The outcome of one solve. Reaching a limit is a status, not an error.

    Args:
        status: see `Status`.
        objective: makespan of `schedule`, None without one.
        bound: no schedule has a smaller makespan.
        wall_s: seconds from call to return, building the model included.
        cpu_s: processor seconds of this process in that time, all threads.
        deterministic_s: the solver's own count of work done, comparable between machines.
        schedule: the best schedule found, valid; None without one.
        history: every improvement of makespan or bound, in time order.
        workers: search threads asked for.
        seed: of the search.
        version: of the solver, as 'ortools 9.15.6755'.
    """

    status: Status
    objective: int | None
    bound: int
    wall_s: float
    cpu_s: float
    deterministic_s: float
    schedule: Schedule | None
    history: tuple[Incumbent, ...]
    workers: int
    seed: int
    version: str
