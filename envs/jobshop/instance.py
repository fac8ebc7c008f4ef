"""A job-shop instance: routes, durations, release times and arrivals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError

MAX_TIME = 2**40
"""Largest sum of all durations, releases and arrivals: leaves room for int64 arithmetic on times."""

MAX_MACHINES = 2**20
"""Most machines of a shop: simulators and solvers keep arrays of one entry a machine."""

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """Jobs as one flat list of operations; job j owns operations job_ptr[j]:job_ptr[j + 1], in route order.

    Jobs may have different lengths and visit a machine more than once. All times are integers in
    the instance's own time unit.

    Args:
        name: what results call it.
        job_ptr: shape (jobs + 1,), offsets of each job's operations.
        machine: shape (ops,), machine of each operation, 0 .. num_machines - 1.
        duration: shape (ops,), processing time, >= 0.
        num_machines: machines in the shop; a machine may have no operation.
        release: shape (jobs,), earliest start of each job, known from the beginning. Default 0.
        arrival: shape (jobs,), the moment the job becomes known and may start. Default 0.

    Raises:
        InvalidInstanceError: no job, an empty job, an unknown machine, a negative or absurd time.
    """

    name: str
    job_ptr: I32
    machine: I32
    duration: I64
    num_machines: int
    release: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    arrival: I64 = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        put = object.__setattr__
        for key, dtype in (("job_ptr", np.int32), ("machine", np.int32), ("duration", np.int64)):
            put(self, key, frozen_array(getattr(self, key), dtype, f"{self.name}: {key}"))
        for key in ("release", "arrival"):
            given = np.asarray(getattr(self, key))
            value = given if given.size else np.zeros(max(0, len(self.job_ptr) - 1), np.int64)
            put(self, key, frozen_array(value, np.int64, f"{self.name}: {key}"))
        self._check()

    def _check(self) -> None:
        def refuse(what: str) -> InvalidInstanceError:
            return InvalidInstanceError(f"instance {self.name!r}: {what}")

        if len(self.job_ptr) < 2 or self.job_ptr[0] != 0 or self.job_ptr[-1] != len(self.machine):
            raise refuse(f"job offsets must run from 0 to {len(self.machine)} and name at least one job")
        lengths = np.diff(self.job_ptr)
        if (lengths <= 0).any():
            raise refuse(f"job {int(np.argmax(lengths <= 0))} has no operation; drop it or give it one")
        if len(self.duration) != len(self.machine):
            raise refuse(f"{len(self.machine)} machines but {len(self.duration)} durations")
        if not 1 <= self.num_machines <= MAX_MACHINES:
            raise refuse(f"num_machines is {self.num_machines}; a shop has 1 to {MAX_MACHINES} machines")
        outside = (self.machine < 0) | (self.machine >= self.num_machines)
        if outside.any():
            op = int(np.argmax(outside))
            raise refuse(
                f"operation {self.op_name(op)} names machine {self.machine[op]}; "
                f"machines are 0 to {self.num_machines - 1}"
            )
        if (self.duration < 0).any():
            op = int(np.argmax(self.duration < 0))
            raise refuse(f"operation {self.op_name(op)} has duration {self.duration[op]}; it must not be negative")
        for key in ("release", "arrival"):
            times = getattr(self, key)
            if len(times) != self.num_jobs:
                raise refuse(f"{len(times)} {key} times for {self.num_jobs} jobs")
            if (times < 0).any():
                j = int(np.argmax(times < 0))
                raise refuse(f"job {j} has {key} time {times[j]}; it must not be negative")
        total = int(self.duration.astype(object).sum()) + int(self.release.max()) + int(self.arrival.max())
        if total > MAX_TIME:
            raise refuse(f"all times together are {total}, more than {MAX_TIME}; use a coarser time unit")

    @classmethod
    def from_routes(
        cls,
        name: str,
        routes: Sequence[Sequence[tuple[int, int]]],
        num_machines: int | None = None,
        release: Sequence[int] = (),
        arrival: Sequence[int] = (),
    ) -> Instance:
        """Build from one list of (machine, duration) pairs a job.

        `num_machines` defaults to the largest machine named plus one.
        """
        flat = [pair for route in routes for pair in route]
        return cls(
            name,
            np.cumsum([0, *(len(route) for route in routes)]),
            np.array([m for m, _ in flat]),
            np.array([d for _, d in flat]),
            num_machines if num_machines is not None else 1 + max((m for m, _ in flat), default=-1),
            np.asarray(release),
            np.asarray(arrival),
        )

    @property
    def num_jobs(self) -> int:
        return len(self.job_ptr) - 1

    @property
    def num_ops(self) -> int:
        return len(self.machine)

    @property
    def mean_duration(self) -> float:
        """Mean processing time, at least one time unit: the scale of every time feature."""
        return max(1.0, float(self.duration.mean()))

    @property
    def earliest(self) -> I64:
        """Earliest start of each job: the later of release and arrival, shape (jobs,)."""
        return np.maximum(self.release, self.arrival)

    @property
    def size(self) -> str:
        """Jobs x machines, as instance groups are named: '15x15'."""
        return f"{self.num_jobs}x{self.num_machines}"

    @property
    def digest(self) -> str:
        """sha256 of everything but the name: the same problem has the same digest."""
        h = hashlib.sha256(f"{self.num_machines}".encode())
        for a in (self.job_ptr, self.machine, self.duration, self.release, self.arrival):
            h.update(np.ascontiguousarray(a, np.int64).tobytes() + b"|")
        return h.hexdigest()

    def op_job(self) -> I32:
        """Job of each operation, shape (ops,)."""
        return np.repeat(np.arange(self.num_jobs, dtype=np.int32), np.diff(self.job_ptr))

    def op_name(self, op: int) -> str:
        """'(job, position)' of a flat operation number, for messages."""
        job = int(np.searchsorted(self.job_ptr, op, side="right")) - 1
        return f"({job}, {op - int(self.job_ptr[job])})"


def frozen_array(value: npt.ArrayLike, dtype: type[np.integer], what: str) -> npt.NDArray[np.integer]:
    """A read-only copy of `value` as `dtype`; anything but a flat list of whole numbers that fit is refused."""
    wide = np.asarray(value)
    if wide.dtype.kind not in "iu":  # numpy made floats or objects of Python integers beyond 64 bits, or of nothing
        wide = np.asarray(value, object)
    if wide.ndim != 1 or (wide.dtype.kind == "O" and not all(type(v) is int for v in wide)):
        raise InvalidInstanceError(f"{what} must be a flat list of whole numbers, got {value!r:.80}")
    limits = np.iinfo(dtype)
    outside = (wide < limits.min) | (wide > limits.max)
    if outside.any():
        raise InvalidInstanceError(f"{what} holds {wide[np.argmax(outside)]}, too large for a time or an index")
    array = wide.astype(dtype)
    array.setflags(write=False)
    return array
