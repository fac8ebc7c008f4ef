"""One engine over several devices of a host: a leader that the engine talks to, and followers that do as it does.

Each process has a share of every layer; sums over the shares are the only thing that they exchange in a step. Orders go
from the leader to the others as whole numbers, over a group of their own on the CPU. A parallel engine does not pause
in the middle of a pass: the processes would have to agree on where.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.state import NONE
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.executor.torch_executor import Outputs, TorchExecutor

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

LEADER = 0
RUN, ADD, REMOVE, END = range(4)
PATIENCE = timedelta(days=365)
"""Followers wait for orders so long: an engine may have nothing to do for days."""


def orders_group() -> dist.ProcessGroup:
    """The group that orders go over; every process makes it once, at the same point."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group


class Leader:
    """An executor whose steps run in every process of the group; see `follow`."""

    def __init__(self, executor: TorchExecutor, orders: dist.ProcessGroup) -> None:
        self._executor = executor
        self._orders = orders

    def add(self, request: int, prompt: I32, sampling: Sampling) -> None:
        """See `TorchExecutor`."""
        self._executor.add(request, prompt, sampling)  # what it refuses, the others do not hear of
        self._tell(ADD, *_pack_sampling(sampling), np.array([request]), prompt)

    def remove(self, request: int) -> None:
        """See `TorchExecutor`."""
        self._tell(REMOVE, np.array([request]))
        self._executor.remove(request)

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        """Run the batch to its end."""
        self._tell(RUN, *_pack_batch(batch))
        return self._executor.run(batch, np.inf)

    def outputs(self, request: int) -> Outputs:
        """See `TorchExecutor`."""
        return self._executor.outputs(request)

    def is_settled(self, request: int) -> bool:
        """See `TorchExecutor`."""
        return self._executor.is_settled(request)

    def flush(self) -> None:
        """See `TorchExecutor`."""
        self._executor.flush()

    def close(self) -> None:
        """Let the followers end."""
        self._tell(END)

    def _tell(self, kind: int, *parts: npt.NDArray[Any]) -> None:
        sizes = [len(part) for part in parts]
        order = np.concatenate([np.array([kind, len(sizes), *sizes], np.int64), *parts], dtype=np.int64)
        dist.broadcast(torch.tensor([len(order)]), LEADER, group=self._orders)
        dist.broadcast(torch.from_numpy(order), LEADER, group=self._orders)


def follow(executor: TorchExecutor, orders: dist.ProcessGroup) -> None:
    """Do as the leader does, until it closes or is gone."""
    while True:
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, LEADER, group=orders)
        order = torch.zeros(int(size), dtype=torch.int64)
        dist.broadcast(order, LEADER, group=orders)
        kind, parts = _parts(order.numpy())
        if kind == END:
            return
        if kind == RUN:
            executor.run(_unpack_batch(parts), np.inf)
        elif kind == ADD:
            executor.add(int(parts[-2][0]), parts[-1].astype(np.int32), _unpack_sampling(parts))
        else:
            executor.remove(int(parts[0][0]))


def _parts(order: I64) -> tuple[int, list[I64]]:
    count = int(order[1])
    return int(order[0]), np.split(order[2 + count :], np.cumsum(order[2 : 2 + count])[:-1]) if count else []


def _pack_sampling(s: Sampling) -> tuple[I64, I64]:
    floats = np.array([s.temperature, s.top_p]).view(np.int64)
    whole = np.array([s.max_new, s.top_k, s.seed, s.ignore_eos, s.logprobs], np.int64)
    return np.concatenate([floats, whole]), np.array(s.stop, np.int64)


def _unpack_sampling(parts: list[I64]) -> Sampling:
    temperature, top_p = parts[0][:2].copy().view(np.float64).tolist()
    max_new, top_k, seed, ignore_eos, logprobs = parts[0][2:].tolist()
    return Sampling(max_new, temperature, top_k, top_p, seed, tuple(parts[1].tolist()), bool(ignore_eos), logprobs)


def _pack_batch(b: Batch) -> tuple[npt.NDArray[Any], ...]:
    """Of the block table, the rows that the batch has."""
    numbers = np.array([*b.table.shape, b.group, b.segments_done])
    return (
        b.request, b.start, b.tokens, b.decode, b.slot, b.admission, numbers, b.table[b.slot].ravel(),
        b.swap_out.ravel(), b.swap_in.ravel(),
    )  # fmt: skip


def _unpack_batch(parts: list[I64]) -> Batch:
    request, start, tokens, decode, slot, admission, numbers, used, swap_out, swap_in = parts
    rows, columns, group, done = numbers.tolist()
    assert group == NONE, "a parallel engine does not pause"
    table = np.zeros((rows, columns), np.int32)
    table[slot] = used.reshape(-1, columns)
    return Batch(
        request.astype(np.int32), start.astype(np.int32), tokens.astype(np.int32), decode.astype(np.int8),
        slot.astype(np.int32), admission, table, _moves(swap_out), _moves(swap_in), group, done,
    )  # fmt: skip


def _moves(numbers: I64) -> I32:
    return numbers.astype(np.int32).reshape(-1, 2)
