"""A scheduler that plans a step choice by choice: by the linear merit alone, or by a network that scores the choices.

It sees what every scheduler sees, a view, and so runs in a simulation, in an evaluation and in a live server alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dispatchgym.agents.llm_drafts import draft_of
from dispatchgym.agents.llm_interruptions import Interruptions
from dispatchgym.agents.runtime import OneGraph, Runtime
from dispatchgym.envs.api import InvalidPlanError
from dispatchgym.envs.llm.batch import ChoicesConfig
from dispatchgym.envs.llm.choices import also_run, list_choices
from dispatchgym.envs.llm.columns import Choices, new_choices
from dispatchgym.envs.llm.graph import COLUMNS, MERIT, RUN, WAIT
from dispatchgym.envs.llm.planning import hold_of_plan, look, plan_by_merit, step_of_plan, take
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.sight import Sight, new_sight, see
from dispatchgym.envs.llm.turns import WAIT_STEPS

FIRST_ROOM = 512
_FINISH, _NOTHING_ELSE = frozenset(("finish",)), frozenset[str]()
_NOTHING = -1
Key = tuple[float, ...]


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
        self._choices = new_choices(self.config.most, self.config.weights)
        self._sight = new_sight(FIRST_ROOM, self.config.most)

    def reset(self, spec: EngineSpec, seed: int) -> None:
        """A new run begins."""
        self._spec = spec
        self._interruptions = Interruptions()
        self._sight.head["passed"] = 0

    def decide(self, view: EngineView) -> Plan:
        """The next step."""
        self._sight = sight = see(self._sight, view, self._spec)
        goes_on = self._interruptions.going_on(sight, view) if self.stops else None
        if goes_on is not None:
            return Plan(grants=goes_on, interruptible=True)
        kind = plan_by_merit(sight, self._choices) if self._runtime is None else self._scored(sight, self._runtime)
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
            grants, may_stop = self._interruptions.fitted(grants, float(step_of_plan(sight)), sight, view)
        hold = int(hold_of_plan(sight))
        everyone = int(h["decodes"]) == int(h["running"]) and len(view.waiting) == 0
        through = _FINISH if everyone and self._spec.profile.rebuild_s > 0 else _NOTHING_ELSE
        return Plan(grants, out, hold_steps=hold, hold_through=through, interruptible=may_stop)

    def _scored(self, sight: Sight, runtime: Runtime) -> int:
        choices, added = self._choices, dict[Key, float]()
        weight = None if self.fresh else runtime.rule_weight
        look(sight)
        while True:
            list_choices(sight, choices)
            count = int(choices.size[0])
            if count == 0:
                return _NOTHING
            at = 0
            if count > 1:
                if not added and weight is not None and choices.kind[count - 1] != RUN:
                    also_run(choices)
                keys = _keys(choices, int(choices.size[0]))
                merit = (weight or 0.0) * choices.row[: len(keys), MERIT]
                if not added or weight is None:
                    logits = runtime.one(_graph(choices, len(keys)))
                    if not np.isfinite(logits).all():
                        raise InvalidPlanError(f"scheduler {self.name}: the network's scores are not all numbers")
                    own = (logits - merit).tolist()
                    added = {key[:2]: x for key, x in zip(keys, own, strict=True)}  # where a piece's length changes
                    added |= zip(keys, own, strict=True)
                at = int(np.argmax([added.get(key, added.get(key[:2], 0.0)) for key in keys[:count]] + merit[:count]))
            kind = int(take(sight, choices, at))
            if kind in (RUN, WAIT):
                return kind


def _keys(choices: Choices, count: int) -> list[Key]:
    """What a choice is: kind, request, how long its piece is."""
    length = choices.row[:count, COLUMNS["brief"]] - choices.row[:count, COLUMNS["stretch"]]
    return list(zip(choices.kind[:count].tolist(), choices.who[:count].tolist(), length.tolist(), strict=True))


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
