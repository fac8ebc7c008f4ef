"""Draws: their numbers against the published ones, their shares against the softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.executor.drafts import accepted, propose
from dispatchgym.serving.executor.sampling import Draws, draw, philox, uniform
from dispatchgym.serving.executor.sampling_params import Sampling

CHI_SQUARE_999 = {2: 13.82, 5: 20.52}
"""Value that chi-square exceeds once in a thousand times, by degrees of freedom (any table)."""


def draws(rows: int, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Draws:
    """Row k draws at position k of the text with seed 42."""
    return Draws(
        torch.full((rows,), temperature), torch.full((rows,), top_k, dtype=torch.int32), torch.full((rows,), top_p),
        torch.full((rows,), 42), torch.arange(rows, dtype=torch.int32), greedy=False,
        filtered=top_k > 0 or top_p < 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers of the authors' own library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_philox_gives_the_published_numbers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([[x]]) for x in counter)
    found = philox((c0, c1, c2, c3), (torch.tensor([[key[0]]]), torch.tensor([[key[1]]])))
    assert tuple(int(word) for word in found) == words


def test_numbers_of_neighbours_do_not_hang_together() -> None:
    """Over tokens, over positions and over seeds: even, and uncorrelated."""
    seeds = torch.arange(20).repeat_interleave(20)
    found = uniform(seeds, torch.arange(20, dtype=torch.int32).repeat(20), 5000).double()
    assert ((found > 0) & (found < 1)).all()
    assert abs(float(found.mean()) - 0.5) < 5 * (1 / 12 / found.numel()) ** 0.5
    cube = found.view(20, 20, 5000) - 0.5
    for a, b in ((cube[1:], cube[:-1]), (cube[:, 1:], cube[:, :-1]), (cube[..., 1024:], cube[..., :-1024])):
        assert abs(float((a * b).mean())) * 12 < 5 / a.numel() ** 0.5


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "allowed"),
    [(1.0, 0, 1.0, 6), (0.5, 0, 1.0, 6), (1.0, 3, 1.0, 3), (1.0, 0, 0.7, 3)],
)
def test_draws_have_the_shares_of_the_softmax(temperature: float, top_k: int, top_p: float, allowed: int) -> None:
    logits = torch.tensor([0.1, 2.0, -0.5, 1.4, 1.1, -1.0])
    kept = logits.sort(descending=True).values[allowed - 1]
    shares = torch.where(logits >= kept, logits / temperature, -torch.inf).softmax(0).double()
    if top_p < 1:  # one fewer would not do
        whole = (logits / temperature).softmax(0)
        assert whole[logits >= kept].sum() >= top_p > whole[logits > kept].sum()
    rows = 20000
    found = draw(logits.expand(rows, 6), draws(rows, temperature, top_k, top_p))
    counts = torch.bincount(found, minlength=6).numpy()
    there = shares.numpy() > 0
    assert counts[~there].sum() == 0
    expected = (shares.numpy() * rows)[there]
    assert ((counts[there] - expected) ** 2 / expected).sum() < CHI_SQUARE_999[allowed - 1]


def test_no_temperature_takes_the_likeliest_beside_others_that_draw() -> None:
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    some = draws(4, 5.0)
    some.temperature[:2] = 0.0
    found = draw(logits, some)
    assert found[:2].tolist() == logits[:2].argmax(-1).tolist()
    assert found[2:].tolist() != logits[2:].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"max_new": 0}, "max_new 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
        ({"stop": (-4,)}, r"stop \(-4,\)"),
        ({"logprobs": 21}, "logprobs 21"),
    ],
)
def test_impossible_sampling_is_refused(wrong: dict[str, float], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Sampling(**{"max_new": 1, **wrong})  # type: ignore[arg-type]


def test_drafts_go_on_as_the_text_did_before() -> None:
    def ids(*numbers: int) -> np.ndarray:
        return np.array(numbers, np.int32)

    text = ids(1, 2, 3, 9, 2, 3, 4, 5, 2, 3)
    assert propose(text, ids(), 2).tolist() == [4, 5]
    assert propose(text, ids(), 6).tolist() == [4, 5, 2, 3, 4, 5]
    assert propose(text, ids(9, 2, 3, 4), 2).tolist() == [9, 2]
    assert propose(text, ids(9, 2), 4).tolist() == [9, 2, 3, 4]
    assert propose(ids(7), ids(), 3).tolist() == [7, 7, 7]
    assert accepted(ids(4, 5, 6), ids(4, 5)) == 3
    assert accepted(ids(4, 5, 6), ids(4, 7)) == 2
    assert accepted(ids(4, 5, 6), ids(8, 5)) == 1
    assert accepted(ids(4), ids()) == 1
