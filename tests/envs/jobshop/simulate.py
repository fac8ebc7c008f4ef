"""The blocking and interrupting shops, simulated slowly and obviously: one time unit after another, no shared code.

Kernels and the validator are held against it. A tick of the loop below is the half-open interval
[time, time + 1); a machine that is up during a tick does one unit of its job's work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario, no_shutdowns
from dispatchgym.envs.jobshop.schedule import Schedule

Choose = Callable[[list[int], int], int | None]
"""Picks one of the candidate jobs at a time, or None to wait for the next event."""


class Deadlock(Exception):
    """Jobs are left, but none can ever move again."""


@dataclass
class Job:
    """A job's state: `op` is the operation it is in, -1 before the first; `work` what is left of it."""

    route: list[tuple[int, int]]
    earliest: int
    op: int = -1
    work: int = 0
    gone: bool = False
    times: dict[str, list[int]] = field(default_factory=lambda: {"start": [], "end": [], "leave": []})

    @property
    def inside(self) -> bool:
        return self.op >= 0 and not self.gone

    @property
    def machine(self) -> int:
        return self.route[self.op][0]

    @property
    def target(self) -> int:
        return self.route[self.op + 1][0]


def simulate(instance: Instance, variant: str, choose: Choose, scenario: Scenario | None = None) -> Schedule:
    """The schedule that `choose` makes in a blocking shop: "bws", "bns" or "isbjssp".

    A job is a candidate if it is through with its operation (or released, arrived and not yet in the
    shop), the machine it is on is up, and the machine it wants is up and either free or its own, or,
    with swaps, the job is on a cycle of such jobs that each hold what the one before wants. Choosing a
    job on a cycle moves the whole cycle. After each move `choose` is asked again at the same time;
    None lets time run to the next completion, release, arrival, shutdown or repair. If nothing of
    that kind lies ahead, a wait would never end and the first candidate moves instead.

    Raises:
        Deadlock: no candidate is left and nothing lies ahead; only "bns" gets there.
    """
    scenario = scenario or no_shutdowns(instance.num_machines)
    windows = {m: scenario.windows(m) for m in range(instance.num_machines)}
    jobs = {
        j: Job(
            [(int(instance.machine[o]), int(instance.duration[o])) for o in range(first, last)],
            int(max(instance.release[j], instance.arrival[j])),
        )
        for j, (first, last) in enumerate(
            zip(instance.job_ptr[:-1].tolist(), instance.job_ptr[1:].tolist(), strict=True)
        )
    }

    def is_up(machine: int, time: int) -> bool:
        return not any(start <= time < end for start, end in windows[machine])

    def holder(machine: int) -> int | None:
        return next((j for j, job in jobs.items() if job.inside and job.machine == machine), None)

    def wants_to_move(j: int, time: int) -> bool:
        """Ready to start its next operation as far as the job and the two machines' health go."""
        job = jobs[j]
        if job.gone or job.work > 0 or time < job.earliest:
            return False
        return is_up(job.target, time) and (not job.inside or is_up(job.machine, time))

    def moved_with(j: int, time: int) -> list[int]:
        """The jobs that move when j does, nobody if j cannot."""
        chain = [j]
        while wants_to_move(chain[-1], time):
            blocker = holder(jobs[chain[-1]].target)
            if len(chain) == 1 and blocker in (None, j):
                return chain
            if blocker == j and variant != "bns":
                return chain
            if blocker is None or blocker in chain:
                return []  # leads to a free machine or a cycle without j: not j's turn
            chain.append(blocker)
        return []

    def start_next(j: int, time: int) -> None:
        job = jobs[j]
        if job.inside:
            job.times["leave"].append(time)
        job.op += 1
        job.work = job.route[job.op][1]
        job.times["start"].append(time)

    def something_ahead(time: int) -> bool:
        return (
            any(job.inside and job.work > 0 for job in jobs.values())
            or any(job.earliest > time for job in jobs.values())
            or any(end > time for spans in windows.values() for _, end in spans)
        )

    def event_at(time: int) -> bool:
        """A release, an arrival, a shutdown or a repair happens now."""
        return any(job.earliest == time for job in jobs.values()) or any(
            time in span for spans in windows.values() for span in spans
        )

    time, awake = 0, True
    while not all(job.gone for job in jobs.values()):
        while awake:
            candidates = [j for j in jobs if moved_with(j, time)]
            if not candidates:
                break
            chosen = choose(candidates, time)
            if chosen is None and something_ahead(time):
                break
            for j in moved_with(candidates[0] if chosen is None else chosen, time):
                start_next(j, time)
        if not something_ahead(time):
            raise Deadlock(f"at time {time}")

        completed = False
        for job in jobs.values():
            if not job.inside or job.work == 0:
                continue
            if is_up(job.machine, time):
                job.work -= 1
            elif scenario.on_interrupt == "restart":
                job.work = job.route[job.op][1]
            if job.work == 0:
                completed = True
                job.times["end"].append(time + 1)
                if job.op == len(job.route) - 1:
                    job.times["leave"].append(time + 1)
                    job.gone = True
        time += 1
        awake = completed or event_at(time)

    return Schedule(
        *(np.array([t for job in jobs.values() for t in job.times[key]], np.int64) for key in ("start", "end", "leave"))
    )


def simulate_classic(instance: Instance, choose: Choose) -> Schedule:
    """The schedule of a classic shop in which the chosen job's next operation starts as soon as it can."""
    start, end = {}, {}
    job_free = {j: int(max(instance.release[j], instance.arrival[j])) for j in range(instance.num_jobs)}
    machine_free = dict.fromkeys(range(instance.num_machines), 0)
    next_op = {j: int(instance.job_ptr[j]) for j in range(instance.num_jobs)}
    while left := [j for j in next_op if next_op[j] < instance.job_ptr[j + 1]]:
        j = choose(left, 0)
        if j is None:
            continue
        op = next_op[j]
        m = int(instance.machine[op])
        start[op] = max(job_free[j], machine_free[m])
        end[op] = start[op] + int(instance.duration[op])
        job_free[j] = machine_free[m] = end[op]
        next_op[j] += 1
    times = [np.array([column[op] for op in range(instance.num_ops)], np.int64) for column in (start, end)]
    return Schedule(times[0], times[1], times[1].copy())
