"""Steps that stop in the middle when somebody comes: when they go on, and when others go first.

The choices of a step are about whole pieces; this is what a scheduler that plans by them does with an engine that can
stop a forward pass at a layer. A step that only reads prompts may stop. It goes on at once, unless somebody could still
be in time but not behind its rest: then the choices decide, its rest among them. If what they choose helps nobody of
these, it goes on after all: or steps would be begun, stopped and left, one after the other.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.columns import BRIEF
from dispatchgym.envs.llm.outlook import chance_of_danger, made_late, note_newcomers
from dispatchgym.envs.llm.planning import step_of_plan
from dispatchgym.envs.llm.policy import EngineView
from dispatchgym.envs.llm.sight import Sight

Members = frozenset[int]
Grants = npt.NDArray[np.int64]
_NOBODY = np.zeros(0, np.int64)

NEWEST = 128
"""Of those who came last, so many stand for who comes next."""

SELDOM = 0.05
"""Chance that the next to come would be late behind a step, up to which it need not stop: that takes time, too."""


class Interruptions:
    """What a scheduler remembers of the steps that were stopped."""

    def __init__(self) -> None:
        self._rest_s: dict[Members, float] = {}
        self._last: tuple[Members, float, float] | None = None  # the step that was planned, when, how long it takes
        self._stopped: Members = frozenset()  # the stopped step that could go on
        self._in_danger = _NOBODY  # who would be late behind its rest
        self._spare_s, self._came, self._seen_s = np.empty(NEWEST), 0, -np.inf  # of who came, up to when

    @staticmethod
    def prepare(sight: Sight) -> None:
        """Compile what is rarely needed, before anybody waits for it."""
        made_late(sight, -1, 0.0, BRIEF, np.empty(len(sight.id), np.int64))
        step_of_plan(sight)
        note_newcomers(sight, np.inf, np.empty(NEWEST), 0)
        chance_of_danger(sight, np.empty(NEWEST), 0.0, BRIEF)

    def may_stop(self, sight: Sight) -> bool:
        """The step that was planned, or goes on, should stop when somebody comes: who does could be late behind it."""
        if self._last is None:
            return False
        known = self._spare_s[: min(self._came, NEWEST)]
        return chance_of_danger(sight, known, self._last[2], BRIEF) > SELDOM

    def going_on(self, sight: Sight, view: EngineView) -> Grants | None:
        """A plan that goes on with a stopped step, or None if the choices decide. `sight` shows the view."""
        self._came = note_newcomers(sight, self._seen_s, self._spare_s, self._came)
        self._seen_s = view.now_s
        open_steps = self._open(view)
        self._stopped = frozenset()
        if not open_steps or view.running.decoding.any():
            return None
        group = min(open_steps, key=lambda g: self._rest_s.get(open_steps[g], 0.0))
        members = open_steps[group]
        rest_s = self._rest_s.get(members, 0.0)
        in_danger = np.empty(len(sight.id), np.int64)
        count = made_late(sight, group, rest_s, BRIEF, in_danger)
        if count == 0:
            return self._go_on(members, view)
        self._stopped, self._in_danger = members, in_danger[:count]
        return None

    def _go_on(self, members: Members, view: EngineView) -> Grants:
        """With a stopped step: one grant stands for all of them."""
        self._last = (members, view.now_s, self._rest_s.get(members, 0.0))
        return np.array([[min(members), 1]], np.int64)

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

    def fitted(self, grants: Grants, sight: Sight, view: EngineView) -> Grants:
        """The grants without what cannot share a step; `may_stop` says then whether it may stop.

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
                return self._go_on(frozenset(running.id[running.group == number].tolist()), view)
            grants = grants[np.isin(grants[:, 0], stopped, invert=True)]
            if self._stopped and h["overdue"] < 0 and not np.isin(grants[:, 0], self._in_danger).any():
                return self._go_on(self._stopped, view)
        self._last = None
        if len(grants) and int(h["decodes"]) == 0:
            self._last = (frozenset(grants[:, 0].tolist()), view.now_s, float(step_of_plan(sight)))
        return grants
