"""The padded form of a graph observation: fixed shapes, for libraries that know nothing of ragged graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dispatchgym.envs.api import GraphBatch, GraphSpec

Padded = dict[str, npt.NDArray[Any]]


def observation_space(spec: GraphSpec, rows: Mapping[str, int], actions: int) -> spaces.Space[Padded]:
    """One entry a node type and a link, and `num_nodes`, `candidate`, `action_mask`.

    Args:
        rows: most nodes of every type, in the order of `spec.nodes`.
        actions: size of the action space.
    """
    entries: dict[str, spaces.Space[npt.NDArray[Any]]] = {}
    for node in spec.nodes:
        shape = (rows[node.name], 1)
        low = np.array([min(f.low, 0) for f in node.features], np.float32)  # a row of padding is 0
        high = np.array([max(f.high, 0) for f in node.features], np.float32)
        entries[node.name] = spaces.Box(np.tile(low, shape), np.tile(high, shape), dtype=np.float32)
    for link in spec.links:
        entries[link.name] = spaces.Box(-1, rows[link.target] - 1, (rows[link.source],), np.int32)
    entries["num_nodes"] = spaces.Box(0, max(rows.values()), (len(rows),), np.int32)
    entries["candidate"] = spaces.Box(-1, rows[spec.candidate] - 1, (actions,), np.int32)
    entries["action_mask"] = spaces.Box(0, 1, (actions,), np.int8)
    space: Any = spaces.Dict(entries)  # a Space[dict[str, Any]], which mypy takes for another type
    return cast("spaces.Space[Padded]", space)


def pad(graphs: GraphBatch, spec: GraphSpec, rows: Mapping[str, int], mask: npt.NDArray[np.int8]) -> Padded:
    """Ragged graphs of N environments as arrays with a leading dimension N; entries as of `observation_space`."""
    n = len(mask)
    env, row = {}, {}  # of every node: its environment, and its number there
    for name, ptr in graphs.ptr.items():
        env[name] = np.repeat(np.arange(n), np.diff(ptr))
        row[name] = np.arange(ptr[-1]) - ptr[env[name]]
    out: Padded = {}
    for name, x in graphs.x.items():
        out[name] = np.zeros((n, rows[name], x.shape[1]), np.float32)
        out[name][env[name], row[name]] = x
    for link in spec.links:
        at, target = env[link.source], graphs.link[link.name]
        out[link.name] = np.full((n, rows[link.source]), -1, np.int32)
        out[link.name][at, row[link.source]] = np.where(target >= 0, target - graphs.ptr[link.target][at], -1)
    out["num_nodes"] = np.stack([np.diff(graphs.ptr[name]) for name in rows], axis=1).astype(np.int32)
    at = np.repeat(np.arange(n), np.diff(graphs.candidate_ptr))
    local = np.where(graphs.candidate >= 0, graphs.candidate - graphs.ptr[spec.candidate][at], -1)
    out["candidate"] = np.full((n, mask.shape[1]), -1, np.int32)
    out["candidate"][at, graphs.action] = local
    out["action_mask"] = mask.copy()
    return out
