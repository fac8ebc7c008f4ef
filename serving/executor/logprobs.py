"""Log-probabilities of what was chosen and of what was likeliest."""

from __future__ import annotations

import torch

Logprob = tuple[float, tuple[tuple[int, float], ...]]
"""Of the chosen token, and (id, log-probability) of the likeliest, these falling."""


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor, most: int) -> list[Logprob]:
    """For each row of logits (rows, vocabulary), whatever temperature the token was drawn at."""
    every = logits.float().log_softmax(-1)
    chosen = every.gather(1, tokens[:, None].long())[:, 0].tolist()
    top = every.topk(min(most, every.shape[1]), -1)
    return [
        (float(own), tuple(zip(ids, values, strict=True)))
        for own, ids, values in zip(chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    ]
