"""Steps that stop in the middle when somebody comes: when they go on, and when others go first.

The choices of a step are about whole pieces; this is what a scheduler that plans by them does with an engine that can
stop a forward pass at a layer. A step that only reads prompts may stop. It goes on at once, unless somebody could still
be in time but not behind its rest: then the choices decide, its rest among them.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.columns import BRIEF
from dispatchgym.envs.llm.outlook import made_late
from dispatchgym.envs.llm.planning import step_of_plan
from dispatchgym.envs.llm.policy import EngineView
from dispatchgym.envs.llm.sight import Sight

Members = frozenset[int]
Grants = npt.NDArray[np.int64]


class Interruptions:
    """What a scheduler remembers of the steps that were stopped."""

    def __init__(self) -> None:
        self._rest_s: dict[Members, float] = {}
        self._last: tuple[Members, float, float] | None = None  # the step that was planned, when, how long it takes

    @staticmethod
    def prepare(sight: Sight) -> None:
        """Compile what is rarely needed, before anybody waits for it."""
        made_late(sight, -1, 0.0, BRIEF)
        step_of_plan(sight)

    def going_on(self, sight: Sight, view: EngineView) -> Grants | None:
        """A plan that goes on with a stopped step, or None if the choices decide. `sight` shows the view."""
        open_steps = self._open(view)
        if not open_steps or view.running.decoding.any():
            return None
        group = min(open_steps, key=lambda g: self._rest_s.get(open_steps[g], 0.0))
        members = open_steps[group]
        rest_s = self._rest_s.get(members, 0.0)
        if made_late(sight, group, rest_s, BRIEF):
            return None
        self._last = (members, view.now_s, rest_s)
        return _all_of(members)

    def _open(self, view: EngineView) -> dict[int, Members]:
        """Stopped steps, by number; what is left of the newest is worked out, those that are over are forgotten."""
        if view.interrupted and self._last is not None:
            members, began_s, took_s = self._last
            self._rest_s[members] = max(took_s - (view.now_s - began_s), 0.0)
        self._last = None
        number, ids = view.running.group, view.running.id
        if number.max(initial=-1) < 0:
            self._rest_s.clear()
            return {}
        found = {int(g): frozenset(ids[number == g].tolist()) for g in np.unique(number[number >= 0])}
        self._rest_s = {members: self._rest_s.get(members, 0.0) for members in found.values()}
        return found

    def fitted(self, grants: Grants, sight: Sight, view: EngineView) -> tuple[Grants, bool]:
        """The grants without what cannot share a step, and whether the step may stop.

        A stopped step goes on alone: if its request comes first among those that read, or is overdue, the others are
        left out, and else it is.
        """
        running, h = view.running, cast(Any, sight.head[0])
        if self._rest_s:  # there are stopped steps
            stopped = running.id[running.group >= 0]
            reads = np.isin(grants[:, 0], running.id[running.decoding], invert=True)
            first = grants[reads][:1, 0].tolist()
            if h["overdue"] >= 0:
                overdue = int(sight.id[h["overdue"]])
                first = [overdue] if overdue in grants[:, 0] else first
            if first and first[0] in stopped:
                number = running.group[running.id == first[0]]
                members = frozenset(running.id[running.group == number].tolist())
                self._last = (members, view.now_s, self._rest_s.get(members, 0.0))
                return _all_of(members), True
            grants = grants[np.isin(grants[:, 0], stopped, invert=True)]
        may_stop = len(grants) > 0 and int(h["decodes"]) == 0
        self._last = None
        if may_stop:
            self._last = (frozenset(grants[:, 0].tolist()), view.now_s, float(step_of_plan(sight)))
        return grants, may_stop


def _all_of(members: Members) -> Grants:
    """A grant to one of them goes on with all."""
    return np.array([[min(members), 1]], np.int64)
