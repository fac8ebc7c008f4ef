"""Arrays that shortlists are written into."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dispatchgym.envs.api import GraphSpec
from dispatchgym.envs.packing import chains
from dispatchgym.envs.packing.state import F32, F64, I64, Capacity


class Choices(NamedTuple):
    """The shortlist of every environment, and scratch that they share."""

    length: I64  # (envs,): choices listed
    action: I64  # (envs, most)
    row: F32  # (envs, most, columns); the last column is the merit
    context: F32  # (envs, columns of the context)
    weights: F64  # (kinds of choices, columns but the merit)
    found: F32  # scratch, (actions, columns): all that come into question
    found_action: I64  # scratch, (actions,)
    state: I64  # scratch, (actions,)
    elsewhere: I64  # scratch, see `chains`
    depth: I64


def new_choices(envs: int, size: Capacity, spec: GraphSpec, most: int, weights: F64) -> Choices:
    columns = len(spec.node(spec.candidate).features)
    elsewhere, depth = chains.scratch(size.pods)
    return Choices(
        length=np.zeros(envs, np.int64),
        action=np.zeros((envs, most), np.int64),
        row=np.zeros((envs, most, columns), np.float32),
        context=np.zeros((envs, len(spec.node(spec.context).features)), np.float32),
        weights=np.ascontiguousarray(weights, np.float64),
        found=np.zeros((size.actions, columns), np.float32),
        found_action=np.zeros(size.actions, np.int64),
        state=np.zeros(size.actions, np.int64),
        elsewhere=elsewhere,
        depth=depth,
    )
