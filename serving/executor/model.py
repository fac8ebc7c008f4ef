"""A decoder of the Llama family as a list of segments, between any two of which it may pause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dispatchgym.serving.executor.inputs import StepInputs
from dispatchgym.serving.executor.ops import Ops, Rope
from dispatchgym.serving.executor.spec import ModelSpec
from dispatchgym.serving.executor.weights import Weights


@dataclass(slots=True)
class Hidden:
    """A forward pass on its way: what the last segment put out, and the sum of all before; both (T, hidden)."""

    x: torch.Tensor
    residual: torch.Tensor | None


class Decoder:
    """Runs steps of tokens through the layers, keys and values in a paged cache.

    Args:
        cache: (layers, 2, blocks, block_tokens, kv_heads, head_dim): keys and values.
        ops: what stands between the matrix products.
        add_up: of a share of a model: adds up the shares' parts of a tensor, in place.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, cache: torch.Tensor, ops: Ops,
        add_up: Callable[[torch.Tensor], object] | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.weights = weights
        self.cache = cache
        self.ops = ops
        self._add_up = add_up
        angles = spec.angles(cache.device)
        self._ropes = [Rope(angles, layer.q_norm, layer.k_norm, spec.eps) for layer in weights.layers]

    def begin(self, step: StepInputs, newest: torch.Tensor) -> Hidden:
        """The tokens' embeddings. `newest`: int32 (max_seqs,), the newest token of each slot."""
        return Hidden(self.ops.embed(step, newest, self.weights.embedding), None)

    def run_segment(self, index: int, hidden: Hidden, step: StepInputs) -> None:
        """Attention (even) or MLP (odd) of layer index // 2."""
        layer, ops, eps = self.weights.layers[index // 2], self.ops, self.spec.eps
        if index % 2:
            normed = ops.add_rms_norm(hidden.x, hidden.residual, layer.mlp_norm, eps)
            hidden.x = self._whole(F.linear(ops.silu_mul(F.linear(normed, *layer.gate_up)), *layer.down))
            return
        normed = ops.add_rms_norm(hidden.x, hidden.residual, layer.attention_norm, eps)
        if hidden.residual is None:
            hidden.residual = hidden.x
        k_cache, v_cache = self.cache[index // 2]
        q = ops.rope_store(F.linear(normed, *layer.qkv), self._ropes[index // 2], k_cache, v_cache, step)
        hidden.x = self._whole(F.linear(ops.attend(q, k_cache, v_cache, step), *layer.out))

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        if self._add_up is not None:
            self._add_up(x)
        return x

    def finish(self, hidden: Hidden, step: StepInputs) -> torch.Tensor:
        """Logits of the picked tokens, (picks, vocabulary)."""
        assert hidden.residual is not None
        picked = step.picked.long()
        normed = self.ops.add_rms_norm(hidden.x[picked], hidden.residual[picked], self.weights.norm, self.spec.eps)
        return F.linear(normed, self.weights.head)

    def forward(self, step: StepInputs, newest: torch.Tensor) -> torch.Tensor:
        """A whole pass; logits of the picked tokens."""
        hidden = self.begin(step, newest)
        for index in range(self.spec.segments):
            self.run_segment(index, hidden, step)
        return self.finish(hidden, step)
