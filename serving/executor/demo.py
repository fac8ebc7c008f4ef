"""Random models as Hugging Face directories: for trying things where no checkpoint is at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.executor.byte_tokenizer import byte_tokenizer
from dispatchgym.serving.executor.shapes import shape

SPREAD = 0.15
"""Deviation of the tiny model's weights: with less, it would say the same whatever it is told."""


def write_demo(folder: Path, size: str = "tiny", seed: int = 0) -> None:
    """Write a Llama with random weights, and a tokenizer of single bytes; the same files for the same seed.

    Raises:
        UnknownNameError: no such size. UsageError: there is something in the folder already.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    spec = shape(size)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"make-model: {folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
    tiny = size == "tiny"
    if tiny:
        spec = replace(spec, vocabulary=len(tokenizer))  # or most of what it says would be no text
    config = LlamaConfig(
        num_hidden_layers=spec.layers, hidden_size=spec.hidden, intermediate_size=spec.mlp,
        num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads, head_dim=spec.head_dim,
        vocab_size=spec.vocabulary, tie_word_embeddings=spec.tied, max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.eps, initializer_range=SPREAD if tiny else 0.02, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    usual = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
        try:
            model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(usual)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
