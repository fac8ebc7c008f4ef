"""A scheduler that plans a step choice by choice: by the linear merit alone, or by a network that scores the choices.

It sees what every scheduler sees, a view, and so runs in a simulation, in an evaluation and in a live server alike.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.compiled_network import score, scratch
from dispatchgym.agents.llm_drafts import draft_of
from dispatchgym.agents.llm_interruptions import Interruptions
from dispatchgym.agents.numpy_network import NumpyNetwork, Stacked
from dispatchgym.agents.runtime import OneGraph, Runtime
from dispatchgym.envs.api import InvalidPlanError
from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.llm.batch import ChoicesConfig
from dispatchgym.envs.llm.choices import also_run, list_choices
from dispatchgym.envs.llm.columns import Choices, new_choices
from dispatchgym.envs.llm.graph import RUN, WAIT
from dispatchgym.envs.llm.planning import (
    SLOTS,
    hold_of_plan,
    keep_scores,
    look,
    plan_by_merit,
    plan_by_scores,
    take,
)
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.sight import Sight, new_sight, see
from dispatchgym.envs.llm.state import F32, F64, int64
from dispatchgym.envs.llm.turns import WAIT_STEPS

FIRST_ROOM = 512
_FINISH, _NOTHING_ELSE = frozenset(("finish",)), frozenset[str]()
_NOTHING, _NO_NUMBERS = -1, -2


class ChoicePolicy:
    """Plans as `LLMEngine-v0` does: one choice after the other until RUN or WAIT.

    With a network, the choices of a step are scored together, once. Choices above RUN are then taken, the highest
    first; as the plan grows, the merit in the scores is kept up to date, and what the network adds to it stays. `fresh`
    scores anew after every choice instead, as in training; so does a runtime that does not say what the merit weighs.

    Args:
        runtime: the network; None for the merit alone.
        config: how choices are listed.
        name: what results call it.
        fresh: see above.
        stops: steps may stop when a request comes, see `llm_interruptions`; the environment's own do not.
    """

    oracle = False

    def __init__(
        self, runtime: Runtime | None = None, config: ChoicesConfig | None = None, name: str = "merit",
        *, fresh: bool = False, stops: bool = True,
    ) -> None:  # fmt: skip
        self.name = name
        self.config = config or ChoicesConfig()
        self.fresh = fresh
        self.stops = stops
        self._runtime = runtime
        self._network = runtime.stacked() if isinstance(runtime, NumpyNetwork) else None
        self._choices = new_choices(self.config.most, self.config.weights)
        self._sight = new_sight(FIRST_ROOM, self.config.most)
        self._added, self._of_engine = np.empty((FIRST_ROOM, SLOTS + 1)), np.empty(2)
        self._scores = np.empty(self.config.most)
        self._room = np.empty((0, 0), np.float32) if self._network is None else scratch(self._network, self.config.most)

    def reset(self, spec: EngineSpec, seed: int) -> None:
        """A new run begins."""
        self._spec = spec
        self._interruptions = Interruptions()
        self._interruptions.prepare(self._sight)
        self._sight.head["passed"] = 0

    def decide(self, view: EngineView) -> Plan:
        """The next step."""
        self._sight = sight = see(self._sight, view, self._spec)
        goes_on = self._interruptions.going_on(sight, view) if self.stops else None
        if goes_on is not None:
            return Plan(grants=goes_on, interruptible=self._interruptions.may_stop(sight))
        kind = self._plan(sight)
        h: Any = sight.head[0]
        if kind == WAIT:
            return Plan(wait_until_s=view.now_s + WAIT_STEPS * float(h["unit_s"]))
        grants = np.empty((int(h["grants"]), 2), np.int64)
        grants[:, 0] = sight.grant[: len(grants)]
        grants[:, 1] = sight.tokens[: len(grants)]
        out = [(int(r), "recompute") for r in sight.out[: int(h["preempted"])]]
        grants[: int(h["decodes"]), 1] += draft_of(h, self._spec)
        may_stop = False
        if self.stops:
            grants = self._interruptions.fitted(grants, sight, view)
            may_stop = self._interruptions.may_stop(sight)
        hold = int(hold_of_plan(sight))
        everyone = int(h["decodes"]) == int(h["running"]) and len(view.waiting) == 0
        through = _FINISH if everyone and self._spec.profile.rebuild_s > 0 else _NOTHING_ELSE
        return Plan(grants, out, hold_steps=hold, hold_through=through, interruptible=may_stop)

    def _plan(self, sight: Sight) -> int:
        runtime = self._runtime
        if runtime is None:
            return int(plan_by_merit(sight, self._choices))
        weight = runtime.rule_weight
        return self._anew(sight, runtime) if self.fresh or weight is None else self._once(sight, runtime, weight)

    def _once(self, sight: Sight, runtime: Runtime, weight: float) -> int:
        """Score the choices that the step begins with, RUN among them, and plan by these scores."""
        choices = self._choices
        if len(self._added) < len(sight.id):
            self._added = np.empty((len(sight.id), SLOTS + 1))
        if self._network is not None:
            kind = int(
                _plan_once(
                    sight, choices, self._network, self._room, self._scores, weight, self._added, self._of_engine
                )
            )
            if kind == _NO_NUMBERS:
                raise self._no_numbers()
            return kind
        look(sight)
        list_choices(sight, choices)
        while choices.size[0] == 1:
            kind = int(take(sight, choices, 0))
            if kind in (RUN, WAIT):
                return kind
            list_choices(sight, choices)
        count = int(choices.size[0])
        if count == 0:
            return _NOTHING
        if choices.kind[count - 1] != RUN:
            also_run(choices)
        logits = self._logits(runtime)
        choices.size[0] = count
        keep_scores(choices, logits, weight, self._added, self._of_engine)
        return int(plan_by_scores(sight, choices, weight, self._added, self._of_engine))

    def _anew(self, sight: Sight, runtime: Runtime) -> int:
        """Score the choices after every one that is taken."""
        look(sight)
        while True:
            list_choices(sight, self._choices)
            count = int(self._choices.size[0])
            if count == 0:
                return _NOTHING
            at = 0 if count == 1 else int(np.argmax(self._logits(runtime)))
            kind = int(take(sight, self._choices, at))
            if kind in (RUN, WAIT):
                return kind

    def _logits(self, runtime: Runtime) -> npt.NDArray[np.float64]:
        """Of the listed choices."""
        choices = self._choices
        count = int(choices.size[0])
        if self._network is None:
            logits = runtime.one(_graph(choices, count)).astype(np.float64)
        else:
            score(self._network, self._room, choices.row, choices.engine, count, self._scores)
            logits = self._scores[:count]
        if not np.isfinite(logits).all():
            raise self._no_numbers()
        return logits

    def _no_numbers(self) -> InvalidPlanError:
        return InvalidPlanError(f"scheduler {self.name}: the network's scores are not all numbers")


@compiled
def _plan_once(
    sight: Sight, choices: Choices, network: Stacked, room: F32, scores: F64, weight: float, added: F64, of_engine: F64
) -> int:
    """`ChoicePolicy._once` in one go; returns _NO_NUMBERS, too."""
    look(sight)
    list_choices(sight, choices)
    while choices.size[0] == 1:
        kind = int64(take(sight, choices, int64(0)))
        if kind in (RUN, WAIT):
            return kind
        list_choices(sight, choices)
    count = int64(choices.size[0])
    if count == 0:
        return int64(_NOTHING)
    if choices.kind[count - 1] != RUN:
        also_run(choices)
    listed = int64(choices.size[0])
    score(network, room, choices.row, choices.engine, listed, scores)
    for at in range(listed):
        if not np.isfinite(scores[at]):
            return int64(_NO_NUMBERS)
    choices.size[0] = count
    there = sight.head[0].running + sight.head[0].waiting
    keep_scores(choices, scores[:listed], weight, added[:there], of_engine)
    return int64(plan_by_scores(sight, choices, weight, added[:there], of_engine))


def _graph(choices: Choices, count: int) -> OneGraph:
    prefixes = int(choices.size[1])
    return OneGraph(
        {
            "request": choices.row[:count],
            "prefix": choices.prefix_row[:prefixes],
            "engine": choices.engine[None],
        },
        {"shares": choices.prefix[:count]},
        np.arange(count),
    )
