"""The engine of a real model: what `serve llm` builds in the engine's process."""

from __future__ import annotations

from dataclasses import replace

import torch

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.serving.executor.build import fit_config, make_executor
from dispatchgym.serving.executor.byte_tokenizer import END_TOKEN, TOKENS
from dispatchgym.serving.executor.demo import SPREAD
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.paced import PacedExecutor
from dispatchgym.serving.executor.shapes import shape
from dispatchgym.serving.executor.weights import Model, random_weights
from dispatchgym.serving.llm.engine_loop import Parts

PACED_LEN = 16_384
"""Longest text where there is no model to say, and nobody does."""


def build_engine(
    model: str, device: str, profile: str, kv_blocks: int, host_blocks: int, block_tokens: int,
    max_len: int, max_seqs: int, token_budget: int,
) -> Parts:  # fmt: skip
    """An engine over the model of a folder, or random:SIZE; 0 blocks are as many as fit, `max_len` 0 is the model's.

    `model` "": a tiny one of random weights, on the CPU.

    Raises:
        UsageError: the model cannot be loaded, or does not fit.
    """
    opened = open_model(model, device) if model else demo_model()
    wanted = EngineConfig(
        block_tokens=block_tokens, kv_blocks=kv_blocks, host_blocks=host_blocks, max_seqs=max_seqs,
        token_budget=token_budget, max_len=max_len,
    )  # fmt: skip
    config = fit_config(opened, wanted)
    return Parts(config, load_profile(profile), make_executor(opened, config))


def build_paced_engine(
    paced: str, profile: str, kv_blocks: int, host_blocks: int, block_tokens: int, max_len: int, max_seqs: int,
    token_budget: int,
) -> Parts:  # fmt: skip
    """An engine without a model, whose steps take the time that they do by the profile `paced`; 0 blocks are as many
    as that says, `max_len` 0 is PACED_LEN."""
    times = load_profile(paced)
    config = EngineConfig(
        block_tokens=block_tokens, kv_blocks=kv_blocks or times.kv_tokens // block_tokens, host_blocks=host_blocks,
        max_seqs=max_seqs, token_budget=token_budget, max_len=max_len or PACED_LEN,
    )  # fmt: skip
    return Parts(config, load_profile(profile), PacedExecutor(times, block_tokens))


def demo_model() -> Model:
    """A tiny model of single bytes. Made here, not written and read: that takes seconds, and people wait."""
    spec = replace(shape("tiny"), vocabulary=TOKENS, stop=(END_TOKEN,), name="demo")
    cpu = torch.device("cpu")
    return Model(spec, random_weights(spec, cpu, torch.float32, spread=SPREAD), cpu, torch.float32)
