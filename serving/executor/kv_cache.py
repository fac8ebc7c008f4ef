"""The paged cache of keys and values, and its overflow on the host."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.executor.spec import ModelSpec

I32 = npt.NDArray[np.int32]
GIB = 2**30
CPU_CACHE_BYTES = GIB
"""Bound on a cache in main memory whose size nobody has named."""


def blocks_that_fit(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, block_tokens: int, *, gpu_memory_fraction: float,
    reserved_bytes: int,
) -> int:  # fmt: skip
    """KV blocks for the memory that is free now, weights loaded, with `reserved_bytes` left for the steps' own needs.

    Raises:
        UsageError: not even one block fits.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        room = free - int(total * (1 - gpu_memory_fraction)) - reserved_bytes
    else:
        room = min(CPU_CACHE_BYTES, _free_memory() // 2)
    blocks = room // (spec.kv_bytes_per_token(dtype) * block_tokens)
    if blocks < 1:
        raise UsageError(
            f"executor: {max(0, room) / GIB:.2f} GiB are left for the KV cache, less than a block: raise "
            f"gpu_memory_fraction (now {gpu_memory_fraction}), or lower token_budget"
        )
    return int(blocks)


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return CPU_CACHE_BYTES


class KVCache:
    """Device memory for keys and values, allocated once.

    Attributes:
        tensor: (layers, 2, kv_blocks + 1, block_tokens, kv_heads, head_dim); the last block is for rows that only
            fill up a batch.

    Raises:
        UsageError: the blocks do not fit; the message names the ways out.
    """

    def __init__(
        self, spec: ModelSpec, kv_blocks: int, block_tokens: int, host_blocks: int, device: torch.device,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        block = (spec.layers, 2, block_tokens, spec.kv_heads, spec.head_dim)
        size = spec.kv_bytes_per_token(dtype) * block_tokens
        try:
            self.tensor = torch.zeros((*block[:2], kv_blocks + 1, *block[2:]), dtype=dtype, device=device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise UsageError(
                f"executor: {kv_blocks} KV blocks of {block_tokens} tokens ({kv_blocks * size / GIB:.2f} GiB) do not "
                f"fit on {device}: lower kv_blocks, or gpu_memory_fraction where that sets them"
            ) from error
        pinned = device.type == "cuda"
        try:
            self.host = torch.empty((host_blocks, *block), dtype=dtype, pin_memory=pinned)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise UsageError(
                f"executor: {host_blocks} blocks on the host ({host_blocks * size / GIB:.2f} GiB) cannot be had: "
                "lower host_blocks"
            ) from error
        self._free = list(range(host_blocks))[::-1]
        self._held: dict[int, list[int]] = {}

    @property
    def host_held(self) -> dict[int, int]:
        """Blocks on the host of each request that has some."""
        return {request: len(places) for request, places in self._held.items()}

    def swap_out(self, moves: I32) -> None:
        """Copy blocks to the host; (n, 2): request, block."""
        places = []
        for request in dict.fromkeys(moves[:, 0].tolist()):
            self.drop(request)
            count = int((moves[:, 0] == request).sum())
            assert count <= len(self._free), f"{count} blocks for the host, which has {len(self._free)} free"
            self._held[request] = [self._free.pop() for _ in range(count)]
            places += self._held[request]
        blocks = torch.from_numpy(moves[:, 1].astype(np.int64)).to(self.tensor.device)
        content = self.tensor[:, :, blocks].movedim(2, 0).contiguous()
        for k, place in enumerate(places):
            self.host[place].copy_(content[k], non_blocking=True)

    def swap_in(self, request: int, blocks: I32) -> None:
        """Copy a request's blocks back, into these."""
        places = self._held.pop(request)
        content = self.tensor.new_empty((len(places), *self.host.shape[1:]))
        for k, place in enumerate(places):
            content[k].copy_(self.host[place], non_blocking=True)
        self.tensor[:, :, torch.from_numpy(blocks.astype(np.int64)).to(self.tensor.device)] = content.movedim(0, 2)
        self._free += places

    def drop(self, request: int) -> None:
        """Forget what the host holds of a request."""
        self._free += self._held.pop(request, [])
