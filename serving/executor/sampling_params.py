"""What a client asks of the choice of tokens. Loads no torch: servers in front of an engine use it too."""

from __future__ import annotations

from dataclasses import dataclass

from dispatchgym.envs.api import UsageError

MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a client asks for.

    Attributes:
        max_new: most output tokens.
        temperature: 0 takes the likeliest token.
        top_k: draw among so many of the likeliest, 0 for all.
        top_p: draw among the likeliest that hold this share of the probability.
        seed: the same seed and text give the same draws, whatever else is in the batch.
        stop: token ids that end the output, which keeps them.
        ignore_eos: the model's own end-of-text tokens do not end the output.
        logprobs: for how many of the likeliest tokens log-probabilities are kept, beside that of the chosen one;
            -1 keeps none at all.
    """

    max_new: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int = -1

    def __post_init__(self) -> None:
        if self.max_new < 1:
            raise UsageError(f"sampling: max_new {self.max_new} is below 1")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"sampling: temperature {self.temperature} is outside 0..100")
        if not 0 <= self.top_k < 2**31:
            raise UsageError(f"sampling: top_k {self.top_k} is outside 0..{2**31 - 1}; 0 draws among all tokens")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"sampling: top_p {self.top_p} is outside 0..1, 0 left out")
        if not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"sampling: seed {self.seed} does not fit into 64 bits")
        if any(not 0 <= token < 2**31 for token in self.stop):
            raise UsageError(f"sampling: stop {self.stop} holds what is no token id")
        if not -1 <= self.logprobs <= MOST_LOGPROBS:
            raise UsageError(f"sampling: logprobs {self.logprobs} is outside -1..{MOST_LOGPROBS}")
