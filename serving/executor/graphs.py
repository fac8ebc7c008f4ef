"""Whole decoding steps as CUDA graphs: table changes, embedding, layers, logits, draw, and the drawn tokens' way back.

A step costs the host a single launch, whatever the model's depth: the device itself fetches the rows from pinned
memory, and leaves the tokens there. Results are
read when the caller asks for them, so that the host can plan a step while the one before runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.serving.executor import triton_layers, triton_sampling
from dispatchgym.serving.executor.decode_rows import (
    CHANGED_SLOT,
    COLUMNS,
    KEPT,
    POSITION,
    SLOT,
    TOKEN,
)
from dispatchgym.serving.executor.inputs import HostStep, StepInputs
from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.recording import Body, Record
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
    """A step's own place in pinned memory: the rows that the device fetches, the tokens that it leaves."""

    def __init__(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self.rows: I32 = rows.numpy()
        self.tokens: I32 = tokens.numpy()
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def is_done(self) -> bool:
        """The tokens are here."""
        return bool(self.done.query())  # type: ignore[no-untyped-call]

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
        self._rows = torch.zeros(KEPT * pitch, dtype=torch.int32, device=device)
        self._sent = torch.zeros(IN_FLIGHT, COLUMNS * pitch, dtype=torch.int32, pin_memory=True)
        self._sampled = torch.zeros(IN_FLIGHT, pitch, dtype=torch.int32, pin_memory=True)
        self._turn = torch.zeros(1, dtype=torch.int32, device=device)
        self._flights = [GraphFlight(*buffers) for buffers in zip(self._sent, self._sampled, strict=True)]
        self._launches = 0
        self._graphs: dict[int, Body] = {}

    def capture(self, record: Record) -> None:
        """Record every graph, the largest first."""
        for width in reversed(self.sizes):
            self._send_padding(width)
            self._graphs[width] = record(partial(self._body, width))
        self._turn.zero_()

    def pitch_of(self, rows: int) -> int:
        """Rows from one column to the next in the step that runs so many."""
        return _pitch(self._width_of(rows))

    def next_flight(self) -> GraphFlight:
        """Buffers for the next step, which nobody uses any more."""
        flight = self._flights[self._launches % IN_FLIGHT]
        flight.wait()
        return flight

    def launch(self, flight: GraphFlight, rows: int) -> None:
        """Start the step whose rows, with padding up to `pitch_of(rows)`, lie in `flight.rows`, the next flight's."""
        self._graphs[self._width_of(rows)]()
        flight.done.record()
        self._launches += 1

    def _width_of(self, rows: int) -> int:
        return self.sizes[bisect_left(self.sizes, rows)]

    def _body(self, width: int) -> None:
        pitch = _pitch(width)
        columns = self._rows[: KEPT * pitch].view(KEPT, pitch)
        slots = self._slots
        triton_layers.take_rows(self._sent, self._turn, columns, slots.table)
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
        tokens = triton_sampling.sample(logits, draws, step.slots, slots.newest)
        triton_layers.give_tokens(tokens, self._sampled, self._turn)

    def _send_padding(self, width: int) -> None:
        """Rows that touch nothing but what is there for padding."""
        columns = self._sent[:, : COLUMNS * _pitch(width)].view(IN_FLIGHT, COLUMNS, -1)
        columns.zero_()
        columns[:, SLOT] = self._slots.padding
        columns[:, CHANGED_SLOT] = -1


def _pitch(width: int) -> int:
    """Rows from one column to the next: kernels are compiled for columns that begin on 16 bytes."""
    return -(-width // 4) * 4
