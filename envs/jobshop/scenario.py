"""Machine shutdowns of one run, drawn before it starts so that every policy meets the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError, UsageError
from dispatchgym.envs.jobshop.instance import MAX_MACHINES, MAX_TIME, Instance, frozen_array

OnInterrupt = Literal["resume", "restart"]

FORMAT = "dispatchgym/jobshop-scenario"
SCHEMA = 1

LAST_TIME = 4 * MAX_TIME
"""Latest repair: a drawn window starts before 2 x MAX_TIME and is at most 2 x MAX_TIME long."""

CHUNK = 64
"""Renewals drawn at a time; fixed, so that a longer horizon only appends windows."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """Machine m is down during the half-open windows down_from[k] .. down_to[k], k in ptr[m] : ptr[m + 1].

    Windows of a machine are sorted and do not touch. A shutdown at the very instant an operation
    ends does not interrupt it. An interrupted operation goes on after the repair ("resume") or is
    processed anew ("restart"); it keeps the machine meanwhile. While a machine is down no job
    enters it and none leaves it; the one exception is a job's last operation ending as the
    shutdown begins, which leaves.

    Raises:
        InvalidInstanceError: windows that are empty, unsorted, touching or before time 0; offsets that do not fit.
    """

    ptr: npt.NDArray[np.int32]  # (machines + 1,)
    down_from: npt.NDArray[np.int64]  # (windows,)
    down_to: npt.NDArray[np.int64]  # (windows,)
    on_interrupt: OnInterrupt = "resume"

    def __post_init__(self) -> None:
        for key, dtype in (("ptr", np.int32), ("down_from", np.int64), ("down_to", np.int64)):
            object.__setattr__(self, key, frozen_array(getattr(self, key), dtype, f"scenario: {key}"))
        if self.on_interrupt not in get_args(OnInterrupt):
            raise InvalidInstanceError(
                f"scenario: on_interrupt is {self.on_interrupt!r}; it must be one of {', '.join(get_args(OnInterrupt))}"
            )
        windows = len(self.down_from)
        if len(self.down_to) != windows:
            raise InvalidInstanceError(f"scenario: {windows} shutdowns but {len(self.down_to)} repairs")
        if len(self.ptr) < 2 or self.ptr[0] != 0 or self.ptr[-1] != windows or (np.diff(self.ptr) < 0).any():
            raise InvalidInstanceError(
                f"scenario: machine offsets must rise from 0 to {windows} and name at least one machine"
            )
        for m in range(self.num_machines):
            before = -1
            for start, end in self.windows(m):
                if start < 0 or end <= start or end > LAST_TIME:
                    raise InvalidInstanceError(
                        f"scenario: machine {m} is down from {start} to {end}; "
                        f"a window needs 0 <= from < to <= {LAST_TIME}"
                    )
                if start <= before:
                    raise InvalidInstanceError(
                        f"scenario: machine {m} goes down at {start} but its window before ends at {before}; "
                        "windows must be sorted and leave time between them"
                    )
                before = end

    @property
    def num_machines(self) -> int:
        return len(self.ptr) - 1

    def windows(self, machine: int) -> list[tuple[int, int]]:
        """The (shutdown, repair) times of `machine`, in time order."""
        if not 0 <= machine < self.num_machines:
            raise UsageError(f"scenario: machine {machine} is not one of 0 to {self.num_machines - 1}")
        mine = slice(int(self.ptr[machine]), int(self.ptr[machine + 1]))
        return list(zip(self.down_from[mine].tolist(), self.down_to[mine].tolist(), strict=True))

    def downtime(self) -> list[dict[str, int]]:
        """Every window as {machine, from, to}, by machine and time: what evidence files and scenario files hold."""
        return [
            {"machine": m, "from": start, "to": end} for m in range(self.num_machines) for start, end in self.windows(m)
        ]

    @classmethod
    def from_downtime(cls, num_machines: int, rows: Iterable[object], on_interrupt: OnInterrupt = "resume") -> Scenario:
        """The scenario of {machine, from, to} rows, in any order; the inverse of `downtime`.

        Raises:
            InvalidInstanceError: naming the row and the value that cannot be.
        """
        if not 1 <= num_machines <= MAX_MACHINES:
            raise InvalidInstanceError(f"scenario: {num_machines} machines; a shop has 1 to {MAX_MACHINES}")
        windows: list[tuple[int, int, int]] = []
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping) or set(row) != {"machine", "from", "to"}:
                raise InvalidInstanceError(f"scenario: window {number} is {row!r:.80}; it needs machine, from and to")
            values = []
            for key in ("machine", "from", "to"):
                value = row[key]
                if type(value) is not int or abs(value) > LAST_TIME:
                    raise InvalidInstanceError(
                        f"scenario: window {number} has {key} {value!r:.80}; "
                        f"it must be a whole number up to {LAST_TIME}"
                    )
                values.append(value)
            if not 0 <= values[0] < num_machines:
                raise InvalidInstanceError(
                    f"scenario: window {number} names machine {values[0]}; machines are 0 to {num_machines - 1}"
                )
            windows.append((values[0], values[1], values[2]))
        windows.sort()
        counts = np.bincount([m for m, _, _ in windows], minlength=num_machines)
        return cls(
            np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
            np.array([start for _, start, _ in windows], np.int64),
            np.array([end for _, _, end in windows], np.int64),
            on_interrupt,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the scenario as JSON: {format, schema, machines, on_interrupt, downtime: [{machine, from, to}]}."""
        document = {
            "format": FORMAT,
            "schema": SCHEMA,
            "machines": self.num_machines,
            "on_interrupt": self.on_interrupt,
            "downtime": self.downtime(),
        }
        Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Scenario:
        """Read what `save` wrote.

        Raises:
            InvalidInstanceError: naming the file and the value that cannot be.
        """

        def refuse(what: str) -> InvalidInstanceError:
            return InvalidInstanceError(f"{path}: {what}")

        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise refuse(f"cannot be read ({error.strerror})") from error
        except ValueError as error:  # both a bad encoding and bad JSON
            raise refuse(f"is not a JSON file ({error})") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise refuse(f"is not a scenario; it must hold an object with format {FORMAT!r}")
        if document.get("schema") != SCHEMA:
            raise refuse(f"has schema {document.get('schema')!r:.40}; this version reads schema {SCHEMA}")
        missing = {"machines", "on_interrupt", "downtime"} - set(document)
        if missing:
            raise refuse(f"lacks {', '.join(sorted(missing))}")
        machines, rows = document["machines"], document["downtime"]
        if type(machines) is not int:
            raise refuse(f"machines is {machines!r:.80}; it must be a whole number")
        if not isinstance(rows, list):
            raise refuse(f"downtime is {rows!r:.80}; it must be a list of windows")
        try:
            return cls.from_downtime(machines, rows, document["on_interrupt"])
        except InvalidInstanceError as error:
            raise refuse(str(error)) from error


