"""Graph observations of an engine at work: what the nodes and columns are, and the linear rule over them.

A decision is one addition to the plan of the next step, or RUN, which makes the step. Each legal one is a `request`
node: "admit" lets a waiting request in with a piece of its prompt, "read" goes on with the prompt of a running one,
"preempt" takes a running one's blocks away; RUN and WAIT are nodes of the same type that stand for no request.
Times are logarithms of step times: `log(1 + s / u)`, where u is the shortest step that the engine can make. Where the
host needs longer to launch prompts than decoding, the time of a step with prompts in it is in units of the shortest
such step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import Feature, GraphSpec, Link, NodeType

KINDS = ("admit", "read", "preempt", "run", "wait")
ADMIT, READ, PREEMPT, RUN, WAIT = range(len(KINDS))

_FLAG = "0 or 1"
_SHARE = "share"
_STEPS = "log steps"

_ENGINE = (
    Feature("decodes", "log requests / 6", 0, 2, "requests that decode in the plan"),
    Feature("planned", _SHARE, 0, 1, "of the step's tokens that are planned"),
    Feature("step", "log shortest", 0, 20, "expected time of the step as planned, in shortest steps of its kind"),
    Feature("tight", _SHARE, 0, 1, "of the time until the first decoding request is late, what the plan takes"),
    Feature("late", _SHARE, 0, 1, "of the decoding requests that are late whatever the step does"),
    Feature("kv", _SHARE, 0, 1, "of the pool in use"),
    Feature("peak", _SHARE, 0, 4, "of the pool, expected peak of those who run"),
    Feature("queue", "log requests / 6", 0, 3, "who wait"),
    Feature("places", _SHARE, 0, 1, "of the engine's places that are free"),
    Feature("reads", "log shortest", 0, 20, "the same if nobody decodes; else 0"),
    Feature("hopeful", _SHARE, 0, 1, "of the listed who wait that can still meet their bound"),
    Feature("dropping", _SHARE, 0, 1, "of the listed that can have their first token in time, who are dropped"),
    Feature("spare", _SHARE, 0, 1, "of the time of a step that reads, what more tokens would not add to"),
    Feature("floor", _STEPS, 0, 20, "the shortest step with a piece of a prompt"),
)
_REQUEST = (
    *(Feature(kind, _FLAG, 0, 1, "what it is") for kind in KINDS),
    Feature("stretch", _FLAG, 0, 1, "its piece makes a decoding request late that would not be"),
    Feature("brief", _FLAG, 0, 1, "the step with it stays within a few of the shortest steps"),
    Feature("ends", _FLAG, 0, 1, "its piece is the rest of its prompt"),
    Feature("piece", _SHARE, 0, 1, "of the step's tokens, its piece"),
    Feature("adds", _STEPS, 0, 20, "time that it adds to the step"),
    Feature("work", _STEPS, 0, 20, "time to read the rest of its prompt"),
    Feature("bound", _FLAG, 0, 1, "it has a bound on its first token, which is not out"),
    Feature("hopeless", _FLAG, 0, 1, "it can meet its bounds no more"),
    Feature("slack", _SHARE, -1, 1, "of its bound, what is left once its prompt is read"),
    Feature("left", _STEPS, 0, 20, "the same as a time, 0 if there is none"),
    Feature("urgent", _FLAG, 0, 1, "less is left than eight steps, and it has a bound"),
    Feature("waited", _STEPS, 0, 20, "time since it came"),
    Feature("outwaited", _SHARE, 0, 4, "the same as a share of its bound"),
    Feature("started", _FLAG, 0, 1, "it has put out tokens"),
    Feature("blocks", _SHARE, 0, 2, "of the free blocks, what its known tokens need"),
    Feature("peak_with", _SHARE, 0, 4, "of the pool, expected peak of those who run and this one"),
    Feature("overflow", _SHARE, 0, 1, "by which that is above nine tenths"),
    Feature("cached", _SHARE, 0, 1, "of its known tokens that the prefix cache spares"),
    Feature("output", "log tokens / 8", 0, 3, "that are expected of it, given those out and the engine's past"),
    Feature("known", "log tokens / 10", 0, 3, "whose text is known"),
    Feature("most", "log tokens / 8", 0, 3, "that it may still put out"),
    Feature("rank", _SHARE, 0, 1, "of its priority among those there, 0 for the most important"),
    Feature("tenant", _SHARE, 0, 1, "of the running requests that are its tenant's"),
    Feature("siblings", "log requests / 6", 0, 3, "of its session or program that wait"),
    Feature("sibling_reads", _FLAG, 0, 1, "one of them is reading"),
    Feature("preemptions", "of 8", 0, 1, "times that it lost its place"),
    Feature("saved", _SHARE, -1, 1, "of the time that a step with its piece alone takes, what joining this one saves"),
    Feature("due", _STEPS, 0, 20, "time until its first token is due, 0 if that is over or it has no bound"),
    Feature("spoils", _FLAG, 0, 1, "its piece makes a first token of the plan late that would not be"),
    Feature("dropped", _FLAG, 0, 1, "it is not among the most that can all have their first token in time"),
    Feature("ahead", _STEPS, 0, 20, "time to read the prompts among these that are due before it"),
    Feature("delays", _FLAG, 0, 1, "its piece makes another late that is not in the plan, and would not be"),
    *_ENGINE,
    Feature("merit", "logit", -1e4, 1e4, "of the linear rule"),
)
_PREFIX = (
    Feature("waiting", "log requests / 6", 0, 3, "listed requests of it that wait"),
    Feature("running", "log requests / 6", 0, 3, "requests of it that run"),
    Feature("cached", _SHARE, 0, 1, "most of a listed request's tokens that the cache spares"),
)

SPEC = GraphSpec(
    family="llm",
    graph="engine",
    version=0,
    nodes=(NodeType("request", _REQUEST), NodeType("prefix", _PREFIX), NodeType("engine", _ENGINE)),
    links=(Link("shares", "request", "prefix"),),
    candidate="request",
    context="engine",
)
"""A node a choice, hubs for what requests have in common, and the engine."""

SPECS = {SPEC.graph: SPEC}
COLUMNS = {feature.name: c for c, feature in enumerate(_REQUEST)}
NUM_COLUMNS = len(_REQUEST)
FIRST_ENGINE = COLUMNS["decodes"]
NUM_ENGINE = len(_ENGINE)
MERIT = NUM_COLUMNS - 1


def table(rows: dict[str, dict[str, float]]) -> npt.NDArray[np.float64]:
    """Weights of the merit, shape (kinds, columns but the merit): kind -> column -> weight, 0 where none is named."""
    weights: npt.NDArray[Any] = np.zeros((len(KINDS), NUM_COLUMNS - 1))
    for kind, row in rows.items():
        for column, weight in row.items():
            weights[KINDS.index(kind), COLUMNS[column]] = weight
    return weights


WEIGHTS = table(
    {
        "admit": {
            "admit": 8.12, "stretch": -9.77, "brief": -0.31, "ends": 0.17, "piece": -0.19, "adds": 0.39, "work": -1.22,
            "bound": 0.27, "hopeless": -4, "slack": -0.06, "left": -0.13, "urgent": 0.07, "waited": -0.02,
            "outwaited": 0.23, "started": 0.89, "blocks": 0.02, "peak_with": -0.15, "overflow": -11.5, "cached": 1.14,
            "output": -0.01, "known": 0.1, "most": -0.13, "rank": -0.07, "tenant": -0.09, "siblings": 0.33,
            "sibling_reads": -0.41, "preemptions": 0.45, "saved": 1.28, "due": -0.09, "spoils": -3.5, "dropped": -1.57,
            "ahead": -0.58, "delays": -0.22, "tight": 0.17, "late": -0.03, "kv": -1.13, "peak": -0.17,
        },
        "read": {
            "read": 8.81, "stretch": -9.7, "brief": -0.24, "ends": 0.57, "piece": -0.02, "adds": 0.25, "work": -0.95,
            "bound": 0.23, "hopeless": -3.73, "slack": -0.1, "left": -0.36, "urgent": 0.06, "outwaited": 0.13,
            "started": 1.05, "blocks": 0.18, "overflow": -10, "cached": 0.29, "output": 0.05, "known": -0.5,
            "most": -0.01, "rank": -0.24, "tenant": 0.15, "siblings": -0.52, "sibling_reads": 0.07,
            "preemptions": 0.41, "saved": 0.68, "due": -0.03, "spoils": -3.69, "dropped": -1.8, "ahead": -0.66,
            "delays": -0.19, "tight": 0.18, "late": -0.64, "kv": -0.21, "peak": -0.21,
        },
        "preempt": {
            "preempt": -22.87, "work": 0.07, "hopeless": 0.24, "blocks": 0.08, "output": -0.02, "known": -0.04,
            "preemptions": 0.07, "late": -0.03, "queue": 0.09, "hopeful": 0.14,
        },
        "run": {
            "decodes": 0.36, "planned": -0.04, "step": 1.44, "tight": 0.73, "late": 0.35, "kv": -0.12, "peak": 0.31,
            "queue": 0.26, "places": -1, "reads": 1.96, "hopeful": 0.12, "dropping": 0.1, "spare": -1.98,
            "floor": 0.03,
        },
        "wait": {
            "wait": -20.39, "decodes": -0.81, "planned": 0.43, "step": 0.51, "tight": -0.36, "late": -0.47, "kv": 0.66,
            "peak": 0.22, "queue": -0.24, "places": 0.24, "reads": 0.86, "hopeful": -0.01, "dropping": 0.2,
            "spare": -0.05, "floor": 0.28,
        },
    }
)  # fmt: skip
"""Who can all be in time first, by due time, then short prompts, the hopeless last; room for the peak; and pieces that
make nobody late, neither decoding requests nor first tokens of the plan.

By `python benchmarks/tune_engine_merit.py configs/llm/engine.yaml`, from weights set by hand. Then two of RUN's were
set back by hand: `reads`, since where it serves steps may stop, which the random problems' do not; and `spare`.
"""
