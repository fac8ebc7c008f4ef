"""How large the padded observation of a cluster is; see `envs.padding` for the form."""

from __future__ import annotations

from dispatchgym.envs.api import GraphSpec
from dispatchgym.envs.packing.state import Capacity


def rows_of(spec: GraphSpec, room: Capacity) -> dict[str, int]:
    """Most nodes of every type."""
    most = {
        "choice": room.actions - 1,
        "pod": room.pods,
        "gpu": room.nodes * room.gpus,
        "node": room.nodes,
        "class": room.pods,
        "typical": room.typical,
        "cluster": 1,
    }
    return {node.name: most[node.name] for node in spec.nodes}
