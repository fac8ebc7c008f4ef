"""Prompts with the token counts and the shared beginnings that a workload asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.workload import Workload

I64 = npt.NDArray[np.int64]

_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother", "area",
    "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue",
    "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member",
    "law",
)  # fmt: skip

WORDS = tuple(f" {word}" for word in _WORDS)
"""Each is one token in most vocabularies of models."""

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
"""Each is one token where tokens are bytes."""


@dataclass(frozen=True, slots=True)
class Ruler:
    """How a server counts the tokens of our text, as it has told.

    Attributes:
        pieces: what texts are made of.
        per_piece: tokens of a piece.
        extra: tokens that every prompt has besides, such as the one that begins a text.
    """

    pieces: tuple[str, ...]
    per_piece: float = 1.0
    extra: float = 0.0

    def count(self, tokens: int) -> int:
        """Pieces for so many tokens, at least 1."""
        return max(1, round((tokens - self.extra) / self.per_piece))


def ruler_from(pieces: tuple[str, ...], short: tuple[int, int], long: tuple[int, int]) -> Ruler:
    """The ruler through two measured prompts of (pieces, tokens)."""
    per_piece = (long[1] - short[1]) / (long[0] - short[0])
    return Ruler(pieces, per_piece, short[1] - short[0] * per_piece)


def piece_numbers(workload: Workload, request: int, pieces: int, block_pieces: float, kinds: int, salt: int = 0) -> I64:
    """Which piece stands at each place of a request's prompt, shape (pieces,), each below `kinds`.

    Requests that share the hashes of their first blocks share the pieces there; what follows differs.

    Args:
        block_pieces: pieces of a block of `workload.hash_block` tokens.
        salt: another one gives other prompts of the same structure.
    """
    first, last = workload.hash_ptr[request], workload.hash_ptr[request + 1]
    parts, at = [], 0
    for k, name in enumerate(workload.hashes[first:last].tolist(), 1):
        end = round(k * block_pieces)
        if end > pieces:
            break
        parts.append(np.random.default_rng([salt, 1, name & (2**63 - 1)]).integers(0, kinds, end - at))
        at = end
    parts.append(np.random.default_rng([salt, 2, request]).integers(0, kinds, pieces - at))
    return np.concatenate(parts)


def text_of(workload: Workload, request: int, ruler: Ruler, salt: int = 0) -> str:
    """A prompt of as many tokens as the request has, by the ruler."""
    pieces = ruler.count(int(workload.prompt_tokens[request]))
    block = workload.hash_block / ruler.per_piece
    wanted = piece_numbers(workload, request, pieces, block, len(ruler.pieces), salt)
    return "".join(ruler.pieces[k] for k in wanted.tolist())


def ids_of(workload: Workload, request: int, vocabulary: int, salt: int = 0) -> list[int]:
    """The same as token ids below `vocabulary`: exactly as many."""
    count = int(workload.prompt_tokens[request])
    found: list[int] = piece_numbers(workload, request, count, workload.hash_block, vocabulary, salt).tolist()
    return found
