"""Every Triton kernel against the plain float32 computation: on a GPU, or on the CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter multiplies no bfloat16 matrices, and is slow; tensor cores multiply no float32 ones exactly.
HALF = torch.float16 if INTERPRETED else torch.bfloat16
DTYPES = [torch.float32] if INTERPRETED else [torch.float16, torch.bfloat16]
BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 4e-3}
SEEDS = range(4 if INTERPRETED else 16)
PAGE = 16


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.float() - reference).norm() / reference.norm().clamp_min(1e-9))


class Cache:
    """Pages in random order for a few requests, some of them shared."""

    def __init__(self, rng: np.random.Generator, slots: int, longest: int, dtype: torch.dtype) -> None:
        self.kv_heads = int(rng.choice([1, 2, 4, 8]))
        self.group = int(rng.choice([1, 2, 3, 4, 7]))
        self.dim = int(rng.choice([64, 128] if dtype is not torch.float32 else [32, 64]))
        columns = -(-longest // PAGE)
        blocks = slots * columns + 3
        order = rng.permutation(blocks)[: slots * columns].reshape(slots, columns)
        shared = int(rng.integers(0, columns))
        order[-1, :shared] = order[0, :shared]
        self.table = torch.tensor(order, dtype=torch.int32, device=DEVICE)
        shape = (blocks, PAGE, self.kv_heads, self.dim)
        if rng.random() < 0.5:  # another order in memory, seen the same way
            self.k, self.v = (self._draw((blocks, self.kv_heads, PAGE, self.dim), dtype).transpose(1, 2) for _ in "kv")
        else:
            self.k, self.v = (self._draw(shape, dtype) for _ in "kv")

    def _draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE).to(dtype)

    def queries(self, tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """(tokens, q_heads, dim), the first part of rows that also hold keys and values."""
        heads = self.kv_heads * self.group
        return self._draw((tokens, heads + 2 * self.kv_heads, self.dim), dtype)[:, :heads]

    def attend(self, q: torch.Tensor, slot: int, position: int) -> torch.Tensor:
        """Attention of one query over the first `position + 1` keys, float32."""
        at = torch.arange(position + 1, device=DEVICE)
        block = self.table[slot].long()[at // PAGE]
        k, v = (x[block, at % PAGE].float().repeat_interleave(self.group, 1) for x in (self.k, self.v))
        p = (torch.einsum("hd,nhd->hn", q.float(), k) * self.dim**-0.5).softmax(-1)
        return torch.einsum("hn,nhd->hd", p, v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_split_decoding_attends_over_the_whole_context(seed: int, dtype: torch.dtype) -> None:
    from dispatchgym.serving.executor.triton_attention import Split, paged_decode

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    cache = Cache(rng, 5, 400, dtype)
    rows = int(rng.integers(1, 7))
    slots = rng.integers(0, 5, rows)
    positions = rng.integers(0, 400, rows)
    positions[0] = rng.choice([0, 15, 16, 63, 64, 399])
    q = cache.queries(rows, dtype)
    split = [None, Split(1, 64), Split(2, 64), Split(8, 32)][seed % 4]
    arrivals = torch.zeros(rows * cache.kv_heads, dtype=torch.int32, device=DEVICE)
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=DEVICE)
    paged_decode(
        q, cache.k, cache.v, cache.table, _ints(slots), _ints(positions), out, arrivals, cache.dim**-0.5, split
    )
    reference = torch.stack([cache.attend(q[i], int(slots[i]), int(positions[i])) for i in range(rows)])
    assert error(out, reference) < BOUND[dtype]
    assert not arrivals.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_prompt_pieces_attend_to_their_past_and_themselves(seed: int, dtype: torch.dtype) -> None:
    from dispatchgym.serving.executor.tiles import tile_tokens, tiles_of
    from dispatchgym.serving.executor.triton_attention import Split, paged_pieces

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    cache = Cache(rng, 5, 320, dtype)
    lengths = rng.choice([1, 2, 5, 16, 17, 40, 70], 4)
    starts = rng.choice([0, 0, 3, 16, 63, 64, 200, 250], 4)
    slots = rng.permutation(5)[:4]
    q = cache.queries(int(lengths.sum()), dtype)
    firsts = np.cumsum(lengths) - lengths
    tokens = tile_tokens(int(lengths.max()), cache.group)
    tiles = tiles_of(slots, firsts, lengths, starts, tokens)
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=DEVICE)
    split = [None, Split(1, 64), Split(2, 64), Split(8, 64)][seed % 4]
    arrivals = torch.zeros(len(tiles) * cache.kv_heads, dtype=torch.int32, device=DEVICE)
    paged_pieces(q, cache.k, cache.v, cache.table, _ints(tiles), tokens, out, arrivals, cache.dim**-0.5, split)
    reference = torch.stack(
        [
            cache.attend(q[first + i], int(slot), int(start + i))
            for slot, first, length, start in zip(slots, firsts, lengths, starts, strict=True)
            for i in range(length)
        ]
    )
    assert error(out, reference) < BOUND[dtype]
    assert not arrivals.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [100, 2048])
def test_add_and_norm(dim: int, dtype: torch.dtype) -> None:
    from dispatchgym.serving.executor.triton_layers import add_rms_norm

    torch.manual_seed(dim)
    x, residual, weight = (torch.randn(shape, device=DEVICE).to(dtype) for shape in ((5, dim), (5, dim), (dim,)))
    total = (x.float() + residual.float()).to(dtype)
    alone = add_rms_norm(x, None, weight, 1e-5)
    both = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    for out, value in ((alone, x.float()), (both, total.float())):
        reference = value * torch.rsqrt((value * value).mean(-1, keepdim=True) + 1e-5) * weight.float()
        assert error(out, reference) < BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [96, 2500])
def test_silu_times_up(width: int, dtype: torch.dtype) -> None:
    from dispatchgym.serving.executor.triton_layers import silu_mul

    torch.manual_seed(width)
    x = torch.randn(3, 2 * width, device=DEVICE).to(dtype)
    reference = torch.nn.functional.silu(x[:, :width].float()) * x[:, width:].float()
    assert error(silu_mul(x), reference) < BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "dim", "norm"), [(4, 2, 64, False), (14, 2, 64, True), (3, 1, 80, True)]
)
def test_rotation_and_store(q_heads: int, kv_heads: int, dim: int, norm: bool, dtype: torch.dtype) -> None:
    from dispatchgym.serving.executor.triton_layers import rope_store

    torch.manual_seed(dim)
    tokens, blocks = 9, 50
    qkv = torch.randn(tokens, (q_heads + 2 * kv_heads) * dim, device=DEVICE).to(dtype)
    k, v = (torch.zeros(blocks, PAGE, kv_heads, dim, dtype=dtype, device=DEVICE) for _ in "kv")
    table = torch.randperm(48, device=DEVICE).view(6, 8).int()
    places = torch.randperm(6 * 128, device=DEVICE)[:tokens]
    slots, positions = (places // 128).int(), (places % 128).int()
    angles = torch.randn(128, dim, device=DEVICE)
    weights = tuple(torch.randn(dim, device=DEVICE).to(dtype) for _ in range(2))
    wanted = qkv.view(tokens, -1, dim).float().clone()
    if norm:
        for heads, weight in ((slice(0, q_heads), weights[0]), (slice(q_heads, q_heads + kv_heads), weights[1])):
            x = wanted[:, heads]
            wanted[:, heads] = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight.float()
    cos, sin = angles[positions.long()].unsqueeze(1).split(dim // 2, -1)
    low, high = wanted[:, : q_heads + kv_heads].split(dim // 2, -1)
    turned = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
    values = qkv.view(tokens, -1, dim)[:, q_heads + kv_heads :].clone()
    rope_store(qkv, angles, positions, slots, table, k, v, (*weights, 1e-6) if norm else None)
    block, offset = table[slots.long(), positions.long() // PAGE].long(), positions.long() % PAGE
    assert error(qkv.view(tokens, -1, dim)[:, :q_heads], turned[:, :q_heads]) < BOUND[dtype]
    assert error(k[block, offset], turned[:, q_heads:]) < BOUND[dtype]
    assert torch.equal(v[block, offset], values)
    assert int((k != 0).any(-1).sum()) == tokens * kv_heads  # and nothing else was written


def test_embedding_takes_the_token_or_the_last_one_of_the_slot() -> None:
    from dispatchgym.serving.executor.triton_layers import embed

    weight = torch.randn(50, 1500, device=DEVICE).to(HALF)
    out = embed(_ints([3, -1, 49, -1]), _ints([0, 1, 2, 0]), _ints([7, 8, 9]), weight)
    assert torch.equal(out, weight[[3, 8, 49, 7]])


def test_rows_are_fetched_and_tokens_left_turn_by_turn() -> None:
    from dispatchgym.serving.executor.triton_layers import give_tokens, take_rows

    pinned = not INTERPRETED
    ring = torch.arange(3 * 40, dtype=torch.int32).view(3, 40)
    ring[1, 16:28] = torch.tensor([2, -1, 0, -1, 8, 3, 1, 0, 77, 5, 66, 0], dtype=torch.int32)
    ring = ring.pin_memory() if pinned else ring
    left = torch.full((3, 8), -3, dtype=torch.int32, pin_memory=pinned)
    table, rows = (torch.zeros(shape, dtype=torch.int32, device=DEVICE) for shape in ((4, 9), (4, 4)))
    turn = _ints([1])
    take_rows(ring, turn, rows, table)
    give_tokens(_ints([5, 6, 7]), left, turn)
    if pinned:
        torch.cuda.synchronize()
    wanted = torch.zeros_like(table)
    wanted[2, 8], wanted[0, 1] = 77, 66
    assert torch.equal(table, wanted)
    assert rows.view(-1).tolist() == list(range(40, 56))
    assert left.tolist() == [[-3] * 8, [5, 6, 7, -3, -3, -3, -3, -3], [-3] * 8]
    for expected in (0, 1, 2):
        give_tokens(_ints([0]), left, turn) if expected != 0 else None
        assert turn.tolist() == [(2 + expected) % 3]


def test_the_likeliest_token_and_the_lowest_among_equals() -> None:
    logits = torch.randn(7, 9001, device=DEVICE).to(HALF)
    logits[3, [17, 5000, 8999]] = 30.0
    tokens = _sample(logits, [0.0] * 7)
    expected = [int(np.flatnonzero(row == row.max())[0]) for row in logits.float().cpu().numpy()]
    assert tokens.tolist() == expected


def test_draws_follow_the_softmax() -> None:
    torch.manual_seed(0)
    rows = 120 if INTERPRETED else 4000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5], device=DEVICE).to(HALF).repeat(rows, 1).contiguous()
    tokens = _sample(logits, [0.8] * rows, seeds=list(range(rows)))
    share = np.bincount(tokens.cpu().numpy(), minlength=5) / rows
    wanted = (logits[0].float() / 0.8).softmax(-1).cpu().numpy()
    assert np.abs(share - wanted).max() < 4 * 0.5 / rows**0.5


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    torch.manual_seed(1)
    row = torch.randn(1, 6000, device=DEVICE).to(HALF)
    alone = _sample(row, [1.0], seeds=[2**40 + 5], positions=[33])
    crowd = _sample(row.repeat(3, 1), [1.0, 1.0, 1.0], seeds=[2**40 + 5, 7, 2**40 + 5], positions=[33, 33, 34])
    assert crowd[0] == alone[0]
    assert len(set(crowd.tolist())) == 3


@pytest.mark.parametrize("seed", range(3))
def test_only_the_top_tokens_are_drawn(seed: int) -> None:
    """The set that top-k and top-p let through, found by sorting."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    draws, vocabulary = (6 if INTERPRETED else 2000), 9000 if seed == 1 else 40
    top_k, top_p, warm = int(rng.choice([0, 1, 3, 20])), float(rng.choice([1.0, 0.2, 0.7, 0.95])), 1.3
    logits = (4 * torch.randn(vocabulary, device=DEVICE)).to(HALF)
    tokens = _sample(
        logits.repeat(draws, 1), [warm] * draws, seeds=list(range(draws)), top_k=[top_k] * draws, top_p=[top_p] * draws
    )
    kept = logits.float().cpu().numpy().astype(np.float64)
    if top_k:
        kept = np.where(kept >= np.sort(kept)[-top_k], kept, -np.inf)
    mass = np.exp((kept - kept.max()) / warm)
    order = np.argsort(-kept, kind="stable")
    before = np.cumsum(mass[order]) - mass[order]
    last = kept[order[before < top_p * mass.sum() * (1 - 1e-5)][-1]]
    allowed = set(np.flatnonzero(kept >= last).tolist())
    drawn = set(tokens.tolist())
    assert drawn <= allowed
    assert len(drawn) >= min(len(allowed), 2)


