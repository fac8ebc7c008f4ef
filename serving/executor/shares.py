"""A model's share on one of several devices: some of the heads and of the MLP's width of every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.executor.spec import ModelSpec

Source = Callable[[str, tuple[int, ...]], torch.Tensor | None]
"""Tensor of a name and shape, None where there is none."""

_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # divided by what comes out
_COLUMNS = ("o_proj", "down_proj")  # divided by what goes in: the sum of all shares is the whole; one adds the bias


class Share(NamedTuple):
    """Share `rank` of `world`."""

    rank: int
    world: int

    def of_spec(self, spec: ModelSpec) -> ModelSpec:
        """The sizes of this share.

        Raises:
            UsageError: the heads or the MLP cannot be divided so.
        """
        for name in ("heads", "kv_heads", "mlp"):
            if getattr(spec, name) % self.world:
                raise UsageError(
                    f"model {spec.name}: {name} {getattr(spec, name)} cannot be divided among {self.world} devices"
                )
        biases = tuple(name for name in spec.biases if self.rank == 0 or name not in _COLUMNS)
        return replace(
            spec, heads=spec.heads // self.world, kv_heads=spec.kv_heads // self.world, mlp=spec.mlp // self.world,
            biases=biases,
        )  # fmt: skip

    def of_source(self, whole: Source) -> Source:
        """What gives this share's tensors, asked for by the sizes of the share."""

        def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
            *_, layer, kind = name.split(".")
            if layer not in _ROWS + _COLUMNS or (layer in _COLUMNS and kind == "bias"):
                return whole(name, shape)
            dim = 0 if layer in _ROWS else 1
            wanted = tuple(n * self.world if d == dim else n for d, n in enumerate(shape))
            found = whole(name, wanted)
            return None if found is None else found.chunk(self.world, dim)[self.rank].clone()

        return tensor
