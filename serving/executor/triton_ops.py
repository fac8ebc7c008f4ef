"""The operations between a decoder's matrix products as Triton kernels: the GPU's path."""

from __future__ import annotations

import torch

from dispatchgym.serving.executor import triton_attention, triton_layers, triton_sampling
from dispatchgym.serving.executor.inputs import Cut, StepInputs
from dispatchgym.serving.executor.ops import Rope
from dispatchgym.serving.executor.sampling import Draws
from dispatchgym.serving.executor.tiles import tile_tokens, tiles_of

MOST_ARRIVALS = 1 << 17
"""Rows of a step, or tiles, times key heads."""


class TritonOps:
    """See `Ops`. Prompt pieces of a step are cut into tiles once, at its first layer."""

    def __init__(self) -> None:
        self._arrivals: torch.Tensor | None = None
        self._latest: tuple[StepInputs, Cut] | None = None

    def embed(self, step: StepInputs, newest: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return triton_layers.embed(step.ids, step.slots, newest, weight)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return triton_layers.add_rms_norm(x, residual, weight, eps)

    def rope_store(
        self, qkv: torch.Tensor, rope: Rope, k_cache: torch.Tensor, v_cache: torch.Tensor, step: StepInputs
    ) -> torch.Tensor:
        norms = (rope.q_norm, rope.k_norm, rope.eps) if rope.q_norm is not None and rope.k_norm is not None else None
        triton_layers.rope_store(qkv, rope.angles, step.positions, step.slots, step.table, k_cache, v_cache, norms)
        kv_heads, dim = k_cache.shape[2:]
        heads = qkv.shape[1] // dim
        return qkv.view(len(qkv), heads, dim)[:, : heads - 2 * kv_heads]

    def attend(self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, step: StepInputs) -> torch.Tensor:
        scale = q.shape[-1] ** -0.5
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        cut = step.cut or self._cut(step, q.shape[1] // k_cache.shape[2])
        n = len(cut.slots)
        if self._arrivals is None:
            self._arrivals = torch.zeros(MOST_ARRIVALS, dtype=torch.int32, device=q.device)
        if n:
            triton_attention.paged_decode(
                q[:n], k_cache, v_cache, step.table, cut.slots, cut.positions, out[:n], self._arrivals, scale
            )
        if len(cut.tiles):
            triton_attention.paged_pieces(
                q, k_cache, v_cache, step.table, cut.tiles, cut.tokens, out, self._arrivals, scale
            )
        return out.flatten(1)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        return triton_layers.silu_mul(gate_up)

    def sample(self, logits: torch.Tensor, draws: Draws) -> torch.Tensor:
        return triton_sampling.sample(logits, draws)

    def _cut(self, step: StepInputs, group: int) -> Cut:
        if self._latest is None or self._latest[0] is not step:
            host, n = step.host, step.host.singles
            slots, positions, tiles, tokens = step.slots[:n], step.positions[:n], step.ids.new_empty(0, 4), 0
            if n < len(host.slot):
                tokens = tile_tokens(int(host.tokens[n:].max()), group)
                tiles = torch.from_numpy(
                    tiles_of(host.slot[n:], host.first[n:-1], host.tokens[n:], host.start[n:], tokens)
                )
                if step.ids.is_cuda:
                    tiles = tiles.pin_memory().to(step.ids.device, non_blocking=True)
            self._latest = step, Cut(slots, positions, tiles, tokens)
        return self._latest[1]
