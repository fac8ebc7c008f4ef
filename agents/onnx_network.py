"""The policy network by onnxruntime on one thread: the fastest runtime for the graph of one decision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime

from dispatchgym.agents import onnx_file
from dispatchgym.agents.architecture import PolicyConfig
from dispatchgym.agents.runtime import OneGraph, Runtime
from dispatchgym.envs.api import GraphSpec


class OnnxNetwork(Runtime):
    """Logits by onnxruntime.

    Args:
        spec: the graphs to expect.
        config: the architecture.
        model: contents of policy.onnx.
        weights: contents of the file of weights that it points into.
        file: name of that file.

    Raises:
        OnnxFileError: not a model of ours, or one that onnxruntime refuses.
    """

    name = "onnx"

    def __init__(self, spec: GraphSpec, config: PolicyConfig, model: bytes, weights: bytes, file: str) -> None:
        super().__init__(spec, config)
        onnx_file.check(model, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_external_initializers_from_files_in_memory([file], [weights], [len(weights)])
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], enable_fallback=False
            )
        except Exception as error:  # onnxruntime's errors have no common root of their own
            raise onnx_file.OnnxFileError(f"onnxruntime refuses it ({_first_line(error)})") from error
        found = sorted(value.name for value in self._session.get_inputs())
        if found != sorted(self.inputs):
            raise onnx_file.OnnxFileError(f"its inputs are {', '.join(found)}; expected {', '.join(self.inputs)}")

    def one(self, graph: OneGraph) -> npt.NDArray[np.float32]:
        feed: dict[str, npt.NDArray[np.generic]] = {}
        for name in self.inputs:
            kind, _, which = name.partition("/")
            if kind == "x":
                feed[name] = graph.x[which]
            else:
                feed[name] = (graph.link[which] if which else graph.candidate).astype(np.int64)
        logits: npt.NDArray[np.float32] = self._session.run(None, feed)[0]
        return logits


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
