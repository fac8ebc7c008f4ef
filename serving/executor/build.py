"""An engine's configuration and executor for a model: what fits, and what suits the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import Profile, roofline
from dispatchgym.serving.executor.kv_cache import blocks_that_fit
from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.ops import Ops
from dispatchgym.serving.executor.slots import SlotTable
from dispatchgym.serving.executor.torch_executor import Source, TorchExecutor
from dispatchgym.serving.executor.warm_up import warm_up
from dispatchgym.serving.executor.weights import Model

GPU_MEMORY_FRACTION = 0.9


def fit_config(model: Model, wanted: EngineConfig, gpu_memory_fraction: float = GPU_MEMORY_FRACTION) -> EngineConfig:
    """The configuration with its open ends filled in: KV blocks for the memory that is free, the model's longest text.

    Raises:
        UsageError: nothing fits, or the longest text asked for does not, or is longer than the model reads.
    """
    spec, size = model.spec, wanted.block_tokens
    longest = wanted.max_len or spec.max_positions
    if longest > spec.max_positions:
        raise UsageError(
            f"engine: max_len {longest} is beyond the {spec.max_positions} tokens that model {spec.name} reads; "
            "lower it"
        )
    blocks = wanted.kv_blocks
    if blocks == 0:
        blocks = blocks_that_fit(
            spec, model.device, model.dtype, size, gpu_memory_fraction=gpu_memory_fraction,
            reserved_bytes=step_bytes(model, wanted),
        )  # fmt: skip
        blocks = min(blocks, -(-longest // size) * wanted.max_seqs)  # more would never be used
    if wanted.max_len > blocks * size:
        raise UsageError(
            f"engine: {blocks} KV blocks of {size} tokens hold no text of max_len {wanted.max_len}; lower it, or raise "
            "kv_blocks"
        )
    return replace(wanted, kv_blocks=blocks, max_len=min(longest, blocks * size))


def step_bytes(model: Model, config: EngineConfig) -> int:
    """Memory that a step takes beside weights and cache: its widest layer, and the logits."""
    spec = model.spec
    widest = 6 * spec.hidden + 3 * spec.mlp + 2 * (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    logits = config.max_seqs * (1 + config.max_spec) * spec.vocabulary * 12
    return int(1.25 * config.token_budget * widest * model.dtype.itemsize) + logits


def make_executor(
    model: Model, config: EngineConfig, *, graphs: bool = True, passes: bool = True, late: bool | None = None,
    source: Source | None = None, keep: bool = False,
) -> TorchExecutor:  # fmt: skip
    """An executor for engines of this configuration: on a GPU with its own kernels, and captured decoding steps.

    Args:
        graphs, passes: False runs plain decoding, or what else the host would launch more slowly than the device runs
            it, op by op.
        late, source, keep: see `TorchExecutor`.

    Raises:
        UsageError: the cache does not fit.
    """
    ops: Ops | None = None
    capture: Callable[[Decoder, SlotTable], Any] | None = None
    capture_passes: Callable[[Decoder, SlotTable], Any] | None = None
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        from dispatchgym.serving.executor.graphs import StepGraphs
        from dispatchgym.serving.executor.pass_graphs import PassGraphs, launched_tokens, pass_sizes
        from dispatchgym.serving.executor.recording import recorder
        from dispatchgym.serving.executor.triton_ops import TritonOps

        def captured(decoder: Decoder, slots: SlotTable) -> StepGraphs:
            steps = StepGraphs(decoder, slots, config.max_seqs)
            with torch.inference_mode():
                steps.capture(recorder(model.device))
            return steps

        sizes = pass_sizes(min(config.token_budget, launched_tokens(model.spec)))

        def captured_passes(decoder: Decoder, slots: SlotTable) -> PassGraphs:
            found = PassGraphs(decoder, slots, sizes)
            with torch.inference_mode():
                found.capture(recorder(model.device))
            return found

        ops, capture = TritonOps(), captured if graphs else None
        capture_passes = captured_passes if passes and sizes else None
    executor = TorchExecutor(
        model, kv_blocks=config.kv_blocks, max_seqs=config.max_seqs, block_tokens=config.block_tokens,
        host_blocks=config.host_blocks, max_len=config.max_len, ops=ops,
        graphs=capture, passes=capture_passes, late=late, source=source, keep=keep,
    )  # fmt: skip
    if on_gpu:
        warm_up(executor.decoder, executor.slots, min(config.token_budget, executor.max_len))
    return executor


def rough_profile(model: Model, config: EngineConfig) -> Profile:
    """Step times for a model that nobody has measured: an engine's own, and what schedulers reckon with."""
    spec = model.spec
    on_gpu = model.device.type == "cuda"
    return roofline(
        spec.name or "model", model=spec.name, gpu=torch.cuda.get_device_name() if on_gpu else "cpu",
        weight_bytes=spec.parameters * model.dtype.itemsize, layers=spec.layers, hidden=spec.hidden,
        kv_bytes_per_token=spec.kv_bytes_per_token(model.dtype), kv_tokens=config.kv_blocks * config.block_tokens,
        bytes_per_s=4.26e12 if on_gpu else 1e10, flops_per_s=790e12 if on_gpu else 5e10,
    )  # fmt: skip
