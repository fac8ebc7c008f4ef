"""Copies to and from a device that nobody waits for, and the clock of a pass that may have to pause."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch

I32 = npt.NDArray[np.int32]


def to_device(packed: I32, device: torch.device) -> torch.Tensor:
    """A copy on the device; from pinned memory, without waiting, where that is a GPU."""
    tensor = torch.from_numpy(packed)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class HostCopy:
    """A tensor of token ids on its way to the host."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if tokens.device.type == "cuda":
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        else:
            self._tokens = tokens

    def is_here(self) -> bool:
        """They have come."""
        return self._copied is None or bool(self._copied.query())  # type: ignore[no-untyped-call]

    def wait(self) -> I32:
        """The ids, once they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tokens.numpy().astype(np.int32)


class Pace:
    """The clock beside a pass whose segments are launched one by one: a GPU is let get ahead by one segment."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._before: torch.cuda.Event | None = None

    def now_s(self) -> float:
        """Seconds on `time.perf_counter`, once the segment before the last one launched is done."""
        if self._on_gpu:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            if self._before is not None:
                self._before.synchronize()
            self._before = event
        return time.perf_counter()
