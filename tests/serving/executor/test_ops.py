"""Plain torch's attention over pages, held against a loop over single queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dispatchgym.serving.executor.inputs import HostStep, pack, unpack
from dispatchgym.serving.executor.ops import SHORT, TILE, TorchOps

PAGE, KV_HEADS, GROUP, DIM = 16, 2, 3, 8


@pytest.mark.parametrize(
    ("start", "tokens"),
    [
        ([0, 15, 16, 130], [1, 1, 1, 1]),
        ([*range(SHORT - 45, 0, -9), 3, SHORT + 60, 20], [1] * 54 + [3]),
        ([5, 0, 40, 3], [1, 2, TILE + 1, 2 * TILE]),
        ([7, 200], [TILE, 3 * TILE - 1]),
    ],
)
def test_each_token_attends_over_its_text_up_to_itself(start: list[int], tokens: list[int]) -> None:
    torch.manual_seed(0)
    rows, total = len(start), sum(tokens)
    table = torch.randperm(rows * 36).view(rows, 36).to(torch.int32)
    slot = np.arange(rows, dtype=np.int32)[::-1].copy()
    k_cache, v_cache = torch.full((2, rows * 36, PAGE, KV_HEADS, DIM), torch.nan)  # what nobody wrote nobody may read
    q = torch.randn(total, KV_HEADS * GROUP, DIM)
    texts = []
    for s, first, n in zip(slot, start, tokens, strict=True):
        k, v = torch.randn(2, first + n, KV_HEADS, DIM)
        at = torch.arange(first + n)
        blocks = table[int(s)].long()[at // PAGE]
        k_cache[blocks, at % PAGE], v_cache[blocks, at % PAGE] = k, v
        texts += [(k[: first + i + 1], v[: first + i + 1]) for i in range(n)]
    host = HostStep(
        np.zeros(total, np.int32), slot, np.array(start, np.int32), np.array(tokens, np.int32), np.zeros(0, np.int32),
        tokens.count(1),
    )  # fmt: skip
    step = unpack(torch.from_numpy(pack(host)), table, host)
    found = TorchOps().attend(q, k_cache, v_cache, step).view(total, -1, DIM)
    for query, out, (k, v) in zip(q, found, texts, strict=True):
        k, v = k.repeat_interleave(GROUP, 1), v.repeat_interleave(GROUP, 1)
        p = (torch.einsum("hd,nhd->hn", query, k) * DIM**-0.5).softmax(-1)
        torch.testing.assert_close(out, torch.einsum("hn,nhd->hd", p, v))
