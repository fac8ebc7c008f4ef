"""Plain decoding, one token for each of its rows, from an engine's batch to a captured step with little in between."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.executor import Batch
from dispatchgym.serving.executor.decode_rows import book_tokens, is_plain, pack_rows, put_out
from dispatchgym.serving.executor.sequences import Sequences
from dispatchgym.serving.executor.slots import SlotTable

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]


class Flight(Protocol):
    """A step's own buffers on the host: the `rows` that the device is sent, the `tokens` that it sends back."""

    rows: I32
    tokens: I32

    def is_done(self) -> bool:
        """The tokens are here."""

    def wait(self) -> None:
        """Until they are."""


class Steps(Protocol):
    """Whole decoding steps, captured beforehand."""

    def pitch_of(self, rows: int) -> int:
        """Rows from one column to the next in the step that runs so many."""

    def next_flight(self) -> Flight:
        """Buffers that nobody uses any more."""

    def launch(self, flight: Flight, rows: int) -> None:
        """Start the step whose rows, with padding up to `pitch_of(rows)`, lie in `flight.rows`."""


class PlainStep:
    """A step of the fast path that has been started.

    Attributes:
        request: of each row.
        emitted, stopped: what each row puts out, whether it has ended; known once `settle` has been called.
    """

    def __init__(self, request: I32, flight: Flight) -> None:
        self.request = request
        self.emitted: I32 = np.empty(len(request), np.int32)
        self.stopped: I8 = np.empty(len(request), np.int8)
        self._flight = flight

    def settle(self, sequences: Sequences) -> None:
        """Decide what the rows put out, all tokens of earlier steps being known."""
        put_out(self.request, sequences.row, self.emitted, self.stopped)

    def awaits(self, request: int) -> bool:
        """One of the tokens is the request's: it had not come to its end before."""
        return bool((self.emitted[self.request == request] > 0).any())

    def is_here(self) -> bool:
        """The tokens have come."""
        return self._flight.is_done()

    def book(self, sequences: Sequences) -> None:
        """Wait for the tokens, and append them to their texts."""
        self._flight.wait()
        book_tokens(self.request, self.emitted, self._flight.tokens, sequences.row, sequences.stop, sequences.arena)


class FastPath:
    """Starts plain steps.

    Args:
        steps: captured ones.
        slots, sequences: of the executor.
        block_tokens: of the cache.
    """

    def __init__(self, steps: Steps, slots: SlotTable, sequences: Sequences, block_tokens: int) -> None:
        self._steps = steps
        self._slots = slots
        self._sequences = sequences
        self._block_tokens = block_tokens

    def start(self, batch: Batch) -> PlainStep | None:
        """The batch on its way, None if it is none of plain decoding."""
        sequences, slots = self._sequences, self._slots
        if len(batch.swap_out) or len(batch.swap_in):
            return None
        if not is_plain(
            batch.request, batch.tokens, batch.decode, batch.slot, batch.admission, sequences.row, slots.admission
        ):
            return None
        rows = len(batch.request)
        flight = self._steps.next_flight()
        pack_rows(
            batch.request, batch.start, batch.slot, batch.table, self._block_tokens, sequences.row, sequences.arena,
            self._steps.pitch_of(rows), slots.padding, flight.rows,
        )  # fmt: skip
        self._steps.launch(flight, rows)
        return PlainStep(batch.request, flight)