def no_shutdowns(num_machines: int) -> Scenario:
    """The scenario in which every machine is always up."""
    return Scenario.from_downtime(num_machines, ())


def draw(
    instance: Instance,
    shutdown_probability: float,
    seed: int,
    on_interrupt: OnInterrupt = "resume",
    horizon: int | None = None,
) -> Scenario:
    """A random scenario: per machine an alternating renewal process, up first, independent of any policy.

    Up-times are geometric (1, 2, ...) with the hazard per time unit that makes a shutdown within one
    mean operation duration have probability `shutdown_probability`; down-times are uniform whole
    numbers from 1 to twice the mean duration. Each machine has its own stream, so the scenario
    depends only on the machine count, the mean duration, the horizon, the probability and the seed.

    Args:
        shutdown_probability: in [0, 1); 0 gives no windows.
        seed: a whole number >= 0.
        horizon: no shutdown begins at or after it, time units; default twice the instance's work plus its
            latest release or arrival, each counted twice, so that it lies beyond any reasonable makespan.

    Raises:
        UsageError: a probability, seed or horizon out of range.

    Source: our own law; the one of Wong et al., arXiv 2302.02506, is not public.
    """
    if not 0.0 <= shutdown_probability < 1.0:
        raise UsageError(f"shutdown probability is {shutdown_probability}; it must be at least 0 and below 1")
    if seed < 0:
        raise UsageError(f"scenario seed is {seed}; it must be a whole number >= 0")
    if horizon is None:
        horizon = 2 * int(instance.duration.sum() + instance.earliest.max())
    if not 0 <= horizon <= 2 * MAX_TIME:
        raise UsageError(f"scenario horizon is {horizon}; it must be 0 to {2 * MAX_TIME} time units")
    mean = instance.mean_duration
    hazard = float(-np.expm1(np.log1p(-shutdown_probability) / mean))  # 1 - (1 - p) ** (1 / mean), exact for small p
    if hazard == 0.0:
        return Scenario.from_downtime(instance.num_machines, (), on_interrupt)
    longest_repair = round(2.0 * mean)
    starts, ends = [], []
    for stream in np.random.SeedSequence(seed).spawn(instance.num_machines):
        start, end = _renewals(np.random.default_rng(stream), hazard, longest_repair, horizon)
        starts.append(start)
        ends.append(end)
    ptr = np.cumsum([0, *(len(start) for start in starts)])
    return Scenario(ptr.astype(np.int32), np.concatenate(starts), np.concatenate(ends), on_interrupt)


def _renewals(
    rng: np.random.Generator, hazard: float, longest_repair: int, horizon: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Shutdown and repair times of one machine, as long as the shutdown begins before `horizon`."""
    starts, ends, now = [], [], 0
    while now < horizon:
        up = np.minimum(rng.geometric(hazard, CHUNK), horizon + 1)  # the cap keeps the sum below from overflowing
        down = rng.integers(1, longest_repair, CHUNK, endpoint=True)
        repaired = now + np.cumsum(up + down)
        starts.append(repaired - down)
        ends.append(repaired)
        now = int(repaired[-1])
    if not starts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    start, end = np.concatenate(starts), np.concatenate(ends)
    kept = start < horizon
    return start[kept], end[kept]
