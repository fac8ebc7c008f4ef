"""A decoder under the Triton operations against the same decoder in plain torch, on mixed steps."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from dispatchgym.serving.executor.inputs import HostStep, StepInputs, pack, unpack
from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.ops import TorchOps
from dispatchgym.serving.executor.shapes import shape
from dispatchgym.serving.executor.weights import random_weights

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPE, BOUND = (torch.float32, 1e-5) if INTERPRETED else (torch.bfloat16, 3e-2)
SLOTS, BLOCKS, PAGE = 5, 40, 16


@pytest.mark.parametrize("qk_norm", [True] if INTERPRETED else [False, True])
@torch.inference_mode()
def test_decoders_agree_step_by_step(qk_norm: bool) -> None:
    """Prompts in pieces, then decoding beside them; each decoder keeps its own cache."""
    from dispatchgym.serving.executor.triton_ops import TritonOps

    spec = replace(shape("tiny"), qk_norm=qk_norm)
    weights = random_weights(spec, DEVICE, DTYPE)
    weights = replace(weights, embedding=weights.embedding * 50)
    rng = np.random.default_rng(0)
    table = torch.tensor(rng.permutation(BLOCKS).reshape(SLOTS, -1), dtype=torch.int32, device=DEVICE)
    newest = torch.tensor(rng.integers(0, 512, SLOTS), dtype=torch.int32, device=DEVICE)
    plain, fast = (
        Decoder(
            spec,
            weights,
            torch.zeros(spec.layers, 2, BLOCKS, PAGE, spec.kv_heads, spec.head_dim, dtype=DTYPE, device=DEVICE),
            ops,
        )
        for ops in (TorchOps(), TritonOps())
    )
    held = np.zeros(SLOTS, np.int32)
    for sizes in (
        {0: 33, 1: 5},
        {0: 1, 2: 40},
        {0: 1, 1: 1, 2: 1, 3: 7},
        {3: 1, 0: 4, 2: 20},
        {0: 1, 1: 1, 2: 1, 3: 1},
    ):
        rows = sorted(sizes, key=lambda slot: sizes[slot] != 1)
        tokens = np.array([sizes[r] for r in rows], np.int32)
        ids = rng.integers(0, 512, tokens.sum()).astype(np.int32)
        singles = int((tokens == 1).sum())
        ids[:singles] = np.where(rng.random(singles) < 0.5, -1, ids[:singles])
        step = _step(HostStep(ids, np.array(rows, np.int32), held[rows], tokens, _last(tokens), singles), table)
        reference, out = plain.forward(step, newest), fast.forward(step, newest)
        assert float((out - reference).float().norm() / reference.float().norm()) < BOUND
        held[rows] += tokens


def _last(tokens: np.ndarray) -> np.ndarray:
    return (np.cumsum(tokens) - 1).astype(np.int32)


def _step(host: HostStep, table: torch.Tensor) -> StepInputs:
    return unpack(torch.from_numpy(pack(host)).to(DEVICE), table, host)
