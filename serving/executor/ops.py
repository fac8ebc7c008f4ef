"""What stands between the matrix products of a decoder: an interface, and its reference in plain torch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from dispatchgym.serving.executor.inputs import StepInputs
from dispatchgym.serving.executor.sampling import Draws, draw

TILE = 64
"""Tokens of a prompt piece that attend at once."""

SHORT = 512
"""Tokens of text up to which rows with a single token attend together."""

PADDING = 384
"""Tokens of padding in a batch of them. As much time as the launches of another batch, or a few rows alone."""

FEWEST, MOST = 4, 2**19
"""Rows of a batch, and numbers in its keys: fewer take longer than one by one, more do not stay in the caches."""


class Rope(NamedTuple):
    """How a layer turns queries and keys.

    `angles`: float32 (positions, head_dim), cosines of the pairs, then sines. `q_norm`, `k_norm`: (head_dim,), RMSNorm
    of each head before it is turned, None without.
    """

    angles: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    eps: float


class Ops(Protocol):
    """Operations on a step of T tokens. Caches of a layer are (blocks, block_tokens, kv_heads, head_dim)."""

    def embed(self, step: StepInputs, newest: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Rows of `weight` for the step's tokens, (T, hidden); -1 stands for the newest of its slot, in `newest`."""

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """RMSNorm of `residual + x`, all (T, hidden); the sum stays in `residual`. Without one, of x alone."""

    def rope_store(
        self, qkv: torch.Tensor, rope: Rope, k_cache: torch.Tensor, v_cache: torch.Tensor, step: StepInputs
    ) -> torch.Tensor:
        """Turned queries (T, heads, head_dim) of packed qkv (T, (heads + 2 kv_heads) * head_dim), which may be
        overwritten; turned keys and the values go to their places in the caches."""

    def attend(self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, step: StepInputs) -> torch.Tensor:
        """Causal attention of each token over its request's text up to itself, (T, heads * head_dim); the step's own
        keys and values are stored already, and its rows may read each other's blocks."""

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half: (T, 2 width) -> (T, width)."""

    def sample(self, logits: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The next token of each row of logits (picks, vocabulary), whole numbers of shape (picks,)."""


class TorchOps:
    """Plain torch, for any device and dtype: SDPA on gathered blocks. The CPU's path, and the kernels' judge."""

    def embed(self, step: StepInputs, newest: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.embedding(torch.where(step.ids < 0, newest[step.slots.long()], step.ids), weight)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        if residual is not None:
            x = residual.add_(x)
        return _rms_norm(x, weight, eps)

    def rope_store(
        self, qkv: torch.Tensor, rope: Rope, k_cache: torch.Tensor, v_cache: torch.Tensor, step: StepInputs
    ) -> torch.Tensor:
        size, kv_heads, dim = k_cache.shape[1:]
        heads = qkv.shape[1] // dim - 2 * kv_heads
        q, k, v = torch.split(qkv.view(len(qkv), -1, dim), [heads, kv_heads, kv_heads], 1)
        if rope.q_norm is not None and rope.k_norm is not None:
            q, k = _rms_norm(q, rope.q_norm, rope.eps), _rms_norm(k, rope.k_norm, rope.eps)
        cos, sin = rope.angles[step.positions][:, None].to(torch.float32).chunk(2, -1)
        block = step.table[step.slots.long(), (step.positions // size).long()].long()
        place = (step.positions % size).long()
        k_cache[block, place] = _turn(k, cos, sin)
        v_cache[block, place] = v
        return _turn(q, cos, sin)

    def attend(self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, step: StepInputs) -> torch.Tensor:
        host, size = step.host, k_cache.shape[1]
        out = torch.empty_like(q)
        first, starts, slots = host.first.tolist(), host.start.tolist(), host.slot.tolist()
        alone = set(range(len(slots)))
        for batch in _batches((host.start[: host.singles] + 1).tolist(), MOST // k_cache[0, 0].numel()):
            alone.difference_update(batch)
            rows = torch.tensor(batch, device=q.device)
            out[rows] = _attend_padded(q[rows], k_cache, v_cache, step.table[step.slots[rows]], step.positions[rows])
        # The others row by row and tile by tile: padded to the longest text, or to the end of a piece, a step would
        # take longer than the tokens that it reads.
        for row in alone:
            slot, start, begin, end = slots[row], starts[row], first[row], first[row + 1]
            blocks = step.table[slot, : -(-(start + end - begin) // size)]
            k, v = (cache.index_select(0, blocks).flatten(0, 1)[None].transpose(1, 2) for cache in (k_cache, v_cache))
            for at in range(begin, end, TILE):
                to = min(at + TILE, end)
                total = start + to - begin
                seen = None if to - at == 1 else torch.arange(total, device=q.device) <= step.positions[at:to, None]
                found = F.scaled_dot_product_attention(
                    q[at:to].transpose(0, 1)[None], k[:, :, :total], v[:, :, :total], attn_mask=seen, enable_gqa=True
                )
                out[at:to] = found[0].transpose(0, 1)
        return out.flatten(1)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    def sample(self, logits: torch.Tensor, draws: Draws) -> torch.Tensor:
        return draw(logits, draws)


def _batches(lengths: list[int], most: int) -> list[list[int]]:
    """Rows that attend together, of texts of these lengths: short ones of similar length, the longest first, padded to
    at most `most` tokens."""
    batches: list[list[int]] = [[]]
    longest = padding = 0
    for row in sorted((row for row, n in enumerate(lengths) if n <= SHORT), key=lambda row: -lengths[row]):
        padding += longest - lengths[row]
        if not batches[-1] or padding > PADDING or (len(batches[-1]) + 1) * longest > most:
            batches.append([])
            longest, padding = lengths[row], 0
        batches[-1].append(row)
    return [rows for rows in batches if len(rows) >= FEWEST]


def _attend_padded(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, table: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Attention of R single tokens (R, heads, head_dim) over `table` (R, blocks) up to `positions` (R,), the first of
    which is the last. What stands behind a position is not read: a row's first token stands in for it, masked. Heads of
    a group go as queries, so that keys need not be repeated.
    """
    size, kv_heads = k_cache.shape[1:3]
    blocks = table[:, : int(positions[0]) // size + 1, None]
    places = (blocks * size + torch.arange(size, device=q.device)).flatten(1)
    seen = torch.arange(places.shape[1], device=q.device) <= positions[:, None]
    places = torch.where(seen, places, places[:, :1])
    k, v = (
        cache.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, kv_heads, -1).transpose(1, 2)
        for cache in (k_cache, v_cache)
    )
    q = q.view(len(q), kv_heads, -1, q.shape[2])
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
    return found.flatten(1, 2)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
