"""Models by name: a Hugging Face directory, or random weights of a known size where any text will do."""

from __future__ import annotations

from pathlib import Path

import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.executor.shapes import shape
from dispatchgym.serving.executor.shares import Share
from dispatchgym.serving.executor.spec import read_spec
from dispatchgym.serving.executor.weights import WHOLE, Model, load_weights, random_weights

RANDOM = "random:"


def open_model(name: str, device: str = "auto", dtype: torch.dtype | None = None, share: Share = WHOLE) -> Model:
    """The model of a directory, or `random:SIZE`, built where it runs without a file.

    Args:
        device: cuda, cpu, or auto for a GPU where there is one.
        dtype: None for bfloat16 on a GPU and float32 on the CPU.
        share: of several processes in a group of torch.distributed, which each open theirs.

    Raises:
        UnknownNameError: no such size. UsageError: no such device. UsageError, InvalidInstanceError: as `read_spec`
            and `load_weights`.
    """
    where = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if where.partition(":")[0] not in ("cuda", "cpu"):
        raise UsageError(f"device {device!r} is not known; write cuda, cpu or auto")
    there = torch.device(where)
    if there.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: torch finds no GPU here; write cpu, or install torch for your CUDA")
    kind = dtype or (torch.bfloat16 if there.type == "cuda" else torch.float32)
    if name.startswith(RANDOM):
        spec = shape(name.removeprefix(RANDOM))
        weights = random_weights(spec, there, kind, share=share)
    else:
        spec = read_spec(Path(name))
        weights = load_weights(Path(name), spec, there, kind, share)
    add_up = torch.distributed.all_reduce if share.world > 1 else None
    return Model(share.of_spec(spec), weights, there, kind, add_up)
