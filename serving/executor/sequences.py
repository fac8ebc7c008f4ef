"""Requests as the executor keeps them on the host: their text, and how each picks its next token."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.executor.sampling_params import Sampling

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

SEQUENCE = np.dtype(
    [
        ("here", np.bool_),
        ("offset", np.int64),  # of the text in the arena
        ("room", np.int64),  # prompt and longest output
        ("prompt", np.int32),
        ("known", np.int32),  # tokens of the text, those included that only the device knows as yet
        ("read", np.int32),  # tokens of the text that the host knows
        ("ended", np.bool_),  # a stop token has come
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("top_k", np.int32),
        ("seed", np.int64),
        ("logprobs", np.int32),
    ]
)
_NO_TOKEN = -1
_COLDEST = 1e-5
"""Temperature below which the likeliest token is taken: logits over one near zero are all infinite."""


class Sequences:
    """A row a request, by its number, in arrays that grow; texts lie one behind the other in a single arena.

    Attributes:
        row: of SEQUENCE.
        arena: the texts.
        stop: stop tokens of each request, filled up with -1, shape (requests, most stop tokens of any).
    """

    def __init__(self) -> None:
        self.row: npt.NDArray[Any] = np.zeros(64, SEQUENCE)
        self.stop: I32 = np.full((64, 1), _NO_TOKEN, np.int32)
        self.arena: I32 = np.zeros(1 << 14, np.int32)
        self._used = 0

    def add(self, request: int, prompt: I32, sampling: Sampling, eos: tuple[int, ...]) -> None:
        """A new text.

        Raises:
            UsageError: the number is in use, or the prompt is empty.
        """
        self._grow(request)
        row = self.row[request]
        if row["here"]:
            raise UsageError(f"request {request} is there already; remove it first")
        if len(prompt) == 0:
            raise UsageError(f"request {request}: the prompt is empty")
        stop = sorted({*sampling.stop, *(() if sampling.ignore_eos else eos)})
        if len(stop) > self.stop.shape[1]:
            wider = np.full((len(self.stop), len(stop)), _NO_TOKEN, np.int32)
            wider[:, : self.stop.shape[1]] = self.stop
            self.stop = wider
        self.stop[request] = _NO_TOKEN
        self.stop[request, : len(stop)] = stop
        room = len(prompt) + sampling.max_new
        self._make_room(room)
        row["offset"], row["room"] = self._used, room
        self.arena[self._used : self._used + len(prompt)] = prompt
        self._used += room
        row["prompt"] = row["known"] = row["read"] = len(prompt)
        row["here"], row["ended"] = True, False
        row["temperature"] = sampling.temperature if sampling.temperature >= _COLDEST else 0.0
        row["top_k"], row["top_p"] = sampling.top_k, sampling.top_p
        row["seed"], row["logprobs"] = sampling.seed, sampling.logprobs

    def remove(self, request: int) -> None:
        """Forget a text."""
        self.row[request]["here"] = False

    def has(self, request: int) -> bool:
        """The request has been added, and not been removed."""
        return 0 <= request < len(self.row) and bool(self.row[request]["here"])

    def missing(self, requests: I32) -> I32:
        """Those of the requests that have not been added, or have been removed."""
        known = self.row["here"][np.minimum(requests, len(self.row) - 1)] & (requests < len(self.row))
        return requests[~known]

    def text(self, request: int) -> I32:
        """What the host knows of a request's text; a view."""
        row = self.row[request]
        first = int(row["offset"])
        return self.arena[first : first + int(row["read"])]

    def tokens(self, requests: I32 | I64, places: I32 | I64) -> I32:
        """Token at a place of each request's text, whether or not the host knows it."""
        found: I32 = self.arena[self.row["offset"][requests] + places]
        return found

    def append(self, requests: I32 | I64, tokens: I32) -> None:
        """A further token of each of these requests, which are distinct."""
        row = self.row
        self.arena[row["offset"][requests] + row["read"][requests]] = tokens
        row["read"][requests] += 1

    def are_stops(self, requests: I32 | I64, tokens: I32) -> npt.NDArray[np.bool_]:
        """Whether each token ends its request's output."""
        found: npt.NDArray[np.bool_] = (self.stop[requests] == tokens[:, None]).any(1)
        return found

    def _grow(self, request: int) -> None:
        if request >= len(self.row):
            more = max(request + 1 - len(self.row), len(self.row))
            self.row = np.concatenate([self.row, np.zeros(more, SEQUENCE)])
            self.stop = np.concatenate([self.stop, np.full((more, self.stop.shape[1]), _NO_TOKEN, np.int32)])

    def _make_room(self, room: int) -> None:
        if self._used + room <= len(self.arena):
            return
        alive = np.flatnonzero(self.row["here"])
        alive = alive[np.argsort(self.row["offset"][alive])]
        used = int(self.row["room"][alive].sum())
        arena = np.zeros(max(len(self.arena), 2 * (used + room)), np.int32)
        at = 0
        for request in alive.tolist():
            row = self.row[request]
            first, size = int(row["offset"]), int(row["room"])
            arena[at : at + size] = self.arena[first : first + size]
            row["offset"] = at
            at += size
        self.arena, self._used = arena, at
