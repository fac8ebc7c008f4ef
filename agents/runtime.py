"""What every runtime of a policy network has in common, whichever library computes it. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.architecture import NEVER, PolicyConfig, seen_nodes
from dispatchgym.envs.api import GraphBatch, GraphSpec

RuntimeName = Literal["torch", "onnx", "numpy"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)


@dataclass(frozen=True, slots=True)
class OneGraph:
    """The graph of one decision.

    Args:
        x: node type -> float32 features, shape (nodes, features).
        link: link name -> row of the target node, -1 for none, shape (nodes of the source type,).
        candidate: row of each candidate's node, -1 for WAIT, shape (C,).
    """

    x: Mapping[str, npt.NDArray[np.float32]]
    link: Mapping[str, npt.NDArray[np.integer]]
    candidate: npt.NDArray[np.integer]


class Runtime(ABC):
    """A network that scores candidates.

    Args:
        spec: the graphs it reads.
        config: its architecture.
    """

    name: ClassVar[RuntimeName]
    rule_weight: float | None = None
    """What a candidate's logit gains for 1 more of its rule's column by itself, beside what the network makes of it;
    None where nobody has said."""

    def __init__(self, spec: GraphSpec, config: PolicyConfig) -> None:
        self.spec = spec
        self.config = config
        self.inputs = inputs_of(spec, config)

    @abstractmethod
    def one(self, graph: OneGraph) -> npt.NDArray[np.float32]:
        """Logits of one graph's candidates, shape (C,)."""

    def logits(self, batch: GraphBatch) -> npt.NDArray[np.float32]:
        """Logits of every graph's candidates, padded with NEVER, shape (G, most candidates)."""
        count = np.diff(batch.candidate_ptr)
        if len(count) == 1:
            return self.one(OneGraph(batch.x, batch.link, batch.candidate))[None]
        padded = np.full((len(count), int(count.max(initial=0))), NEVER, np.float32)
        for i in np.flatnonzero(count):
            padded[i, : count[i]] = self.one(one_of(self.spec, batch, int(i)))
        return padded

    def choose(self, batch: GraphBatch) -> npt.NDArray[np.int64]:
        """Position of the best candidate among each graph's own, ties to the first; 0 where there is none. (G,)."""
        logits = self.logits(batch)
        if logits.shape[1] == 0:
            return np.zeros(len(logits), np.int64)
        best: npt.NDArray[np.int64] = logits.argmax(1)
        return best


def one_of(spec: GraphSpec, batch: GraphBatch, i: int) -> OneGraph:
    """Graph i of a batch, its rows counted from 0."""
    begin = {name: int(ptr[i]) for name, ptr in batch.ptr.items()}
    rows = {name: slice(begin[name], int(ptr[i + 1])) for name, ptr in batch.ptr.items()}

    def moved(target: npt.NDArray[np.integer], by: int) -> npt.NDArray[np.integer]:
        return np.where(target >= 0, target - by, -1)

    mine = slice(int(batch.candidate_ptr[i]), int(batch.candidate_ptr[i + 1]))
    return OneGraph(
        {name: x[rows[name]] for name, x in batch.x.items()},
        {edge.name: moved(batch.link[edge.name][rows[edge.source]], begin[edge.target]) for edge in spec.links},
        moved(batch.candidate[mine], begin[spec.candidate]),
    )


def inputs_of(spec: GraphSpec, config: PolicyConfig) -> list[str]:
    """What a network looks at, in order: "x/NODE" features, "link/NAME" targets, "candidate" rows."""
    encoder = config.encoder
    hubs = encoder.message_passing and encoder.hubs and bool(spec.links)
    links = [e.name for e in spec.links if hubs or (encoder.message_passing and e.name in encoder.rivals)]
    return [*(f"x/{name}" for name in seen_nodes(spec, encoder)), *(f"link/{name}" for name in links), "candidate"]
