"""What lets the gym step a real model: `gymnasium.make("dispatchgym/LLMEngine-v0", executor=...)` by the name below."""

from __future__ import annotations

import functools
import os

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.draws import Serving
from dispatchgym.envs.llm.state import State
from dispatchgym.serving.executor.build import make_executor
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.serving.executor.trace_tokens import TraceTokens
from dispatchgym.serving.executor.weights import Model

MODEL, DEVICE = "DISPATCHGYM_MODEL", "DISPATCHGYM_DEVICE"
"""Environment variables: the model, as for `calibrate` (random:tiny), and where it runs (auto)."""


def make(state: State, serving: Serving) -> TorchExecutor:
    """An executor for an engine of the gym, as "dispatchgym.serving.executor.on_model:make".

    The model is read once a process, and its cache kept while engines of the same sizes follow each other: only the
    latest of them may run.

    Raises:
        UsageError: the model cannot be loaded, or the cache does not fit.
    """
    e = state.eng[0]
    model = _model(os.environ.get(MODEL, "random:tiny"), os.environ.get(DEVICE, "auto"))
    config = EngineConfig(
        block_tokens=int(e["block_tokens"]), kv_blocks=int(e["kv_blocks"]), host_blocks=int(e["host_blocks"]),
        max_seqs=int(e["max_seqs"]), token_budget=int(e["token_budget"]), max_spec=int(e["max_spec"]),
        max_len=min(int(e["max_len"]), model.spec.max_positions),
    )  # fmt: skip
    executor = _executor(model, config)
    executor.renew(TraceTokens(serving.workload, model.spec.vocabulary, state))
    return executor


@functools.lru_cache(maxsize=1)
def _model(name: str, device: str) -> Model:
    return open_model(name, device)


_latest: dict[tuple[int, EngineConfig], TorchExecutor] = {}


def _executor(model: Model, config: EngineConfig) -> TorchExecutor:
    key = id(model), config
    if key not in _latest:
        _latest.clear()  # two caches might not fit beside each other
        _latest[key] = make_executor(model, config)
    return _latest[key]
