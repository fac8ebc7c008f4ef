"""Whole decoding steps as CUDA graphs: table changes, embedding, layers, logits, draw, and the drawn tokens' way back.

A step costs the host one copy to the device, one launch and one copy back, whatever the model's depth. Results are
read when the caller asks for them, so that the host can plan a step while the one before runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.serving.executor import triton_layers, triton_sampling
from dispatchgym.serving.executor.decode_rows import (
    CHANGED_SLOT,
    COLUMNS,
    POSITION,
    SLOT,
    TOKEN,
)
from dispatchgym.serving.executor.inputs import HostStep, StepInputs
from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.sampling import Draws
from dispatchgym.serving.executor.slots import SlotTable

I32 = npt.NDArray[np.int32]

IN_FLIGHT = 3
"""Steps whose pinned buffers exist: one that runs, one that waits, one that is read."""


def graph_sizes(most: int) -> tuple[int, ...]:
    """Rows of the graphs for up to `most` requests: close together where steps are short."""
    sizes = (1, 2, 4, 8, *range(16, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), *range(1152, 8193, 128))
    return (*(size for size in sizes if size < most), most)


class GraphFlight:
    """A step's own pinned buffers: the rows that the device is sent, the tokens that it sends back."""

    def __init__(self, pitch: int) -> None:
        self.packed = torch.zeros(COLUMNS * pitch, dtype=torch.int32, pin_memory=True)
        self.sampled = torch.zeros(pitch, dtype=torch.int32, pin_memory=True)
        self.rows: I32 = self.packed.numpy()
        self.tokens: I32 = self.sampled.numpy()
        self.done = torch.cuda.Event()

    def wait(self) -> None:
        """Until the tokens are here."""
        self.done.synchronize()


class StepGraphs:
    """Graphs of one decoding step each, by number of rows, in one memory pool.

    Args:
        decoder: whose steps.
        slots: what the device knows of each.
        most: requests that decode at once.
        sizes: rows of the graphs, rising to `most`; None for `graph_sizes`.
    """

    def __init__(self, decoder: Decoder, slots: SlotTable, most: int, sizes: Sequence[int] | None = None) -> None:
        self.sizes = tuple(sizes or graph_sizes(most))
        self._decoder = decoder
        self._slots = slots
        device = slots.table.device
        pitch = _pitch(self.sizes[-1])
        self._packed = torch.zeros(COLUMNS * pitch, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(pitch, dtype=torch.int32, device=device)
        self._ring = [GraphFlight(pitch) for _ in range(IN_FLIGHT)]
        self._turn = 0
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self, advance: Callable[[], None] = lambda: None) -> None:
        """Record every graph, the largest first; `advance` is called after each."""
        pool = None
        stream = torch.cuda.Stream(self._packed.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for width in reversed(self.sizes):
                self._send_padding(width)
                self._body(width)  # kernels are compiled and libraries set up outside of the recording
                stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    self._body(width)
                pool = pool or graph.pool()
                self._graphs[width] = graph
                advance()
        torch.cuda.current_stream().wait_stream(stream)

    def pitch_of(self, rows: int) -> int:
        """Rows from one column to the next in the step that runs so many."""
        return _pitch(self._width_of(rows))

    def next_flight(self) -> GraphFlight:
        """Buffers for a step, which nobody uses any more."""
        self._turn = (self._turn + 1) % IN_FLIGHT
        flight = self._ring[self._turn]
        flight.wait()
        return flight

    def launch(self, flight: GraphFlight, rows: int) -> None:
        """Start the step whose rows, with padding up to `pitch_of(rows)`, lie in `flight.rows`."""
        width = self._width_of(rows)
        size = COLUMNS * _pitch(width)
        self._packed[:size].copy_(flight.packed[:size], non_blocking=True)
        self._graphs[width].replay()
        flight.sampled[:rows].copy_(self._tokens[:rows], non_blocking=True)
        flight.done.record()

    def _width_of(self, rows: int) -> int:
        return self.sizes[bisect_left(self.sizes, rows)]

    def _body(self, width: int) -> None:
        pitch = _pitch(width)
        columns = self._packed[: COLUMNS * pitch].view(COLUMNS, pitch)
        slots = self._slots
        triton_layers.change_table(columns[CHANGED_SLOT:], slots.table)
        nobody = np.zeros(width, np.int32)
        step = StepInputs(
            ids=columns[TOKEN, :width],
            positions=columns[POSITION, :width],
            slots=columns[SLOT, :width],
            picked=torch.arange(width, dtype=torch.int32, device=columns.device),
            table=slots.table,
            host=HostStep(ids=nobody, slot=nobody, start=nobody, tokens=nobody + 1, picked=nobody, singles=width),
        )
        logits = self._decoder.forward(step, slots.newest)
        draws = Draws(
            temperature=slots.temperature,
            top_k=slots.top_k,
            top_p=slots.top_p,
            seeds=slots.seeds,
            positions=step.positions,
            greedy=False,
            filtered=True,
        )
        self._tokens[:width] = triton_sampling.sample(logits, draws, step.slots, slots.newest)

    def _send_padding(self, width: int) -> None:
        """Rows that touch nothing but what is there for padding."""
        columns = torch.zeros(COLUMNS, _pitch(width), dtype=torch.int32)
        columns[SLOT] = self._slots.padding
        columns[CHANGED_SLOT] = -1
        self._packed[: columns.numel()].copy_(columns.view(-1))


def _pitch(width: int) -> int:
    """Rows from one column to the next: kernels are compiled for columns that begin on 16 bytes."""
    return -(-width // 4) * 4
