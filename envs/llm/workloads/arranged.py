"""Workloads from columns in any order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.workload import Workload


def arranged(arrival_s: npt.NDArray[Any], prompt: npt.NDArray[Any], output: npt.NDArray[Any], **rest: Any) -> Workload:
    """A workload of columns in any order of arrival, and from any first time: it is put at 0 s."""
    arrival_s = np.asarray(arrival_s, np.float64)
    order = np.argsort(arrival_s, kind="stable")
    unordered = Workload(np.zeros(len(order)), prompt, output, **rest)
    ordered = unordered if (np.diff(order) > 0).all() else unordered.take(order)
    return replace(ordered, arrival_s=arrival_s[order] - arrival_s[order[:1]])
