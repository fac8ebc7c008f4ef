"""How the next token is picked: the likeliest, or a draw that depends on the request's seed and the position alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

NOISE_BLOCK = 4096
"""Tokens of the vocabulary whose noise comes from one run of counters; four of them share a counter."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How the rows of logits of a step are drawn from; tensors on the device.

    Attributes:
        temperature, top_p: float32, shape (rows,).
        top_k: int32, shape (rows,).
        seeds: int64, shape (rows,).
        positions: int32, shape (rows,): of the token whose logits they are.
        greedy: no row has a temperature above 0.
        filtered: some row has a top_k or a top_p.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    greedy: bool
    filtered: bool


def draw(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """The next token of each row, int64 (rows,), from logits (rows, vocabulary).

    The largest of logits / temperature plus Gumbel noise is a draw from the softmax. Tokens as likely as the last one
    that top_k or top_p lets in come in too.
    """
    wide = logits.float()
    likeliest = wide.argmax(-1)
    if draws.greedy:
        return likeliest
    warm = draws.temperature > 0
    scaled = wide / torch.where(warm, draws.temperature, 1.0)[:, None]
    if draws.filtered:
        scaled = scaled.masked_fill(scaled < _threshold(scaled, draws.top_k, draws.top_p), -torch.inf)
    noise = -torch.log(-torch.log(uniform(draws.seeds, draws.positions, logits.shape[1])))
    return torch.where(warm, (scaled + noise).argmax(-1), likeliest)


def _threshold(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Least value that is let in, shape (rows, 1): by top_k, then by top_p among what that keeps."""
    rows, vocabulary = scaled.shape
    falling = scaled.sort(-1, descending=True).values
    k = torch.where((top_k > 0) & (top_k < vocabulary), top_k, vocabulary).long()
    least = falling.gather(1, k[:, None] - 1)
    mass = falling.masked_fill(falling < least, -torch.inf).softmax(-1).double().cumsum(-1)
    before = torch.cat([mass.new_zeros(rows, 1), mass[:, :-1]], 1)
    kept = (before < top_p[:, None]).sum(-1).clamp(1, vocabulary)
    return torch.where(top_p[:, None] < 1, torch.maximum(least, falling.gather(1, kept[:, None] - 1)), least)


def uniform(seeds: torch.Tensor, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """A number inside (0, 1) for each row and token, float32 (rows, vocabulary).

    The key is the row's seed; the counter is made of the token and the position.
    """
    token = torch.arange(vocabulary, device=seeds.device)
    quarter = NOISE_BLOCK // 4
    counter = token // NOISE_BLOCK * quarter + token % quarter
    lanes = token % NOISE_BLOCK // quarter
    shape = (len(seeds), int(counter.max()) + 1)
    low = 0xFFFFFFFF
    zero = torch.zeros(shape, dtype=torch.int64, device=seeds.device)
    every = torch.arange(shape[1], device=seeds.device)
    count = (every.expand(shape), (positions.long() & low)[:, None].expand(shape), zero, zero)
    words = philox(count, ((seeds & low)[:, None], ((seeds >> 32) & low)[:, None]))
    chosen = torch.stack(words)[lanes, :, counter].T
    return ((chosen >> 9).float() + 0.5) * (1.0 / 8388608.0)  # below 1, whose noise beats all


def philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random 32-bit words for each counter of four under a key of two, all kept in int64: 4x32, 10 rounds.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high2, low2 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _product(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of the product of 32-bit numbers that are kept in int64."""
    low_part = (a & 0xFFFF) * b
    high_part = (a >> 16) * b + (low_part >> 16)
    return high_part >> 16, ((high_part & 0xFFFF) << 16) | (low_part & 0xFFFF)
