"""A model as what runs the steps of the gym, of `simulate` and of `evaluate`: `--executor torch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.executor.build import fit_config, make_executor
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.serving.executor.trace_tokens import TraceTokens

HOST_BYTES = 4 * 2**30
"""Most memory for swapped blocks."""

LARGEST = ("kv_blocks", "host_blocks", "max_seqs", "token_budget", "max_spec")


class OnModel:
    """Backend of a model: engines run on it one after another, over the same cache.

    The cache is made anew only for an engine larger than those before. Texts are made up so that what a workload shares
    is shared, and outputs are as long as it says; drafts are the executor's own, and hit as they hit.

    Args:
        model, device: as for `open_model`.

    Raises:
        UsageError, UnknownNameError: the model cannot be loaded.
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        self.model = open_model(model, device)
        most = fit_config(self.model, EngineConfig(max_spec=8))
        self._kv_tokens = most.kv_blocks * most.block_tokens
        cuda = self.model.device.type == "cuda"
        self.facts: Mapping[str, str] = {
            "executor": "torch",
            "model": model,
            "device": torch.cuda.get_device_name(self.model.device) if cuda else "cpu, slow but the same code",
        }
        self._config: EngineConfig | None = None
        self._executor: TorchExecutor | None = None

    def fit(self, config: EngineConfig, workload: Workload) -> EngineConfig:
        """The configuration with no more KV blocks than the device holds, and few on the host.

        Raises:
            UsageError: a request longer than the model's longest text.
        """
        size = config.block_tokens
        blocks = min(config.kv_blocks or self._kv_tokens // size, self._kv_tokens // size)
        host = HOST_BYTES // (self.model.spec.kv_bytes_per_token(self.model.dtype) * size)
        asked = workload.prompt_tokens.astype(np.int64) + workload.output_tokens
        longest, most = int(asked.max(initial=0)), self.model.spec.max_positions
        if longest > most:
            raise UsageError(
                f"workload {workload.name}: a request of {longest:,} tokens is too long for model "
                f"{self.model.spec.name}, which takes {most:,}"
            )
        return dataclasses.replace(config, kv_blocks=blocks, host_blocks=min(config.host_blocks, host))

    def executor(self, state: State, workload: Workload) -> TorchExecutor:
        """For an engine's arrays; the engine before is forgotten.

        Raises:
            UsageError: the cache does not fit.
        """
        e = state.eng[0]
        wanted = EngineConfig(
            block_tokens=int(e["block_tokens"]), kv_blocks=int(e["kv_blocks"]), host_blocks=int(e["host_blocks"]),
            max_seqs=int(e["max_seqs"]), token_budget=int(e["token_budget"]), max_spec=int(e["max_spec"]),
            max_len=self.model.spec.max_positions,
        )  # fmt: skip
        if self._executor is None or self._config is None or not _holds(self._config, wanted):
            if self._config is not None and self._config.block_tokens == wanted.block_tokens:
                larger = {name: max(getattr(wanted, name), getattr(self._config, name)) for name in LARGEST}
                wanted = dataclasses.replace(wanted, **larger)
            self._executor = None  # two caches might not fit beside each other
            self._config, self._executor = wanted, make_executor(self.model, wanted)
        self._executor.renew(TraceTokens(workload, self.model.spec.vocabulary, state))
        return self._executor


def _holds(config: EngineConfig, wanted: EngineConfig) -> bool:
    return config.block_tokens == wanted.block_tokens and all(
        getattr(config, name) >= getattr(wanted, name) for name in LARGEST
    )