def _sample(
    logits: torch.Tensor,
    temperature: list[float],
    seeds: list[int] | None = None,
    positions: list[int] | None = None,
    top_k: list[int] | None = None,
    top_p: list[float] | None = None,
) -> torch.Tensor:
    from dispatchgym.serving.executor.sampling import Draws, draw
    from dispatchgym.serving.executor.triton_sampling import sample

    rows = len(logits)
    draws = Draws(
        temperature=torch.tensor(temperature, device=DEVICE),
        top_k=_ints(top_k or [0] * rows),
        top_p=torch.tensor(top_p or [1.0] * rows, device=DEVICE),
        seeds=torch.tensor(seeds or [0] * rows, device=DEVICE),
        positions=_ints(positions or [0] * rows),
        greedy=not any(temperature),
        filtered=top_k is not None,
    )
    tokens = sample(logits, draws)
    slots, newest = torch.randperm(rows, device=DEVICE), torch.full((rows,), -1, dtype=torch.int32, device=DEVICE)
    place = slots.argsort()
    by_slot = replace(
        draws, temperature=draws.temperature[place], top_k=draws.top_k[place], top_p=draws.top_p[place],
        seeds=draws.seeds[place],
    )  # fmt: skip
    assert torch.equal(sample(logits, by_slot, slots.int(), newest), tokens)
    assert torch.equal(newest[slots], tokens)
    if any(temperature):  # the plain computation draws the same, but where two candidates are equal to the last bit
        assert (draw(logits, draws) == tokens).float().mean() > 0.98
    return tokens


def _ints(values: object) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.int32, device=DEVICE)
