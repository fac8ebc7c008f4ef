"""Forward passes with prompts as CUDA graphs: embedding and all layers, by number of tokens and of decoding rows.

Op by op, a pass costs the host hundreds of launches, whatever it reads; captured, one. Tokens are filled up to the size
of a graph, with tokens of the slot for padding. Logits and draws are left to the caller.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.serving.executor.inputs import Cut, HostStep, StepInputs, pack
from dispatchgym.serving.executor.model import Decoder, Hidden
from dispatchgym.serving.executor.recording import Body, Record
from dispatchgym.serving.executor.slots import SlotTable
from dispatchgym.serving.executor.spec import ModelSpec
from dispatchgym.serving.executor.tiles import tile_tokens, tiles_of

I32 = npt.NDArray[np.int32]

PIECES = 128
"""Most prompt pieces of a captured pass."""

WIDTHS = (0, 32, 128)
"""Decoding rows of the graphs, beside as many as can be: few rows are read with more programs each."""

LAUNCH_S, FLOP_S = 3e-4, 6.5e14
"""What the host needs to launch a segment op by op, and operations that matrix products get done in a second: both
roughly, of an H200 and its host, in traffic."""


def pass_sizes(most: int) -> tuple[int, ...]:
    """Tokens of the graphs for up to `most`: matrix products run in tiles of 128 rows, where there are many."""
    sizes = (*range(32, 385, 32), *range(512, 2049, 128), *range(2304, 4097, 256))
    return tuple(size for size in sizes if size <= most)


def launched_tokens(spec: ModelSpec) -> int:
    """Tokens up to which the host takes longer to launch a pass than the device to run it: what is worth filling up."""
    return int(spec.segments * LAUNCH_S * FLOP_S / (2 * spec.parameters))


def _widths(most: int) -> tuple[int, ...]:
    return (*(width for width in WIDTHS if width < most), most)


class PassGraphs:
    """Captured passes of a decoder.

    Args:
        decoder: whose layers; its ops read `StepInputs.cut`.
        slots: what the device knows of each.
        sizes: tokens of the graphs, rising; see `pass_sizes`.
    """

    def __init__(self, decoder: Decoder, slots: SlotTable, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        rows = -(-slots.padding // 4) * 4
        self._widths = {size: _widths(min(size, rows)) for size in sizes}
        self._decoder = decoder
        self._slots = slots
        spec, device = decoder.spec, slots.table.device
        self._group = spec.heads // spec.kv_heads
        largest = sizes[-1], self._widths[sizes[-1]][-1]
        self._packed = torch.zeros(self._layout(*largest)[-1], dtype=torch.int32, device=device)
        dtype = decoder.weights.embedding.dtype
        self._out = torch.zeros(2, sizes[-1], spec.hidden, dtype=dtype, device=device)
        self._passes: dict[tuple[int, int], Body] = {}

    def capture(self, record: Record) -> None:
        """Record every graph, the largest first."""
        nobody = np.zeros(0, np.int32)
        for size in reversed(self.sizes):
            for width in self._widths[size]:
                self._send(HostStep(nobody, nobody, nobody, nobody, nobody, 0), size, width)
                self._passes[size, width] = record(partial(self._body, size, width))

    @torch.inference_mode()
    def run(self, host: HostStep) -> Hidden | None:
        """Run a step up to its last layer; None if none of the graphs holds it."""
        at = bisect_left(self.sizes, len(host.ids))
        if at == len(self.sizes) or len(host.slot) - host.singles > PIECES:
            return None
        size = self.sizes[at]
        width = self._widths[size][bisect_left(self._widths[size], host.singles)]
        self._send(host, size, width)
        self._passes[size, width]()
        x, residual = self._out[:, : len(host.ids)]
        return Hidden(x, residual)

    def _layout(self, size: int, width: int) -> tuple[int, ...]:
        """Where ids, positions, slots, slots and positions of decoding rows and tiles end."""
        tiles = size // tile_tokens(size, self._group) + min(PIECES, size // 2)
        ends: npt.NDArray[np.int64] = np.cumsum([size, size, size, width, width, 4 * tiles])
        return tuple(ends.tolist())

    def _send(self, host: HostStep, size: int, width: int) -> None:
        tokens, n = len(host.ids), host.singles
        places = np.zeros(self._layout(size, width)[-1], np.int32)
        ids, positions, slots, row_slots, row_positions, tiles = np.split(places, self._layout(size, width)[:-1])
        slots[:] = row_slots[:] = self._slots.padding
        ids[:tokens], positions[:tokens], slots[:tokens] = np.split(pack(host)[: 3 * tokens], 3)
        row_slots[:n], row_positions[:n] = host.slot[:n], host.start[:n]
        if len(host.slot) > n:
            most = tile_tokens(size, self._group)
            cut = tiles_of(host.slot[n:], host.first[n:-1], host.tokens[n:], host.start[n:], most).ravel()
            tiles[: len(cut)] = cut
        sent = torch.from_numpy(places)
        if self._packed.is_cuda:
            sent = sent.pin_memory()
        self._packed[: len(places)].copy_(sent, non_blocking=True)

    def _body(self, size: int, width: int) -> None:
        ends = self._layout(size, width)
        parts = torch.tensor_split(self._packed[: ends[-1]], ends[:-1])
        ids, positions, slots, row_slots, row_positions, tiles = parts
        cut = Cut(row_slots, row_positions, tiles.view(-1, 4), tile_tokens(size, self._group))
        nobody = np.zeros(0, np.int32)
        host = HostStep(nobody, nobody, nobody, nobody, nobody, width)
        step = StepInputs(ids, positions, slots, ids[:0], self._slots.table, host, cut)
        hidden = self._decoder.begin(step, self._slots.newest)
        for index in range(self._decoder.spec.segments):
            self._decoder.run_segment(index, hidden, step)
        assert hidden.residual is not None
        self._out[0, :size] = hidden.x
        self._out[1, :size] = hidden.residual
