"""Machine shutdowns of one run, drawn before it starts so that every policy meets the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

OnInterrupt = Literal["resume", "restart"]


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """Machine m is down during the half-open windows down_from[k] .. down_to[k], k in ptr[m] : ptr[m + 1].

    Windows of a machine are sorted and do not touch. A shutdown at the very instant an operation
    ends does not interrupt it. An interrupted operation goes on after the repair ("resume") or is
    processed anew ("restart"); it keeps the machine meanwhile. While a machine is down no job
    enters it and none leaves it; the one exception is a job's last operation ending as the
    shutdown begins, which leaves.
    """

    ptr: npt.NDArray[np.int32]  # (machines + 1,)
    down_from: npt.NDArray[np.int64]  # (windows,)
    down_to: npt.NDArray[np.int64]  # (windows,)
    on_interrupt: OnInterrupt = "resume"
