"""Texts for the requests of a workload, which only says how long they are and where they are alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.state import ENDED, State
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.executor.sampling_params import Sampling

I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]

_MIX_A, _MIX_B, _GOLDEN = (np.uint64(x) for x in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15))


class TraceTokens:
    """Prompts in which equal hashes stand for equal tokens; outputs have the workload's true lengths.

    What a request puts out is the model's own. Where a later prompt has the output of an earlier request in it by its
    hashes, the engine finds that request's KV, and the tokens are not the same: times are right, texts are not.

    Args:
        state: of the engine, which says who has left.
    """

    def __init__(self, workload: Workload, vocabulary: int, state: State) -> None:
        self.workload = workload
        self.vocabulary = vocabulary
        self._state = state
        self._prompts = [self._prompt(request) for request in range(len(workload))]

    def text(self, request: int) -> tuple[I32, Sampling]:
        """Prompt and sampling of a request."""
        return self._prompts[request], Sampling(max_new=int(self.workload.output_tokens[request]), ignore_eos=True)

    def _prompt(self, request: int) -> I32:
        work = self.workload
        length = int(work.prompt_tokens[request])
        hashes = work.hashes[work.hash_ptr[request] : work.hash_ptr[request + 1]].astype(np.uint64)
        place = np.arange(length, dtype=np.uint64)
        block = (place // np.uint64(work.hash_block)).astype(np.int64)
        named = block < len(hashes)
        seed = np.full(length, ~np.uint64(request))
        seed[named] = hashes[block[named]]
        within = np.where(named, place % np.uint64(work.hash_block), place)
        return (_mix(seed, within) % np.uint64(self.vocabulary)).astype(np.int32)

    def is_over(self, request: int) -> bool:
        """The request has left the engine."""
        return bool(self._state.req["state"][request] == ENDED)


def _mix(a: U64, b: U64) -> U64:
    """Well-spread numbers from two (splitmix64)."""
    x = a * _GOLDEN + b + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))
