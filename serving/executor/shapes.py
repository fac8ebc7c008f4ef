"""Decoders known by their sizes alone, for measuring with random weights."""

from __future__ import annotations

from dataclasses import replace

from dispatchgym.envs.registry import unknown_name
from dispatchgym.serving.executor.spec import ModelSpec


def _spec(
    name: str, layers: int, hidden: int, mlp: int, vocabulary: int, heads: int, kv_heads: int, head_dim: int, tied: bool
) -> ModelSpec:
    inv_freq = tuple(500_000.0 ** (-i / head_dim) for i in range(0, head_dim, 2))
    return ModelSpec(
        layers=layers, hidden=hidden, mlp=mlp, vocabulary=vocabulary, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, eps=1e-5, tied=tied, qk_norm=False, biases=(), inv_freq=inv_freq, rope_scale=1.0,
        max_positions=131_072, stop=(), name=name,
    )  # fmt: skip


SHAPES = {
    "tiny": replace(_spec("tiny", 2, 128, 384, 512, 4, 2, 32, True), max_positions=32_768),
    "1b": _spec("1b", 16, 2048, 8192, 128_256, 32, 8, 64, True),
    "8b": _spec("8b", 32, 4096, 14_336, 128_256, 32, 8, 128, False),
}
"""Sizes of Llama 3.2 1B, of Llama 3.1 8B, and of a model for a laptop's CPU."""


def shape(name: str) -> ModelSpec:
    """The sizes of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in SHAPES:
        raise unknown_name("model shape", name, sorted(SHAPES))
    return SHAPES[name]
