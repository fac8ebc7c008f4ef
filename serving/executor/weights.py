"""Weights of a decoder, fused as the executor runs them: from a Hugging Face directory, or random."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from dispatchgym.envs.api import InvalidInstanceError, UsageError
from dispatchgym.serving.executor.shares import Share, Source
from dispatchgym.serving.executor.spec import ModelSpec


class Linear(NamedTuple):
    """y = x weight^T + bias."""

    weight: torch.Tensor  # (out, in)
    bias: torch.Tensor | None  # (out,)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer.

    Attributes:
        attention_norm, mlp_norm: (hidden,).
        qkv: queries, keys and values one below the other, out = (heads + 2 kv_heads) * head_dim.
        q_norm, k_norm: (head_dim,), where the model has them.
        out: back from the heads.
        gate_up: gate above up, out = 2 mlp.
        down: back from the MLP.
    """

    attention_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a decoder. `embedding`, `head`: (vocabulary, hidden), the same tensor where they are tied."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: torch.Tensor


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder with its weights, somewhere.

    `add_up`: of a share, which then has the sizes and weights of that: adds up the shares' parts of a tensor, in place.
    """

    spec: ModelSpec
    weights: Weights
    device: torch.device
    dtype: torch.dtype
    add_up: Callable[[torch.Tensor], object] | None = None


WHOLE = Share(0, 1)
PLAIN = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""What numbers may be in a file: others need scales beside them."""


def load_weights(
    folder: Path, spec: ModelSpec, device: torch.device, dtype: torch.dtype, share: Share = WHOLE
) -> Weights:
    """Weights from the folder's safetensors files, shard by shard.

    Raises:
        UsageError: there are none, or quantized ones, or a shard that the index names is missing.
        InvalidInstanceError: a tensor is missing or of another shape than config.json says; a damaged file.
    """
    checkpoint = _Checkpoint(folder, device, dtype)
    return _assemble(share.of_spec(spec), share.of_source(checkpoint.tensor), f"model {folder}")


def random_weights(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, seed: int = 0, share: Share = WHOLE, spread: float = 0.02
) -> Weights:
    """Normal weights of deviation `spread`, norms of 1, built on the device: for where any weights will do."""
    generator = torch.Generator(device).manual_seed(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype, device=device) if spec.qk_norm or "self_attn" not in name else None
        if spec.tied and name == "lm_head.weight":
            return None
        return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, spread, generator=generator)

    return _assemble(share.of_spec(spec), share.of_source(tensor), f"model {spec.name}")


def _assemble(spec: ModelSpec, source: Source, model: str) -> Weights:
    def needed(name: str, *shape: int) -> torch.Tensor:
        found = source(name, shape)
        if found is None:
            raise InvalidInstanceError(f"{model}: tensor {name} is missing; the checkpoint is not complete")
        return found

    def fused(prefix: str, parts: dict[str, int], width: int) -> Linear:
        names = [f"{prefix}.{part}_proj" for part in parts]
        weights = [needed(f"{name}.weight", out, width) for name, out in zip(names, parts.values(), strict=True)]
        biases = [needed(f"{prefix}.{part}_proj.bias", n) for part, n in parts.items() if f"{part}_proj" in spec.biases]
        if len(weights) == 1:
            return Linear(weights[0], biases[0] if biases else None)
        return Linear(torch.cat(weights), torch.cat(biases) if biases else None)

    h, d = spec.hidden, spec.head_dim
    q, kv = spec.heads * d, spec.kv_heads * d
    layers = []
    for i in range(spec.layers):
        at, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        layers.append(
            LayerWeights(
                attention_norm=needed(f"model.layers.{i}.input_layernorm.weight", h),
                qkv=fused(at, {"q": q, "k": kv, "v": kv}, h),
                q_norm=needed(f"{at}.q_norm.weight", d) if spec.qk_norm else None,
                k_norm=needed(f"{at}.k_norm.weight", d) if spec.qk_norm else None,
                out=fused(at, {"o": h}, q),
                mlp_norm=needed(f"model.layers.{i}.post_attention_layernorm.weight", h),
                gate_up=fused(mlp, {"gate": spec.mlp, "up": spec.mlp}, h),
                down=fused(mlp, {"down": h}, spec.mlp),
            )
        )
    embedding = needed("model.embed_tokens.weight", spec.vocabulary, h)
    if not spec.tied:
        head = needed("lm_head.weight", spec.vocabulary, h)
    else:  # transformers takes a head of its own, if the file has one, over what the config says
        own = source("lm_head.weight", (spec.vocabulary, h))
        head = embedding if own is None or torch.equal(own, embedding) else own
    return Weights(embedding, tuple(layers), needed("model.norm.weight", h), head)


class _Checkpoint:
    """The safetensors files of a directory."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self._file_of = self._index()

    def _index(self) -> dict[str, Path]:
        index = self.folder / "model.safetensors.index.json"
        single = self.folder / "model.safetensors"
        if index.is_file() and not single.is_file():
            try:
                names: dict[str, str] = json.loads(index.read_text())["weight_map"]
                where = {tensor: self.folder / Path(file).name for tensor, file in names.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InvalidInstanceError(f"model {self.folder}: {index.name}: {error}") from None
            if missing := sorted({file.name for file in where.values() if not file.is_file()}):
                raise UsageError(f"model {self.folder}: shard {missing[0]} is missing; download the checkpoint again")
            return where
        if not single.is_file():
            others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in self.folder.glob(pattern))
            why = "; download the checkpoint's *.safetensors files"
            if others:
                why = f"; {others[0]} is a pickle, which is not read: convert it to safetensors"
            raise UsageError(f"model {self.folder}: there is no model.safetensors{why}")
        with self._open(single) as file:
            return dict.fromkeys(file.keys(), single)

    def _open(self, file: Path) -> safe_open:
        try:
            return safe_open(file, framework="pt", device=str(self.device))
        except (SafetensorError, OSError) as error:
            raise InvalidInstanceError(f"model {self.folder}: {file.name}: {error}") from None

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        if name not in self._file_of:
            return None
        try:
            with self._open(self._file_of[name]) as file:
                found: torch.Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise InvalidInstanceError(f"model {self.folder}: {self._file_of[name].name}: {error}") from None
        if tuple(found.shape) != shape:
            raise InvalidInstanceError(
                f"model {self.folder}: {name} has shape {tuple(found.shape)}, config.json says {shape}"
            )
        if found.dtype not in PLAIN:
            raise UsageError(
                f"model {self.folder}: {name} is of {found.dtype}: quantized weights are not covered; take the "
                "bfloat16 checkpoint"
            )
        return found.to(self.dtype)
