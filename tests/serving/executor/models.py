"""Tiny random models that several tests share, as transformers makes and saves them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.weights import Model

VOCABULARY = 300
FAMILIES = ("llama", "qwen2", "qwen3")

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.25,
    "eos_token_id": None, "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
}


@functools.cache
def reference(family: str) -> Any:
    """A random model of a family, by transformers; biases and norms are random too."""
    config = getattr(transformers, f"{family.capitalize()}Config")(**_SIZES, **_OWN[family])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = getattr(transformers, f"{family.capitalize()}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter) if "bias" in name else torch.rand_like(parameter))
    return model


def save(family: str, folder: Path, **how: Any) -> None:
    """Write the model as people publish theirs."""
    reference(family).save_pretrained(folder, **how)


@functools.cache
def model(family: str) -> Model:
    """The same model, loaded by the executor's own reader from several shards."""
    with tempfile.TemporaryDirectory() as folder:
        save(family, Path(folder), max_shard_size="50KB")
        return open_model(folder, "cpu")


def plain_greedy(family: str, prompt: npt.NDArray[np.int32], count: int) -> list[int]:
    """What transformers makes of a prompt."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    with torch.inference_mode():
        out = reference(family).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
    found: list[int] = out[0, len(prompt) :].tolist()
    return found
