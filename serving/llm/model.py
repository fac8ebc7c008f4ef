"""The engine of a real model: what `serve llm` builds in the engine's process."""

from __future__ import annotations

from pathlib import Path

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.serving.executor.kv_cache import blocks_that_fit
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.serving.llm.engine_loop import Parts

GPU_MEMORY_FRACTION = 0.9


def build_engine(
    folder: str, demo: bool, device: str, profile: str, kv_blocks: int, host_blocks: int, block_tokens: int,
    max_len: int, max_seqs: int, token_budget: int,
) -> Parts:  # fmt: skip
    """An engine over the model of a folder; 0 blocks are as many as fit, a `max_len` of 0 is the model's own.

    `demo`: the folder is made if it is not there, with a tiny model of random weights.

    Raises:
        UsageError: the model cannot be loaded, or does not fit.
    """
    if demo and not (Path(folder) / "config.json").exists():
        from transformers.utils.logging import disable_progress_bar

        from dispatchgym.serving.executor.demo import write_demo

        disable_progress_bar()  # type: ignore[no-untyped-call]
        write_demo(Path(folder))
    model = open_model(folder, device)
    spec = model.spec
    longest = min(max_len or spec.max_positions, spec.max_positions)
    if kv_blocks == 0:
        # What a step of this size holds beside weights and cache: activations of a few layers, and logits.
        step_bytes = token_budget * (8 * spec.hidden + 4 * spec.mlp) * 4 + max_seqs * spec.vocabulary * 8
        kv_blocks = blocks_that_fit(
            spec, model.device, model.dtype, block_tokens, gpu_memory_fraction=GPU_MEMORY_FRACTION,
            reserved_bytes=step_bytes,
        )  # fmt: skip
        kv_blocks = min(kv_blocks, -(-longest // block_tokens) * max_seqs)  # more would never be used
    if longest > kv_blocks * block_tokens:
        if max_len:
            raise UsageError(
                f"--max-len {max_len} is more than {kv_blocks} KV blocks hold; lower it or raise --kv-blocks"
            )
        longest = kv_blocks * block_tokens
    config = EngineConfig(
        block_tokens=block_tokens, kv_blocks=kv_blocks, host_blocks=host_blocks, max_seqs=max_seqs,
        token_budget=token_budget, max_len=longest,
    )  # fmt: skip
    executor = TorchExecutor(
        model, kv_blocks=kv_blocks, max_seqs=max_seqs, block_tokens=block_tokens, host_blocks=host_blocks,
        max_len=longest,
    )  # fmt: skip
    return Parts(config, load_profile(profile), executor)
