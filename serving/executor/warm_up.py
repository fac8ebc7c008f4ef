"""Runs what steps are made of once, so that the first requests wait neither for compilers nor for allocations."""

from __future__ import annotations

import numpy as np
import torch

from dispatchgym.serving.executor.inputs import HostStep, pack, unpack
from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.sampling import Draws
from dispatchgym.serving.executor.slots import SlotTable


@torch.inference_mode()
def warm_up(decoder: Decoder, slots: SlotTable, most_tokens: int) -> None:
    """Read prompts of many lengths up to `most_tokens` in the slot for padding, and draw in every way.

    Libraries multiply matrices of each kind of shape with another kernel, and load that when it is first wanted.
    """
    device = slots.table.device
    one = np.zeros(1, np.int32)
    for tokens in lengths(most_tokens):
        ids = np.zeros(tokens, np.int32)
        host = HostStep(ids, one + slots.padding, one, one + tokens, one + tokens - 1, singles=0)
        step = unpack(torch.from_numpy(pack(host)).to(device), slots.table, host)
        logits = decoder.forward(step, slots.newest)
    floats, ints = torch.ones(1, device=device), torch.ones(1, dtype=torch.int32, device=device)
    for greedy, filtered in ((True, False), (False, False), (False, True)):
        decoder.ops.sample(logits, Draws(floats, ints, floats, ints.long(), ints, greedy, filtered))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lengths(most: int) -> list[int]:
    """From 2 to `most`, each a tenth more than the one before."""
    found = [2]
    while found[-1] < most:
        found.append(min(most, found[-1] + max(1, found[-1] // 10)))
    return found
