"""The rows of a plain decoding step, straight from an engine's batch: what the device is sent, and what comes of it.

Column c of a step of `width` rows lies at c * width. Of the block table only what has changed is sent.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.llm.state import int64

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

(
    SLOT,  # row of the block table
    POSITION,  # of the token that the row runs
    TOKEN,  # that it runs, -1 for the newest of its slot, which the device knows
    CHANGED_SLOT,  # block table: table[slot, place] = block; slot -1 for none
    CHANGED_PLACE,
    CHANGED_BLOCK,
    COLUMNS,
) = range(7)
KEPT = CHANGED_SLOT
"""Columns before the changes."""


@compiled
def is_plain(request: I32, tokens: I32, decode: I8, slot: I32, admission: I64, sequence: Any, admitted: I64) -> bool:
    """Whether every row decodes a single token, of a request that the device has seen in this slot.

    Args:
        request, tokens, decode, slot, admission: as in a batch.
        sequence: requests, of SEQUENCE.
        admitted: (slots,): admission that the device knows of.
    """
    for i in range(len(request)):
        if tokens[i] != 1 or decode[i] == 0 or admitted[slot[i]] != admission[i] or request[i] >= len(sequence):
            return False
        row = sequence[request[i]]
        if not row.here or row.logprobs >= 0:
            return False
    return True


@compiled
def pack_rows(
    request: I32, start: I32, slot: I32, table: I32, page: int, sequence: Any, arena: I32,
    width: int, padding: int, out: I32,
) -> None:  # fmt: skip
    """Write a plain decoding step of `width` rows, of which the last are padding, into `out`.

    Args:
        request, start, slot, table: as in a batch.
        page: tokens of a block.
        sequence, arena: requests, of SEQUENCE, and their texts.
        padding: slot of rows that only fill up.
        out: (COLUMNS * width,).
    """
    rows = len(request)
    for i in range(rows):
        row = sequence[request[i]]
        at = int64(start[i])
        out[SLOT * width + i] = slot[i]
        out[POSITION * width + i] = at
        out[TOKEN * width + i] = arena[row.offset + at] if at < row.read else -1
        out[CHANGED_SLOT * width + i] = slot[i] if at % page == 0 else -1
        out[CHANGED_PLACE * width + i] = at // page
        out[CHANGED_BLOCK * width + i] = table[slot[i], at // page]
    for i in range(rows, width):
        out[SLOT * width + i] = padding
        out[POSITION * width + i] = 0
        out[TOKEN * width + i] = 0
        out[CHANGED_SLOT * width + i] = -1
        out[CHANGED_PLACE * width + i] = 0
        out[CHANGED_BLOCK * width + i] = 0


@compiled
def put_out(request: I32, sequence: Any, emitted: I32, stopped: I8) -> None:
    """What a plain step puts out: nothing where a stop token came before, else a token, which may be the last.

    Args:
        request: (rows,).
        sequence: requests, of SEQUENCE; `known` grows.
        emitted, stopped: (rows,), written.
    """
    for i in range(len(request)):
        row = sequence[request[i]]
        if row.ended:
            emitted[i], stopped[i] = 0, 1
        else:
            row.known += 1
            emitted[i] = 1
            stopped[i] = 1 if row.known == row.room else 0


@compiled
def book_tokens(request: I32, emitted: I32, tokens: I32, sequence: Any, stop: I32, arena: I32) -> None:
    """Append the tokens of a step that have come to the host, and note which of them are stop tokens.

    Args:
        request, emitted: (rows,), as `put_out` had and wrote them; rows that put out nothing are passed over.
        tokens: (rows,).
        stop: (requests, most stop tokens), filled up with -1.
    """
    for i in range(len(request)):
        if emitted[i] == 0:
            continue
        row = sequence[request[i]]
        arena[row.offset + row.read] = tokens[i]
        row.read += 1
        for k in range(stop.shape[1]):
            if stop[request[i], k] == tokens[i]:
                row.ended = True
