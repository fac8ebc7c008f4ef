"""What stands between the matrix products of a layer, each a single pass over memory, as Triton kernels."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _take_rows_kernel(ring, turn, rows, table, pitch, ring_row, table_row, KEPT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = i < pitch
    sent = ring + tl.load(turn) * ring_row
    for column in tl.static_range(KEPT):
        tl.store(rows + column * pitch + i, tl.load(sent + column * pitch + i, mask=here, other=0), mask=here)
    slot = tl.load(sent + KEPT * pitch + i, mask=here, other=-1)
    place = tl.load(sent + (KEPT + 1) * pitch + i, mask=here, other=0)
    block = tl.load(sent + (KEPT + 2) * pitch + i, mask=here, other=0)
    tl.store(table + slot.to(tl.int64) * table_row + place, block, mask=slot >= 0)


def take_rows(ring: torch.Tensor, turn: torch.Tensor, rows: torch.Tensor, table: torch.Tensor) -> None:
    """Fetch a step's rows from the host's memory, and change the block table as they say.

    Args:
        ring: int32 (steps, at least columns * pitch), pinned; the last three columns of a step are changes:
            table[slot, place] = block, none where the slot is -1.
        turn: int32 (1,): the step's place in the ring.
        rows: int32 (columns - 3, pitch): written.
        table: int32 (slots, blocks): changed.
    """
    kept, pitch = rows.shape
    _take_rows_kernel[(triton.cdiv(pitch, 128),)](
        ring, turn, rows, table, pitch, ring.stride(0), table.stride(0), KEPT=kept, BLOCK=128, num_warps=4
    )


@triton.jit
def _give_tokens_kernel(tokens, ring, turn, ring_row, COUNT: tl.constexpr, STEPS: tl.constexpr, PAD: tl.constexpr):
    i = tl.arange(0, PAD)
    now = tl.load(turn)
    tl.store(ring + now * ring_row + i, tl.load(tokens + i, mask=i < COUNT), mask=i < COUNT)
    tl.debug_barrier()
    tl.store(turn, (now + 1) % STEPS)


def give_tokens(tokens: torch.Tensor, ring: torch.Tensor, turn: torch.Tensor) -> None:
    """Put a step's tokens (rows,) into the host's memory, ring (steps, at least rows), pinned; the next turn comes."""
    _give_tokens_kernel[(1,)](
        tokens, ring, turn, ring.stride(0), COUNT=len(tokens), STEPS=len(ring), PAD=triton.next_power_of_2(len(tokens)),
        num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["tokens", "slots"])
def _embed_kernel(tokens, slots, newest, weight, out, DIM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + row)
    if token < 0:
        token = tl.load(newest + tl.load(slots + row))
    value = tl.load(weight + token.to(tl.int64) * DIM + d, mask=d < DIM)
    tl.store(out + row * DIM + d, value, mask=d < DIM)


def embed(tokens: torch.Tensor, slots: torch.Tensor, newest: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(tokens, hidden): the row of `weight` of each token, or, where that is -1, of the newest of its slot."""
    dim = weight.shape[1]
    out = torch.empty(len(tokens), dim, dtype=weight.dtype, device=weight.device)
    block = min(1024, triton.next_power_of_2(dim))
    _embed_kernel[(len(tokens), triton.cdiv(dim, block))](
        tokens, slots, newest, weight, out, DIM=dim, BLOCK=block, num_warps=2
    )
    return out


