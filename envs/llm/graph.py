"""Graph observations of an engine at work: what the nodes and columns are, and the linear rule over them.

A decision is one addition to the plan of the next step, or RUN, which makes the step. Each legal one is a `request`
node: "admit" lets a waiting request in with a piece of its prompt, "read" goes on with the prompt of a running one,
"preempt" takes a running one's blocks away; RUN and WAIT are nodes of the same type that stand for no request.
Times are logarithms of step times: `log(1 + s / u)`, where u is the shortest step that the engine can make.
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
    Feature("step", _STEPS, 0, 20, "expected time of the step as planned"),
    Feature("tight", _SHARE, 0, 1, "of the time until the first decoding request is late, what the plan takes"),
    Feature("late", _SHARE, 0, 1, "of the decoding requests that are late whatever the step does"),
    Feature("kv", _SHARE, 0, 1, "of the pool in use"),
    Feature("peak", _SHARE, 0, 4, "of the pool, expected peak of those who run"),
    Feature("queue", "log requests / 6", 0, 3, "who wait"),
    Feature("places", _SHARE, 0, 1, "of the engine's places that are free"),
    Feature("reads", _STEPS, 0, 20, "expected time of the step as planned, if nobody decodes; else 0"),
    Feature("hopeful", _SHARE, 0, 1, "of the listed who wait that can still meet their bound"),
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
            "admit": 8.01, "stretch": -10.04, "brief": 0.09, "ends": -0.01, "piece": -0.17, "adds": 0.2,
            "work": -0.96, "bound": 0.27, "hopeless": -3.56, "slack": 0.02, "left": -0.18, "urgent": -0.03,
            "waited": -0.02, "outwaited": 0.23, "started": 0.89, "blocks": 0.02, "peak_with": -0.15,
            "overflow": -11.5, "cached": 0.67, "output": -0.01, "known": -0.1, "most": -0.13, "rank": -0.07,
            "tenant": -0.09, "siblings": 0.33, "sibling_reads": -0.41, "preemptions": 0.45, "tight": -0.12,
            "late": -0.07, "kv": -0.9, "peak": -0.17,
        },
        "read": {
            "read": 9.17, "stretch": -10.19, "brief": -0.1, "ends": 0.28, "piece": 0.07, "adds": 0.17,
            "work": -0.98, "bound": 0.23, "hopeless": -3.86, "slack": -0.02, "left": -0.3, "urgent": 0.16,
            "outwaited": 0.13, "started": 1.05, "blocks": 0.18, "overflow": -10, "cached": 0.21, "output": 0.05,
            "known": -0.1, "most": -0.01, "rank": -0.24, "tenant": 0.15, "siblings": -0.52, "sibling_reads": 0.07,
            "preemptions": 0.41, "tight": 0.08, "late": -0.33, "kv": 0.39, "peak": -0.21,
        },
        "preempt": {
            "preempt": -22.87, "work": 0.07, "hopeless": -0.06, "blocks": 0.08, "output": -0.02, "known": -0.04,
            "preemptions": 0.07, "late": 0.07, "queue": 0.17, "hopeful": 0.39,
        },
        "run": {
            "decodes": 0.36, "planned": -0.04, "step": 1.37, "tight": 0.44, "late": 0.4, "kv": -0.41, "peak": 0.31,
            "queue": 0.55, "places": -0.85, "reads": 6, "hopeful": 0.19,
        },
        "wait": {
            "wait": -20.39, "decodes": -0.81, "planned": 0.43, "step": 0.41, "tight": -0.26, "late": -0.23,
            "kv": 0.48, "peak": 0.22, "queue": -0.08, "places": 0.15, "hopeful": 0.07,
        },
    }
)  # fmt: skip
"""Short prompts with little slack first, the hopeless last, pieces that keep the decoding in time, room for the peak.

By `python benchmarks/tune_engine_merit.py configs/llm/engine.yaml`, from weights set by hand.
"""
