"""How large the padded observation of a shop is; see `envs.padding` for the form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dispatchgym.envs import padding
from dispatchgym.envs.api import GraphBatch, GraphSpec
from dispatchgym.envs.jobshop.state import Capacity
from dispatchgym.envs.padding import Padded as Padded


def rows_of(spec: GraphSpec, room: Capacity) -> dict[str, int]:
    """Most nodes of every type."""
    most = {"op": room.ops, "job": room.jobs, "machine": room.machines, "shop": 1}
    return {node.name: most[node.name] for node in spec.nodes}


def observation_space(spec: GraphSpec, room: Capacity) -> spaces.Space[Padded]:
    """The space of a shop's padded observations; see ShopEnv."""
    return padding.observation_space(spec, rows_of(spec, room), room.jobs + 1)


def pad(graphs: GraphBatch, spec: GraphSpec, room: Capacity, mask: npt.NDArray[np.int8]) -> Padded:
    """Ragged graphs of N shops, padded to the room."""
    return padding.pad(graphs, spec, rows_of(spec, room), mask)
