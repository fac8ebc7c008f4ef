"""A schedule and the one validator that judges every schedule of every env, rule and solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario

Variant = Literal["jssp", "bws", "bns", "isbjssp"]
"""Classic; blocking with swap; blocking, no swap; interrupting swap-allowed blocking job shop."""


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Times of every operation, flat in the instance's operation order.

    `start`: the job enters the machine and processing begins; `end`: processing is complete;
    `leave`: the machine is free again (classic shop: `end`; blocking: the start of the job's next
    operation, and `end` for its last). int64, shape (ops,), instance time units.
    """

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    leave: npt.NDArray[np.int64]

    @property
    def makespan(self) -> int:
        return int(self.end.max())


def validate(schedule: Schedule, instance: Instance, variant: Variant, scenario: Scenario | None = None) -> None:
    """Raise InvalidScheduleError at the first constraint that `schedule` breaks."""
    raise NotImplementedError
