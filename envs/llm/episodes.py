"""What an environment plays: which serving problem next, and what room it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.batch import Room
from dispatchgym.envs.llm.draws import HASH_TOKENS, MOST_SEQS, DrawConfig, Serving, draw, pool_blocks

Generator = Callable[[np.random.Generator], Serving]
Source = Serving | Sequence[Serving] | Generator
"""A problem; several, of which each reset draws one; or a generator of problems."""

SMALL = DrawConfig(requests=(20, 60), longest=512)
"""What an environment plays unless told otherwise."""


def room_of(config: DrawConfig) -> Room:
    """Room for everything that these random problems may be."""
    requests, longest = config.requests[1], config.longest
    blocks = longest // HASH_TOKENS
    return Room(requests, requests * blocks, pool_blocks(longest), MOST_SEQS, 2 * blocks + 4)


@dataclass(frozen=True, slots=True)
class Episodes:
    """Draws the problem of an episode from the environment's own random generator."""

    source: tuple[Serving, ...] | Generator
    room: Room

    @classmethod
    def of(cls, given: Source | DrawConfig | None, room: Room | None = None) -> Episodes:
        """Raises UsageError for an empty list, and for a generator without room."""
        if given is None or isinstance(given, DrawConfig):
            config = given or SMALL
            return cls(partial(draw, config=config), room or room_of(config))
        if callable(given):
            if room is None:
                raise UsageError("a generator of problems needs room=Room(...) for the largest of them")
            return cls(given, room)
        servings = (given,) if isinstance(given, Serving) else tuple(given)
        return cls(servings, room or Room.of(servings))

    def draw(self, rng: np.random.Generator) -> Serving:
        """The next problem."""
        if isinstance(self.source, tuple):
            return self.source[0] if len(self.source) == 1 else self.source[int(rng.integers(len(self.source)))]
        return self.source(rng)
