"""Captured passes against the same passes op by op. Interpreted, a recording is what would be recorded, run again."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from dispatchgym.serving.executor import pass_graphs
from dispatchgym.serving.executor.inputs import HostStep, pack, unpack
from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.ops import TorchOps
from dispatchgym.serving.executor.pass_graphs import PassGraphs, launched_tokens, pass_sizes
from dispatchgym.serving.executor.recording import recorder
from dispatchgym.serving.executor.shapes import shape
from dispatchgym.serving.executor.slots import SlotTable
from dispatchgym.serving.executor.weights import random_weights

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPE, BOUND = (torch.float32, 1e-5) if INTERPRETED else (torch.bfloat16, 3e-2)
SEQS, BLOCKS, PAGE = 36, 144, 16
MOST_PIECES = 32
STEPS = [
    {0: 33, 1: 5},
    {0: 1, 2: 40},
    {0: 1, 1: 1, 2: 1, 3: 7},
    {3: 1, 0: 4, 2: 20},
    {**dict.fromkeys(range(4, 36), 1), 3: 2},
    {**dict.fromkeys(range(35), 1), 35: 9},
    {35: 1, 34: 1},
    dict.fromkeys(range(30), 2),
    dict.fromkeys(range(MOST_PIECES + 1), 2),
]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")  # rows of padding begin as what was there
@torch.inference_mode()
def test_captured_passes_are_those_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts alone, beside a few decoding rows and many; one with too many pieces is left to the caller."""
    from dispatchgym.serving.executor.triton_ops import TritonOps

    monkeypatch.setattr(pass_graphs, "PIECES", MOST_PIECES)
    spec = shape("tiny")
    weights = random_weights(spec, DEVICE, DTYPE)
    weights = replace(weights, embedding=weights.embedding * 50)
    rng = np.random.default_rng(0)
    slots = SlotTable(SEQS, BLOCKS // SEQS, BLOCKS, DEVICE)
    slots.table[:SEQS] = torch.tensor(rng.permutation(BLOCKS).reshape(SEQS, -1), dtype=torch.int32)
    slots.newest[:SEQS] = torch.tensor(rng.integers(0, 512, SEQS), dtype=torch.int32)
    caches = [
        torch.zeros(spec.layers, 2, BLOCKS + 1, PAGE, spec.kv_heads, spec.head_dim, dtype=DTYPE, device=DEVICE)
        for _ in range(2)
    ]
    plain, fast = (
        Decoder(spec, weights, cache, ops) for cache, ops in zip(caches, (TorchOps(), TritonOps()), strict=True)
    )
    passes = PassGraphs(fast, slots, pass_sizes(64 if INTERPRETED else 2048))
    recorded = []

    def again(body):
        body()
        recorded.append(body)
        return body

    passes.capture(again if INTERPRETED else recorder(DEVICE))
    assert not INTERPRETED or len(recorded) == 5  # (64, 36), (64, 32), (64, 0), (32, 32), (32, 0)
    held = np.zeros(SEQS, np.int32)
    for sizes in STEPS:
        rows = sorted(sizes, key=lambda slot: sizes[slot] != 1)
        tokens = np.array([sizes[r] for r in rows], np.int32)
        ids = rng.integers(0, 512, tokens.sum()).astype(np.int32)
        singles = int((tokens == 1).sum())
        ids[:singles] = np.where(rng.random(singles) < 0.5, -1, ids[:singles])
        last = (np.cumsum(tokens) - 1).astype(np.int32)
        host = HostStep(ids, np.array(rows, np.int32), held[rows], tokens, last, singles)
        step = unpack(torch.from_numpy(pack(host)).to(DEVICE), slots.table, host)
        found = passes.run(host)
        if len(rows) - singles > MOST_PIECES:
            assert found is None
            continue
        assert found is not None
        reference, out = plain.forward(step, slots.newest), fast.finish(found, step)
        assert float((out - reference).float().norm() / reference.float().norm()) < BOUND
        away = (caches[0] - caches[1])[:, :, :BLOCKS].float()  # the last block is for padding
        assert float(away.norm() / caches[0].float().norm()) < BOUND
        held[rows] += tokens


def test_sizes_rise_to_what_a_step_may_run() -> None:
    assert pass_sizes(512)[-1] == 512
    assert pass_sizes(500)[-1] == 384
    assert pass_sizes(8192)[-1] == 4096
    assert list(pass_sizes(8192)) == sorted(set(pass_sizes(8192)))


def test_large_models_have_fewer_passes_captured() -> None:
    assert 768 <= launched_tokens(shape("8b")) < 896
    assert 2048 < launched_tokens(shape("1b")) < 3072
