"""Graphs that no environment would show: any numbers of nodes, links at random, isolated nodes, empty node types."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import GraphBatch, GraphSpec


def random_batch(
    spec: GraphSpec, rng: np.random.Generator, graphs: int = 1, *, most: int = 9, isolated: float = 0.3
) -> GraphBatch:
    """`graphs` random graphs with 1 to `most` nodes of a type, or 0 of one that links only lead to; WAIT now and then.

    Args:
        isolated: probability that a link leads nowhere.
    """
    x: dict[str, npt.NDArray[np.float32]] = {}
    ptr: dict[str, npt.NDArray[np.int32]] = {}
    for node in spec.nodes:
        low = 0 if not spec.links_of(node.name) and node.name not in (spec.context, spec.candidate) else 1
        high = 1 if node.name == spec.context else most
        rows = rng.integers(low, high + 1, graphs)
        ptr[node.name] = np.append(0, np.cumsum(rows)).astype(np.int32)
        x[node.name] = rng.normal(0, 2, (int(rows.sum()), len(node.features))).astype(np.float32)
        for column, feature in enumerate(node.features):
            if feature.name == "in_shop":
                x[node.name][:, column] = rng.integers(0, 2, len(x[node.name]))
            if feature.name == "log_machines":
                x[node.name][:, column] = np.log1p(rng.integers(1, 20, len(x[node.name])))
    link = {}
    for edge in spec.links:
        target = np.full(len(x[edge.source]), -1, np.int32)
        for i in range(graphs):
            begin, end = ptr[edge.target][i : i + 2]
            for row in range(*ptr[edge.source][i : i + 2]):
                if end > begin and rng.random() >= isolated:
                    target[row] = rng.integers(begin, end)
        link[edge.name] = target
    candidate, count = [], []
    for i in range(graphs):
        rows = np.arange(*ptr[spec.candidate][i : i + 2])
        chosen = rng.permutation(rows)[: rng.integers(1, len(rows) + 1)].tolist()
        if rng.random() < 0.5:
            chosen.insert(int(rng.integers(0, len(chosen) + 1)), -1)
        candidate += chosen
        count.append(len(chosen))
    action = np.arange(len(candidate), dtype=np.int32)
    return GraphBatch(
        x, ptr, link, np.array(candidate, np.int32), action, np.append(0, np.cumsum(count)).astype(np.int32)
    )
