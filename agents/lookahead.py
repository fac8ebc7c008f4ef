"""A policy that looks ahead: what the network prefers, minus what the pilot method finds wrong with it. No torch.

Where the network alone is asked for one graph, here the graph `pilot` is observed: it holds the network's own columns
and, for every candidate, what a few rules would make of the shop if it went next (`envs.jobshop.pilot`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import GraphBatch, GraphSpec, UsageError
from dispatchgym.envs.jobshop.graph import PILOT

DEFAULT_WEIGHT = 16.0
"""What falls off a logit for every mean duration that a candidate turns out behind the best."""

BEHIND = [f.name for f in PILOT.node(PILOT.candidate).features].index("behind")
WAIT_BEHIND = [i for i, f in enumerate(PILOT.node(PILOT.context).features) if f.name.startswith("wait_behind")]
"""Columns of the job and of the context node."""


def require_columns(spec: GraphSpec) -> None:
    """Raises UsageError if the graph `pilot` does not hold all columns of `spec`."""
    for node in spec.nodes:
        names = [n.name for n in PILOT.nodes]
        if node.name not in names or PILOT.node(node.name).features[: len(node.features)] != node.features:
            raise UsageError(
                f"look-ahead needs a policy of graph 'jobs' or 'pilot'; this one sees graph {spec.graph!r}"
            )


def behind(batch: GraphBatch) -> npt.NDArray[np.float32]:
    """By how many mean durations each candidate turns out worse than the best, shape (candidates,)."""
    graph = np.repeat(np.arange(len(batch.candidate_ptr) - 1), np.diff(batch.candidate_ptr))
    wait = batch.x[PILOT.context][:, WAIT_BEHIND].min(axis=1)[graph]
    job = batch.x[PILOT.candidate][np.maximum(batch.candidate, 0), BEHIND]
    found: npt.NDArray[np.float32] = np.where(batch.candidate < 0, wait, job)
    return found


def own_columns(spec: GraphSpec, batch: GraphBatch) -> GraphBatch:
    """The part of the graph `pilot` that a network of `spec` sees."""
    x = {node.name: np.ascontiguousarray(batch.x[node.name][:, : len(node.features)]) for node in spec.nodes}
    return batch._replace(x=x)