@triton.jit
def _add_norm_kernel(
    x, residual, weight, out, eps, DIM: tl.constexpr, PAD: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, PAD)
    here = d < DIM
    value = tl.load(x + row * DIM + d, mask=here, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + row * DIM + d, mask=here, other=0.0).to(tl.float32)
        value = value.to(residual.dtype.element_ty)
        tl.store(residual + row * DIM + d, value, mask=here)
        value = value.to(tl.float32)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / DIM + eps)
    scale = tl.load(weight + d, mask=here, other=0.0)
    tl.store(out + row * DIM + d, normed.to(out.dtype.element_ty) * scale, mask=here)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of `residual + x`; the sum, rounded to its dtype, is left in `residual`. All (tokens, hidden), dense."""
    tokens, dim = x.shape
    out = torch.empty_like(x)
    _add_norm_kernel[(tokens,)](
        x, residual, weight, out, eps, DIM=dim, PAD=triton.next_power_of_2(dim), ADD=residual is not None,
        num_warps=8 if dim > 2048 else 4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rope_store_kernel(
    qkv, angles, positions, slots, table, k, v, q_weight, k_weight, eps,
    k_block, k_token, k_head, v_block, v_token, v_head, table_row,
    Q: tl.constexpr, KV: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr,
    PAGE: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, HALF_PAD)
    position = tl.load(positions + token)
    slot = tl.load(slots + token).to(tl.int64)
    exists = (head < Q + 2 * KV)[:, None] & (i < HALF)[None, :]
    place = qkv + (token * (Q + 2 * KV) + head)[:, None] * (2 * HALF) + i[None, :]
    low = tl.load(place, mask=exists, other=0.0)
    high = tl.load(place + HALF, mask=exists, other=0.0)
    turned = (head < Q + KV)[:, None]
    a, b = low.to(tl.float32), high.to(tl.float32)
    if NORM:
        spread = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + eps)[:, None]
        is_q = (head < Q)[:, None]
        wide = (i < HALF)[None, :]
        w_low = tl.where(
            is_q,
            tl.load(q_weight + i[None, :], mask=wide, other=0.0),
            tl.load(k_weight + i[None, :], mask=wide, other=0.0),
        )
        w_high = tl.where(
            is_q,
            tl.load(q_weight + HALF + i[None, :], mask=wide, other=0.0),
            tl.load(k_weight + HALF + i[None, :], mask=wide, other=0.0),
        )
        a = ((a * spread).to(low.dtype) * w_low).to(tl.float32)
        b = ((b * spread).to(low.dtype) * w_high).to(tl.float32)
    angle = angles + position.to(tl.int64) * (2 * HALF) + i
    cos = tl.load(angle, mask=i < HALF, other=0.0)[None, :]
    sin = tl.load(angle + HALF, mask=i < HALF, other=0.0)[None, :]
    low = tl.where(turned, (a * cos - b * sin).to(low.dtype), low)
    high = tl.where(turned, (b * cos + a * sin).to(high.dtype), high)
    is_query = exists & (head < Q)[:, None]
    tl.store(place, low, mask=is_query)
    tl.store(place + HALF, high, mask=is_query)
    block = tl.load(table + slot * table_row + position // PAGE).to(tl.int64)
    key = exists & ((head >= Q) & (head < Q + KV))[:, None]
    key_at = k + block * k_block + (position % PAGE) * k_token + (head - Q)[:, None] * k_head + i[None, :]
    tl.store(key_at, low, mask=key)
    tl.store(key_at + HALF, high, mask=key)
    value = exists & (head >= Q + KV)[:, None]
    value_at = v + block * v_block + (position % PAGE) * v_token + (head - Q - KV)[:, None] * v_head + i[None, :]
    tl.store(value_at, low, mask=value)
    tl.store(value_at + HALF, high, mask=value)


def rope_store(
    qkv: torch.Tensor,
    angles: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    table: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor, float] | None = None,
) -> None:
    """Turn queries in place; turn keys and put them, and the values, into the cache.

    Args:
        qkv: (tokens, (q_heads + 2 kv_heads) * head_dim), dense.
        angles: float32 (positions, head_dim): cosines of the half dimensions, then sines.
        positions, slots: int32 (tokens,): place in the request's text; row of `table`.
        table: int32 (slots, blocks).
        k_cache, v_cache: (blocks, block_tokens, kv_heads, head_dim).
        norms: weights (head_dim,) of RMSNorms over each query and key head, and their epsilon.
    """
    tokens, width = qkv.shape
    page, kv_heads, dim = k_cache.shape[1:]
    heads = width // dim
    q_weight, k_weight, eps = norms if norms is not None else (angles, angles, 0.0)
    many = 16
    _rope_store_kernel[(tokens, triton.cdiv(heads, many))](
        qkv, angles, positions, slots, table, k_cache, v_cache, q_weight, k_weight, eps,
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2), v_cache.stride(0), v_cache.stride(1),
        v_cache.stride(2), table.stride(0), Q=heads - 2 * kv_heads, KV=kv_heads, HEADS=many, HALF=dim // 2,
        HALF_PAD=triton.next_power_of_2(dim // 2), PAGE=page, NORM=norms is not None, num_warps=4,
    )  # fmt: skip


@triton.jit
def _silu_mul_kernel(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = i < WIDTH
    gate = tl.load(x + row * 2 * WIDTH + i, mask=here, other=0.0)
    up = tl.load(x + row * 2 * WIDTH + WIDTH + i, mask=here, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row * WIDTH + i, silu * up, mask=here)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of each row; (tokens, 2 width) -> (tokens, width)."""
    tokens, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    block = min(2048, triton.next_power_of_2(width))
    _silu_mul_kernel[(tokens, triton.cdiv(width, block))](x, out, WIDTH=width, BLOCK=block, num_warps=4)
    return out
