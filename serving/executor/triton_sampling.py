"""The next token of each row, as Triton kernels: the likeliest, or a draw that depends on seed and position alone.

A draw is the largest of logits / temperature plus Gumbel noise. The noise of a token comes from Philox, keyed by the
row's seed and counted by (token, position), so neither the batch's size nor a row's place in it changes what comes out.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dispatchgym.serving.executor.sampling import NOISE_BLOCK, Draws

SCAN = 8192


@triton.jit
def _ordered(bits):
    """Whole numbers in the order of the 16-bit floats that they are the bits of."""
    return tl.where(bits < 0, (~bits) ^ -32768, bits).to(tl.int32)


@triton.jit(do_not_specialize_on_alignment=["temperature", "top_k", "top_p", "slots"])
def _threshold_kernel(
    logits, bits, temperature, top_k, top_p, slots, thresholds,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, BY_SLOT: tl.constexpr,
):  # fmt: skip
    """Smallest logit that top-k and top-p let through: a binary search over the 65,536 values a logit can have."""
    row = tl.program_id(0).to(tl.int64)
    who = tl.load(slots + row) if BY_SLOT else row
    k = tl.load(top_k + who)
    p = tl.load(top_p + who)
    warm = tl.load(temperature + who)
    i = tl.arange(0, BLOCK)
    lowest = -32768
    threshold = lowest
    if (warm > 0.0) & ((k > 0) & (k < VOCAB)):
        low, high = lowest, 32767  # the largest value that at least k logits reach
        while low < high:
            middle = (low + high + 1) >> 1
            count = tl.zeros([BLOCK], tl.int32)
            for start in range(0, VOCAB, BLOCK):
                x = _ordered(tl.load(bits + row * VOCAB + start + i, mask=start + i < VOCAB, other=-1))
                count += ((x >= middle) & (start + i < VOCAB)).to(tl.int32)
            if tl.sum(count, 0) >= k:
                low = middle
            else:
                high = middle - 1
        threshold = low
    if (warm > 0.0) & (p < 1.0):
        highest = tl.full([BLOCK], -float("inf"), tl.float32)
        for start in range(0, VOCAB, BLOCK):
            x = tl.load(logits + row * VOCAB + start + i, mask=start + i < VOCAB, other=-float("inf"))
            highest = tl.maximum(highest, x.to(tl.float32))
        top = tl.max(highest, 0)
        low, high = threshold, 32767  # the largest value that holds at least p of the mass above the threshold
        whole = 0.0
        first = True
        while first | (low < high):
            middle = (low + high + 1) >> 1
            if first:
                middle = low
            mass = tl.zeros([BLOCK], tl.float32)
            for start in range(0, VOCAB, BLOCK):
                here = start + i < VOCAB
                x = _ordered(tl.load(bits + row * VOCAB + start + i, mask=here, other=-1))
                value = tl.load(logits + row * VOCAB + start + i, mask=here, other=-float("inf")).to(tl.float32)
                mass += tl.where((x >= middle) & here, tl.exp((value - top) / warm), 0.0)
            held = tl.sum(mass, 0)
            if first:
                whole = held
            elif held >= p * whole:
                low = middle
            else:
                high = middle - 1
            first = False
        threshold = low
    tl.store(thresholds + row, threshold)


@triton.jit(do_not_specialize_on_alignment=["temperature", "seeds", "positions", "slots"])
def _best_kernel(
    logits, bits, temperature, seeds, positions, slots, thresholds, best, best_at,
    VOCAB: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr, FILTER: tl.constexpr, BY_SLOT: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    who = tl.load(slots + row) if BY_SLOT else row
    warm = tl.load(temperature + who)
    QUARTER: tl.constexpr = BLOCK // 4
    i = tl.arange(0, QUARTER)
    if warm > 0.0:
        seed = tl.load(seeds + who)
        counter = (chunk * QUARTER + i).to(tl.uint32)
        zero = counter * 0
        position = zero + tl.load(positions + row).to(tl.uint32)
        n0, n1, n2, n3 = tl.philox(seed, counter, position, zero, zero)
        top, at = -float("inf"), 0
        for quarter in tl.static_range(4):
            token = chunk * BLOCK + quarter * QUARTER + i
            here = token < VOCAB
            if quarter == 0:
                noise = n0
            elif quarter == 1:
                noise = n1
            elif quarter == 2:
                noise = n2
            else:
                noise = n3
            uniform = ((noise >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)  # below 1, whose noise beats all
            value = tl.load(logits + row * VOCAB + token, mask=here, other=-float("inf")).to(tl.float32) / warm
            value = value - tl.log(-tl.log(uniform))
            if FILTER:
                x = _ordered(tl.load(bits + row * VOCAB + token, mask=here, other=-1))
                value = tl.where(x >= tl.load(thresholds + row), value, -float("inf"))
            value = tl.where(here, value, -float("inf"))
            best_here, best_place = tl.max(value, 0, return_indices=True)
            if best_here > top:
                top, at = best_here, chunk * BLOCK + quarter * QUARTER + best_place
        tl.store(best + row * CHUNKS + chunk, top)
        tl.store(best_at + row * CHUNKS + chunk, at)
    else:
        every = chunk * BLOCK + tl.arange(0, BLOCK)
        logit = tl.load(logits + row * VOCAB + every, mask=every < VOCAB, other=-float("inf")).to(tl.float32)
        likeliest, place = tl.max(logit, 0, return_indices=True)
        tl.store(best + row * CHUNKS + chunk, likeliest)
        tl.store(best_at + row * CHUNKS + chunk, chunk * BLOCK + place)


@triton.jit(do_not_specialize_on_alignment=["slots", "tokens"])
def _pick_kernel(
    best, best_at, slots, tokens, newest, CHUNKS: tl.constexpr, PAD: tl.constexpr, BY_SLOT: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, PAD)
    value = tl.load(best + row * CHUNKS + c, mask=c < CHUNKS, other=-float("inf"))
    at = tl.load(best_at + row * CHUNKS + c, mask=c < CHUNKS, other=2147483647)
    token = tl.min(tl.where(value == tl.max(value, 0), at, 2147483647), 0)
    tl.store(tokens + row, token)
    if BY_SLOT:
        tl.store(newest + tl.load(slots + row), token)


def sample(
    logits: torch.Tensor, draws: Draws, slots: torch.Tensor | None = None, newest: torch.Tensor | None = None
) -> torch.Tensor:
    """The next token of each row, int32 (rows,), as `sampling.draw` finds it; of equal logits the lowest wins.

    Args:
        logits: (rows, vocabulary) in 16 bits, dense.
        draws: of each row; with `slots`, but for the positions, of each slot.
        slots: int32 (rows,).
        newest: int32 (slots,): the token is left there too.
    """
    rows, vocab = logits.shape
    chunks = triton.cdiv(vocab, NOISE_BLOCK)
    best = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    best_at = torch.empty(rows, chunks, dtype=torch.int32, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.int32, device=logits.device)
    by_slot = slots is not None
    who, kept = (tokens, tokens) if slots is None or newest is None else (slots, newest)
    thresholds, bits = tokens, tokens
    if draws.filtered:
        bits = logits.view(torch.int16)
        thresholds = torch.empty(rows, dtype=torch.int32, device=logits.device)
        _threshold_kernel[(rows,)](
            logits, bits, draws.temperature, draws.top_k, draws.top_p, who, thresholds,
            VOCAB=vocab, BLOCK=SCAN, BY_SLOT=by_slot, num_warps=8,
        )  # fmt: skip
    _best_kernel[(rows, chunks)](
        logits, bits, draws.temperature, draws.seeds, draws.positions, who, thresholds, best, best_at,
        VOCAB=vocab, CHUNKS=chunks, BLOCK=NOISE_BLOCK, FILTER=draws.filtered, BY_SLOT=by_slot, num_warps=4,
    )  # fmt: skip
    _pick_kernel[(rows,)](
        best, best_at, who, tokens, kept,
        CHUNKS=chunks, PAD=triton.next_power_of_2(chunks), BY_SLOT=by_slot, num_warps=1,
    )  # fmt: skip
    return tokens
