"""Lets requests in by a list made beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.solvers.llm.filling import Filling


class Timetable:
    """Request i comes in at the first step at or after `start[i]` seconds, if its prompt fits then.

    Source: ours, to carry out what `hindsight` found.
    """

    name = "timetable"
    oracle = True

    def __init__(self, start: Sequence[float]) -> None:
        self.start = np.asarray(start, np.float64)

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        fill = Filling(view)
        fill.decode()
        fill.read_all()
        due = self.start[view.waiting.id]
        for k in np.argsort(due, kind="stable").tolist():
            if due[k] > view.now_s or not fill.let_in(k):
                break
        if fill.grants or not len(view.waiting):
            return Plan(grants=fill.grants)
        return Plan(wait_until_s=float(due.min()), wake_on_arrival=False)
