"""Drafts that a request makes of itself: what it said before, and what the model guessed beyond its last mistake."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]

LONGEST_MATCH = 3
LOOK_BACK = 4096


def propose(text: I32, guesses: I32, count: int) -> I32:
    """The next `count` tokens of a text, guessed; shape (count,).

    First the `guesses` that an earlier verification left for these places, as in Jacobi iteration; then what followed
    the latest earlier occurrence of the text's end; where there is none, the last token again.

    Source: Saxena, Prompt lookup decoding, 2023; Santilli et al., Accelerating transformer inference for translation
    via parallel decoding, ACL 2023.
    """
    draft = guesses[:count]
    while len(draft) < count:
        more = _continuation(np.concatenate([text[-LOOK_BACK:], draft]), count - len(draft))
        draft = np.concatenate([draft, more], dtype=np.int32)
    return draft


def _continuation(text: I32, count: int) -> I32:
    """What followed the latest earlier occurrence of the text's last tokens, at most `count` tokens, at least one."""
    for width in range(min(LONGEST_MATCH, len(text) - 1), 0, -1):
        end = text[-width:]
        windows = np.lib.stride_tricks.sliding_window_view(text[:-1], width)
        found = np.flatnonzero((windows == end).all(1))
        if len(found):
            after = int(found[-1]) + width
            return text[after : after + count]
    return text[-1:]


def accepted(sampled: I32, drafted: I32) -> int:
    """Tokens of `sampled` that plain decoding would have put out too: the first, and one for each right draft before
    it. `drafted` is one shorter."""
    wrong = np.flatnonzero(sampled[:-1] != drafted)
    return int(wrong[0]) + 1 if len(wrong) else len(sampled)
