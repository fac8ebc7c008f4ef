"""What a decoder is made of: its sizes, and what sets one family of models apart from another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dispatchgym.envs.api import InvalidInstanceError, UsageError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types that the decoder covers: RMSNorm, rotary positions, grouped queries, gated MLP."""

_SIZES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
_STATIC_ROPE = ("linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder's sizes.

    Attributes:
        layers, hidden, mlp, vocabulary: sizes.
        heads, kv_heads: of queries; of keys and values, which each serve heads / kv_heads of them.
        head_dim: numbers of a head.
        eps: of the norms.
        tied: the head is the embedding.
        qk_norm: queries and keys are normalised head by head.
        biases: names of the projections that have them.
        inv_freq: turns per position of each pair of dimensions, shape (head_dim / 2,), in radians.
        rope_scale: factor on cosines and sines.
        max_positions: longest text the model was made for, tokens.
        stop: end-of-text tokens.
        name: what reports call it.
    """

    layers: int
    hidden: int
    mlp: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    tied: bool
    qk_norm: bool
    biases: tuple[str, ...]
    inv_freq: tuple[float, ...]
    rope_scale: float
    max_positions: int
    stop: tuple[int, ...]
    name: str

    @property
    def segments(self) -> int:
        """Places at which a forward pass may pause: after attention and MLP of each layer."""
        return 2 * self.layers

    @property
    def parameters(self) -> int:
        """Numbers that a decoding step reads: all but the embedding where the head is another matrix."""
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = self.hidden * (width + self.heads * self.head_dim + 3 * self.mlp + 2)
        return self.layers * layer + self.hidden * (self.vocabulary + 1)

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of the keys and values of a token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize

    def angles(self, device: torch.device) -> torch.Tensor:
        """float32 (positions, head_dim): of each position the cosines of the pairs, then the sines."""
        positions = torch.arange(self.max_positions, dtype=torch.float32)
        turned = torch.outer(positions, torch.tensor(self.inv_freq, dtype=torch.float32))
        return (torch.cat([turned.cos(), turned.sin()], 1) * self.rope_scale).to(device)


def read_spec(folder: Path) -> ModelSpec:
    """The decoder that a Hugging Face directory's config.json describes.

    Raises:
        UsageError: the folder or the file is not there, or the model is of a kind that is not covered.
        InvalidInstanceError: config.json cannot be read, or its sizes do not fit together.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UsageError(f"model {folder}: there is no config.json; name the directory of a Hugging Face checkpoint")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, StrictDataclassError) as error:
        raise InvalidInstanceError(f"model {folder}: config.json: {' '.join(str(error).split())[:200]}") from None
    return spec_of(config, name=folder.name)


def spec_of(config: Any, name: str) -> ModelSpec:
    """The decoder that a transformers config describes; raises as `read_spec`."""
    family = config.model_type
    if family not in FAMILIES:
        raise UsageError(f"model {name}: architecture {family!r} is not covered; covered are {', '.join(FAMILIES)}")
    if config.hidden_act not in ("silu", "swish"):
        raise UsageError(f"model {name}: activation {config.hidden_act!r} is not covered; silu is")
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if (family == "mistral" and window is not None) or "sliding_attention" in kinds:
        raise UsageError(f"model {name}: attention in a sliding window of {window} tokens is not covered")
    if unknown := sorted(kinds - {"full_attention"}):
        raise UsageError(f"model {name}: layers of type {unknown[0]!r} are not covered; full_attention is")
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(f"model {name}: quantized weights are not covered; take the bfloat16 checkpoint")
    for size in _SIZES:
        if getattr(config, size) < 1:
            raise InvalidInstanceError(f"model {name}: {size} {getattr(config, size)} is below 1")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    if heads % kv_heads or head_dim % 2:
        raise InvalidInstanceError(
            f"model {name}: {heads} query heads of {head_dim} over {kv_heads} key heads do not divide"
        )
    try:
        inv_freq, scale = _rope(config, head_dim, name)
    except UsageError:
        raise
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise InvalidInstanceError(f"model {name}: rope_parameters {config.rope_parameters}: {error!r}") from None
    if not all(map(math.isfinite, (*inv_freq, scale))):
        raise InvalidInstanceError(f"model {name}: rope_parameters {config.rope_parameters} give no finite angles")
    stop = config.eos_token_id
    return ModelSpec(
        layers=config.num_hidden_layers, hidden=config.hidden_size, mlp=config.intermediate_size,
        vocabulary=config.vocab_size, heads=heads, kv_heads=kv_heads, head_dim=head_dim, eps=config.rms_norm_eps,
        tied=bool(config.tie_word_embeddings), qk_norm=family == "qwen3", biases=_biases(config),
        inv_freq=inv_freq, rope_scale=scale, max_positions=config.max_position_embeddings,
        stop=tuple(stop) if isinstance(stop, list | tuple) else () if stop is None else (int(stop),), name=name,
    )  # fmt: skip


def _biases(config: Any) -> tuple[str, ...]:
    """Projections with a bias, as transformers builds them."""
    qkv, mlp = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")
    if config.model_type == "qwen2":
        return qkv
    attention = config.model_type in ("llama", "qwen3") and config.attention_bias
    return ((*qkv, "o_proj") if attention else ()) + (mlp if config.model_type == "llama" and config.mlp_bias else ())


def _rope(config: Any, head_dim: int, name: str) -> tuple[tuple[float, ...], float]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UsageError(f"model {name}: rotary positions on part of a head are not covered")
    if kind == "default":
        even = torch.arange(0, head_dim, 2, dtype=torch.float32)
        return tuple((1.0 / rope["rope_theta"] ** (even / head_dim)).tolist()), 1.0
    if kind not in _STATIC_ROPE:
        raise UsageError(
            f"model {name}: rope type {kind!r} is not covered; covered are default, {', '.join(_STATIC_ROPE)}"
        )
    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return tuple(inv_freq.tolist()), float(scale)
