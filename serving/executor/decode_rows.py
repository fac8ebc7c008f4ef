"""The rows of a decoding step as one block of whole numbers: what a step sends to the device, and all it sends.

Column c of a step of `width` rows lies at c * width. Of the block table only what has changed is sent.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.llm.state import int64

I32 = npt.NDArray[np.int32]

(
    SLOT,  # row of the block table
    POSITION,  # of the token that the row runs
    TOKEN,  # that it runs, -1 for the newest of its slot, which the device knows
    CHANGED_SLOT,  # block table: table[slot, place] = block; slot -1 for none
    CHANGED_PLACE,
    CHANGED_BLOCK,
    COLUMNS,
) = range(7)


@compiled
def changed_blocks(slots: I32, ends: I32, page: int, table: I32, sent: I32, changes: I32, count: int) -> int:
    """Note which entries of the block table the device does not have; returns how many are noted now.

    Args:
        slots: (rows,) rows of the table.
        ends: (rows,) tokens whose KV the row's step reads or writes.
        table: (slots, blocks) as it is.
        sent: (slots, blocks) as the device has it: updated.
        changes: (room, 3): slot, place, block; written from `count` on. Stops where it is full: call again.
    """
    for i in range(len(slots)):
        slot = int64(slots[i])
        for j in range((int64(ends[i]) + page - 1) // page):
            block = table[slot, j]
            if sent[slot, j] != block:
                if count == len(changes):
                    return count
                sent[slot, j] = block
                changes[count, 0] = slot
                changes[count, 1] = j
                changes[count, 2] = block
                count += 1
    return count


@compiled
def pack_rows(
    slots: I32, positions: I32, tokens: I32, changes: I32, count: int, width: int, dummy: int, out: I32
) -> None:
    """Write a step of `width` rows, of which the last are padding, into `out`.

    Args:
        slots, positions, tokens: (rows,).
        changes, count: as from `changed_blocks`; at most `width`.
        dummy: slot of padding rows.
        out: (COLUMNS * width,).
    """
    rows = len(slots)
    for i in range(rows):
        out[SLOT * width + i] = slots[i]
        out[POSITION * width + i] = positions[i]
        out[TOKEN * width + i] = tokens[i]
    for i in range(rows, width):
        out[SLOT * width + i] = dummy
        out[POSITION * width + i] = 0
        out[TOKEN * width + i] = 0
    for i in range(width):
        out[CHANGED_SLOT * width + i] = changes[i, 0] if i < count else -1
        out[CHANGED_PLACE * width + i] = changes[i, 1] if i < count else 0
        out[CHANGED_BLOCK * width + i] = changes[i, 2] if i < count else 0
