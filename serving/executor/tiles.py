"""Prompt pieces of a step cut into tiles, each the work of one program of a kernel for every key head."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.integer]


def tile_tokens(longest: int, group: int) -> int:
    """Tokens of the largest tile of pieces up to `longest`, `group` query heads reading one key head."""
    return max(1, (16 if longest * group <= 16 else 64) // power(group))


def tiles_of(slots: I32, firsts: I32, lengths: I32, starts: I32, most: int) -> npt.NDArray[np.int32]:
    """Cut prompt pieces into tiles, those that read most first.

    Args:
        slots: row of the block table of each piece.
        firsts: place of its first token among the step's.
        lengths: its tokens.
        starts: position of its first token.
        most: tokens of the largest tile.

    Returns:
        (tiles, 4): slot, place of the first token, tokens, position of the first.
    """
    tiles = -(-lengths // most)
    piece = np.repeat(np.arange(len(lengths)), tiles)
    skip = (np.arange(len(piece)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * most
    rows = np.stack(
        [slots[piece], firsts[piece] + skip, np.minimum(most, lengths[piece] - skip), starts[piece] + skip], 1
    )
    return rows[np.argsort(-rows[:, 3], kind="stable")].astype(np.int32)


def power(n: int) -> int:
    """The least power of two that is no less."""
    return 1 << (n - 1).bit_length()
