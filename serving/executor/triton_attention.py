"""Attention over paged keys and values, as Triton kernels: split-KV decoding, and causal prompt pieces.

Caches are (blocks, block_tokens, kv_heads, head_dim) in any stride order, with the last dimension dense. Query heads
that share a KV head are computed together: the tile's rows are (token, head of the group), so that a key is read once.
Softmax statistics and sums are float32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dispatchgym.serving.executor.tiles import power

LOG2E = 1.4426950408889634
SPLIT_KEYS = 64  # keys that a program of the decode kernel reads at a time
PIECE_KEYS = 64


class Split(NamedTuple):
    """How contexts are cut for decoding: into at most `most` pieces each, of at least `keys` keys."""

    most: int
    keys: int


def split_for(rows: int, kv_heads: int) -> Split:
    """Few rows are cut finely, to fill the GPU; many only where a long one would keep the others waiting."""
    programs = rows * kv_heads
    for below, split in ((64, Split(16, 128)), (512, Split(8, 128)), (2048, Split(4, 512))):
        if programs < below:
            return split
    return Split(1, 512)


@triton.jit(do_not_specialize_on_alignment=["slots", "positions"])
def _decode_kernel(
    q, k, v, table, slots, positions, out, partial, stats, arrivals, scale,
    q_row, k_block, k_token, k_head, v_block, v_token, v_head, table_row, keys_each,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + row).to(tl.int64)
    length = tl.load(positions + row) + 1
    piece = tl.maximum(keys_each, tl.cdiv(tl.cdiv(length, MOST), BLOCK) * BLOCK)
    pieces = tl.cdiv(length, piece)
    if split < pieces:
        first = split * piece
        last = tl.minimum(first + piece, length)
        g = tl.arange(0, ROWS)
        d = tl.arange(0, DIM_PAD)
        heads = head * GROUP + g
        q_mask = (g[:, None] < GROUP) & (d[None, :] < DIM)
        queries = tl.load(q + row.to(tl.int64) * q_row + heads[:, None] * DIM + d[None, :], mask=q_mask, other=0.0)
        highest = tl.full([ROWS], -float("inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, DIM_PAD], tl.float32)
        for start in range(first, last, BLOCK):
            at = start + tl.arange(0, BLOCK)
            here = at < last
            block = tl.load(table + slot * table_row + at // PAGE, mask=here, other=0).to(tl.int64)
            keys = tl.load(
                k + block[None, :] * k_block + (at % PAGE)[None, :] * k_token + head * k_head + d[:, None],
                mask=here[None, :] & (d[:, None] < DIM),
                other=0.0,
            )
            scores = tl.dot(queries, keys) * scale
            scores = tl.where(here[None, :], scores, -float("inf"))
            top = tl.maximum(highest, tl.max(scores, 1))
            shift = tl.exp2(highest - top)
            p = tl.exp2(scores - top[:, None])
            values = tl.load(
                v + block[:, None] * v_block + (at % PAGE)[:, None] * v_token + head * v_head + d[None, :],
                mask=here[:, None] & (d[None, :] < DIM),
                other=0.0,
            )
            total = total * shift + tl.sum(p, 1)
            sums = tl.dot(p.to(values.dtype), values, sums * shift[:, None])
            highest = top
        place = (row.to(tl.int64) * KV_HEADS * GROUP + heads) * DIM
        if pieces == 1:
            result = sums / total[:, None]
            tl.store(out + place[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=q_mask)
        else:
            mine = (row.to(tl.int64) * KV_HEADS * GROUP + heads) * MOST
            tl.store(partial + (mine + split)[:, None] * DIM + d[None, :], sums, mask=q_mask)
            tl.store(stats + (mine + split) * 2, highest, mask=g < GROUP)
            tl.store(stats + (mine + split) * 2 + 1, total, mask=g < GROUP)
            tl.debug_barrier()
            before = tl.atomic_add(arrivals + row * KV_HEADS + head, 1, sem="acq_rel", scope="gpu")
            if before == pieces - 1:  # the last to arrive adds up what all have left
                tl.debug_barrier()
                tl.store(arrivals + row * KV_HEADS + head, 0)
                n = tl.arange(0, MOST)
                for member in tl.static_range(GROUP):
                    at_head = row.to(tl.int64) * KV_HEADS * GROUP + head * GROUP + member
                    left = (at_head * MOST + n) * 2
                    tops = tl.load(stats + left, mask=n < pieces, other=-float("inf"), cache_modifier=".cg")
                    totals = tl.load(stats + left + 1, mask=n < pieces, other=0.0, cache_modifier=".cg")
                    all_sums = tl.load(
                        partial + (at_head * MOST + n)[:, None] * DIM + d[None, :],
                        mask=(n < pieces)[:, None] & (d < DIM)[None, :],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    weight = tl.exp2(tops - tl.max(tops, 0))
                    result = tl.sum(all_sums * weight[:, None], 0) / tl.sum(totals * weight, 0)
                    tl.store(out + at_head * DIM + d, result.to(out.dtype.element_ty), mask=d < DIM)


def paged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    arrivals: torch.Tensor,
    scale: float,
    split: Split | None = None,
) -> None:
    """Attention of one query token a row over its whole context, its own key included.

    Args:
        q: (rows, q_heads, head_dim); heads and dimensions dense.
        k_cache, v_cache: (blocks, block_tokens, kv_heads, head_dim).
        table: int32 (slots, blocks): block numbers.
        slots: int32 (rows,): each row's place in `table`.
        positions: int32 (rows,): of the query token, whose key is stored already.
        out: like q, dense: written.
        arrivals: int32, at least rows * kv_heads zeros, which are zeros again afterwards.
        split: how contexts are cut; None for `split_for`.
    """
    rows, heads, dim = q.shape
    page, kv_heads = k_cache.shape[1], k_cache.shape[2]
    group = heads // kv_heads
    most, keys = split_for(rows, kv_heads) if split is None else split
    partial = torch.empty(rows * heads * most, dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(rows * heads * most, 2, dtype=torch.float32, device=q.device)
    _decode_kernel[(rows, kv_heads, most)](
        q, k_cache, v_cache, table, slots, positions, out, partial, stats, arrivals, scale * LOG2E, q.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2), v_cache.stride(0), v_cache.stride(1),
        v_cache.stride(2), table.stride(0), keys, KV_HEADS=kv_heads, GROUP=group, ROWS=max(16, power(group)),
        DIM=dim, DIM_PAD=power(dim), PAGE=page, BLOCK=SPLIT_KEYS, MOST=most, num_warps=2, num_stages=4,
    )  # fmt: skip


@triton.jit
def _fold_in(
    queries, highest, total, sums, at, here, token, position, k, v, row_table, scale, head,
    k_block, k_token, k_head, v_block, v_token, v_head,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys and values into the running softmax."""
    d = tl.arange(0, DIM_PAD)
    block = tl.load(row_table + at // PAGE, mask=here, other=0).to(tl.int64)
    key_at = k + block * k_block + (at % PAGE) * k_token + head * k_head
    value_at = v + block * v_block + (at % PAGE) * v_token + head * v_head
    if MASKED:
        keys = tl.load(key_at[None, :] + d[:, None], mask=here[None, :] & (d[:, None] < DIM), other=0.0)
        values = tl.load(value_at[:, None] + d[None, :], mask=here[:, None] & (d[None, :] < DIM), other=0.0)
    elif DIM == DIM_PAD:
        keys = tl.load(key_at[None, :] + d[:, None])
        values = tl.load(value_at[:, None] + d[None, :])
    else:
        keys = tl.load(key_at[None, :] + d[:, None], mask=d[:, None] < DIM, other=0.0)
        values = tl.load(value_at[:, None] + d[None, :], mask=d[None, :] < DIM, other=0.0)
    scores = tl.dot(queries, keys) * scale
    if MASKED:
        scores = tl.where(at[None, :] <= position[:, None], scores, -float("inf"))
    top = tl.maximum(highest, tl.max(scores, 1))
    shift = tl.exp2(highest - top)
    p = tl.exp2(scores - top[:, None])
    total = total * shift + tl.sum(p, 1)
    sums = tl.dot(p.to(values.dtype), values, sums * shift[:, None])
    return top, total, sums


def piece_split_for(tokens: int) -> Split:
    """As `split_for`, of a step with prompt pieces that runs so many tokens."""
    for most, split in ((64, Split(16, 256)), (128, Split(8, 256)), (256, Split(4, 512)), (512, Split(2, 1024))):
        if tokens <= most:
            return split
    return Split(1, 1024)


@triton.jit
def _piece_kernel(
    q, k, v, table, tiles, out, partial, stats, arrivals, scale,
    q_row, k_block, k_token, k_head, v_block, v_token, v_head, table_row, keys_each,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(tiles + tile * 4).to(tl.int64)
    first = tl.load(tiles + tile * 4 + 1)  # of the tile's tokens, among all of the step
    count = tl.load(tiles + tile * 4 + 2)
    start = tl.load(tiles + tile * 4 + 3)  # position of the first
    open_to_all = (start + 1) // BLOCK * BLOCK  # keys; what is behind them goes to the last split
    piece = tl.maximum(keys_each, tl.cdiv(tl.cdiv(open_to_all, MOST), BLOCK) * BLOCK)
    pieces = tl.maximum(1, tl.cdiv(open_to_all, piece)) if MOST > 1 else 1
    if split < pieces:
        m = tl.arange(0, ROWS)
        d = tl.arange(0, DIM_PAD)
        token, g = m // GROUP_PAD, m % GROUP_PAD
        real = (token < count) & (g < GROUP)
        position = start + token
        place = (first + token).to(tl.int64)
        heads = (head * GROUP + g) * DIM
        q_mask = real[:, None] & (d[None, :] < DIM)
        queries = tl.load(q + (place * q_row + heads)[:, None] + d[None, :], mask=q_mask, other=0.0)
        row_table = table + slot * table_row
        highest = tl.full([ROWS], -float("inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, DIM_PAD], tl.float32)
        n = tl.arange(0, BLOCK)
        last = tl.minimum((split + 1) * piece, open_to_all) if MOST > 1 else open_to_all
        for begin in range(split * piece, last, BLOCK):
            highest, total, sums = _fold_in(
                queries, highest, total, sums, begin + n, n >= 0, token, position, k, v, row_table, scale, head,
                k_block, k_token, k_head, v_block, v_token, v_head, DIM, DIM_PAD, PAGE, False,
            )  # fmt: skip
        end = start + count
        for begin in range(open_to_all, tl.where(split == pieces - 1, end, open_to_all), BLOCK):
            highest, total, sums = _fold_in(
                queries, highest, total, sums, begin + n, begin + n < end, token, position, k, v, row_table, scale,
                head, k_block, k_token, k_head, v_block, v_token, v_head, DIM, DIM_PAD, PAGE, True,
            )  # fmt: skip
        if MOST > 1:
            if pieces > 1:
                mine = (place * HEADS + head * GROUP + g) * MOST
                tl.store(partial + (mine + split)[:, None] * DIM + d[None, :], sums, mask=q_mask)
                tl.store(stats + (mine + split) * 2, highest, mask=real)
                tl.store(stats + (mine + split) * 2 + 1, total, mask=real)
                tl.debug_barrier()
                before = tl.atomic_add(arrivals + tile * tl.num_programs(1) + head, 1, sem="acq_rel", scope="gpu")
                if before == pieces - 1:  # the last to arrive adds up what all have left
                    tl.debug_barrier()
                    tl.store(arrivals + tile * tl.num_programs(1) + head, 0)
                    highest = tl.load(stats + mine * 2, mask=real, other=0.0, cache_modifier=".cg")
                    total = tl.zeros([ROWS], tl.float32)
                    sums = tl.zeros([ROWS, DIM_PAD], tl.float32)
                    for other in range(pieces):
                        theirs = mine + other
                        tops = tl.load(stats + theirs * 2, mask=real, other=0.0, cache_modifier=".cg")
                        totals = tl.load(stats + theirs * 2 + 1, mask=real, other=0.0, cache_modifier=".cg")
                        at = partial + theirs[:, None] * DIM + d[None, :]
                        parts = tl.load(at, mask=q_mask, other=0.0, cache_modifier=".cg")
                        top = tl.maximum(highest, tops)
                        mine_by, theirs_by = tl.exp2(highest - top), tl.exp2(tops - top)
                        total = total * mine_by + totals * theirs_by
                        sums = sums * mine_by[:, None] + parts * theirs_by[:, None]
                        highest = top
                    _give(sums, total, out, place * HEADS * DIM + heads, d, q_mask)
            else:
                _give(sums, total, out, place * HEADS * DIM + heads, d, q_mask)
        else:
            _give(sums, total, out, place * HEADS * DIM + heads, d, q_mask)


@triton.jit
def _give(sums, total, out, places, d, mask):
    """Store the rows of a tile."""
    result = (sums / tl.where(total > 0, total, 1.0)[:, None]).to(out.dtype.element_ty)  # tiles of no tokens
    tl.store(out + places[:, None] + d[None, :], result, mask=mask)


def paged_pieces(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table: torch.Tensor,
    tiles: torch.Tensor,
    tokens: int,
    out: torch.Tensor,
    arrivals: torch.Tensor,
    scale: float,
    split: Split | None = None,
) -> None:
    """Causal attention of prompt pieces over all that is held of their requests, the pieces' own keys included.

    Args:
        q: (tokens, q_heads, head_dim), the pieces one after another; heads and dimensions dense.
        k_cache, v_cache, table: as in `paged_decode`; the keys of the pieces are stored already.
        tiles: int32 (tiles, 4) as from `tiles_of`: place in `table`, first token among q's, number of tokens, position
            of the first; nothing is written for a tile of no tokens.
        tokens: of the largest tile.
        out: like q, dense: written.
        arrivals: int32, at least tiles * kv_heads zeros if contexts are cut, which are zeros again afterwards.
        split: how what is held before a tile is cut; None for `piece_split_for`.
    """
    heads, dim = q.shape[1:]
    page, kv_heads = k_cache.shape[1], k_cache.shape[2]
    group = heads // kv_heads
    group_pad = power(group)
    rows = max(16, tokens * group_pad)
    pad = power(dim)
    most, keys = piece_split_for(len(q)) if split is None else split
    cells = len(q) * heads * most if most > 1 else 0
    partial = torch.empty(cells, dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(cells, 2, dtype=torch.float32, device=q.device)
    _piece_kernel[(len(tiles), kv_heads, most)](
        q, k_cache, v_cache, table, tiles, out, partial, stats, arrivals, scale * LOG2E, q.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2), v_cache.stride(0), v_cache.stride(1),
        v_cache.stride(2), table.stride(0), keys, HEADS=heads, GROUP=group, GROUP_PAD=group_pad, DIM=dim, DIM_PAD=pad,
        PAGE=page, ROWS=rows, BLOCK=PIECE_KEYS, MOST=most, num_warps=4, num_stages=2,
    )  # fmt: skip
