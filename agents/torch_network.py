"""The policy network by torch, behind the interface of the other runtimes; the one for large batches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.agents.architecture import PolicyConfig
from dispatchgym.agents.graph_tensors import GraphTensors
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.runtime import OneGraph, Runtime
from dispatchgym.envs.api import GraphBatch, GraphSpec


class TorchNetwork(Runtime):
    """Logits by torch.

    Args:
        spec: the graphs to expect.
        config: the architecture.
        weights: name -> numbers; what is not among them keeps its initial value.
    """

    name = "torch"

    def __init__(self, spec: GraphSpec, config: PolicyConfig, weights: Mapping[str, npt.NDArray[np.floating]]) -> None:
        super().__init__(spec, config)
        self.network = GraphNetwork(spec, config)
        state = {key: torch.from_numpy(np.array(value, np.float32)) for key, value in weights.items()}
        self.network.load_state_dict(state, strict=False)
        self.network.eval().requires_grad_(False)

    def one(self, graph: OneGraph) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = self.network(tensors(self.spec, graph)).logits[0].numpy()
        return logits

    def logits(self, batch: GraphBatch) -> npt.NDArray[np.float32]:
        if len(batch.candidate) == 0:
            return np.zeros((len(batch.candidate_ptr) - 1, 0), np.float32)
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = self.network(GraphTensors.from_batch(batch)).logits.numpy()
        return logits


def tensors(spec: GraphSpec, graph: OneGraph) -> GraphTensors:
    """A batch of one."""

    def index(array: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64))

    return GraphTensors(
        {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in graph.x.items()},
        {name: torch.tensor([0, len(x)]) for name, x in graph.x.items()},
        {name: index(target) for name, target in graph.link.items()},
        index(graph.candidate),
        torch.tensor([0, len(graph.candidate)]),
    )
