"""The engine of a real model: what `serve llm` builds in the engine's process."""

from __future__ import annotations

from pathlib import Path

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.serving.executor.build import fit_config, make_executor
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.llm.engine_loop import Parts


def build_engine(
    model: str, demo: bool, device: str, profile: str, kv_blocks: int, host_blocks: int, block_tokens: int,
    max_len: int, max_seqs: int, token_budget: int,
) -> Parts:  # fmt: skip
    """An engine over the model of a folder, or random:SIZE; 0 blocks are as many as fit, `max_len` 0 is the model's.

    `demo`: the folder is made if it is not there, with a tiny model of random weights.

    Raises:
        UsageError: the model cannot be loaded, or does not fit.
    """
    if demo and not (Path(model) / "config.json").exists():
        from transformers.utils.logging import disable_progress_bar

        from dispatchgym.serving.executor.demo import write_demo

        disable_progress_bar()  # type: ignore[no-untyped-call]
        write_demo(Path(model))
    opened = open_model(model, device)
    wanted = EngineConfig(
        block_tokens=block_tokens, kv_blocks=kv_blocks, host_blocks=host_blocks, max_seqs=max_seqs,
        token_budget=token_budget, max_len=max_len,
    )  # fmt: skip
    config = fit_config(opened, wanted)
    return Parts(config, load_profile(profile), make_executor(opened, config))
