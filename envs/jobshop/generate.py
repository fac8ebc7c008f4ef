"""Random instances for training and for tests beyond the published ones."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.instance import MAX_MACHINES, MAX_TIME, Instance
from dispatchgym.envs.registry import unknown_name

Routing = Literal["free", "flow", "two-sets"]


def random_instance(
    rng: np.random.Generator,
    num_jobs: int,
    num_machines: int,
    *,
    durations: tuple[int, int] = (1, 99),
    operations: tuple[int, int] | None = None,
    routing: Routing = "free",
    reentrant: bool = False,
    release_spread: float = 0.0,
    load: float | None = None,
    name: str | None = None,
) -> Instance:
    """A random instance; the defaults are Taillard's: every job visits every machine once, in any order.

    Args:
        durations: least and largest duration, drawn uniformly, both included.
        operations: fewest and most operations of a job, drawn uniformly; default all machines. A job with
            fewer operations than machines visits a random subset of them.
        routing: "free": any order. "flow": machines in rising order, so that all jobs flow one way.
            "two-sets": first machines of the lower half, then of the upper, as in Storer, Wu and Vaccari's
            instances; half of a job's operations in each, the larger half first.
        reentrant: a job may come back to a machine, though not in the next operation if there is another
            choice. A "flow" job then goes through the line again from its first machine.
        release_spread: releases are drawn uniformly from 0 to this share of the mean work of a machine.
        load: arrivals are a Poisson process, the first job at time 0, at the rate at which the mean machine
            would be busy this share of the time (0.8 is busy, above 1 a growing queue). Default: all are
            there at time 0.
        name: default "random-JOBSxMACHINES".

    Raises:
        UsageError: an argument that cannot be; UnknownNameError for an unknown routing.
    """
    fewest, most = operations or (num_machines, num_machines)
    if routing not in get_args(Routing):
        raise unknown_name("routing", routing, get_args(Routing))
    for is_wrong, message in (
        (num_jobs < 1, f"{num_jobs} jobs; an instance needs at least one"),
        (not 1 <= num_machines <= MAX_MACHINES, f"{num_machines} machines; a shop has 1 to {MAX_MACHINES}"),
        (not 0 <= durations[0] <= durations[1] <= MAX_TIME, f"durations {durations}; they need 0 <= least <= largest"),
        (not 1 <= fewest <= most, f"jobs of {fewest} to {most} operations; they need 1 <= fewest <= most"),
        (
            most > num_machines and not reentrant,
            f"jobs of up to {most} operations on {num_machines} machines come back to one; set reentrant to allow it",
        ),
        (routing == "two-sets" and num_machines < 2, "routing 'two-sets' needs at least 2 machines"),
        (not 0.0 <= release_spread <= 1000.0, f"release spread is {release_spread}; it must be a share from 0 to 1000"),
        (load is not None and not 0.001 <= load <= 1000.0, f"load is {load}; it must be a share from 0.001 to 1000"),
    ):
        if is_wrong:
            raise UsageError(message)

    routes = []
    for length in rng.integers(fewest, most, num_jobs, endpoint=True).tolist():
        machines = _route(rng, num_machines, length, routing, reentrant)
        times = rng.integers(durations[0], durations[1], length, endpoint=True).tolist()
        routes.append(list(zip(machines, times, strict=True)))
    work = sum(duration for route in routes for _, duration in route)

    release: list[int] = []
    if release_spread > 0.0:
        release = rng.integers(0, round(release_spread * work / num_machines), num_jobs, endpoint=True).tolist()
    arrival: list[int] = []
    if load is not None:
        mean_gap = work / num_jobs / (num_machines * load)
        arrival = np.concatenate(([0.0], np.cumsum(rng.exponential(mean_gap, num_jobs - 1)))).astype(np.int64).tolist()
    return Instance.from_routes(name or f"random-{num_jobs}x{num_machines}", routes, num_machines, release, arrival)


def _route(rng: np.random.Generator, num_machines: int, length: int, routing: Routing, reentrant: bool) -> list[int]:
    """The machines of one job, in order."""
    if routing == "two-sets":
        lower = (num_machines + 1) // 2
        first = _leg(rng, lower, (length + 1) // 2, reentrant)
        second = _leg(rng, num_machines - lower, length // 2, reentrant)
        return [*first, *(lower + m for m in second)]
    if routing == "flow":
        visited = np.sort(rng.permutation(num_machines)[:length])
        return [int(visited[k % len(visited)]) for k in range(length)]
    return _leg(rng, num_machines, length, reentrant)


def _leg(rng: np.random.Generator, num_machines: int, length: int, reentrant: bool) -> list[int]:
    """`length` machines in any order: all different, or if `reentrant` only different from the one before."""
    if not reentrant:
        return [int(m) for m in rng.permutation(num_machines)[:length]]
    machines: list[int] = []
    for _ in range(length):
        if not machines or num_machines == 1:
            machines.append(int(rng.integers(num_machines)))
        else:
            machines.append((machines[-1] + 1 + int(rng.integers(num_machines - 1))) % num_machines)
    return machines
