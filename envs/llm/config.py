"""The size and the limits of an engine."""

from __future__ import annotations

from dataclasses import dataclass

from dispatchgym.envs.api import UsageError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine has and what it allows, whatever the scheduler.

    Attributes:
        block_tokens: tokens a KV block holds.
        kv_blocks: blocks of the pool; 0 for as many as the profile's `kv_tokens` fill.
        host_blocks: blocks that fit on the host, for swapping.
        max_seqs: requests that hold blocks at once.
        token_budget: most tokens of a step.
        max_len: longest prompt and output together; 0 for the pool's size. Longer requests are refused on arrival.
        max_spec: most speculative tokens of a request and step.
        acceptance: simulated chance that the next speculative token is right.
        prefix_caching: blocks can be found by what they hold, and shared.
        max_wait_s: longest time without a step while there is something to run.
        max_preemptions: a request preempted so often is spared while there is another: what keeps everyone moving.
        history: output lengths of finished requests that schedulers see.
        jumps: stretches of alike steps are made at once; without, one by one, with the same result.
    """

    block_tokens: int = 16
    kv_blocks: int = 0
    host_blocks: int = 0
    max_seqs: int = 256
    token_budget: int = 8192
    max_len: int = 0
    max_spec: int = 0
    acceptance: float = 0.7
    prefix_caching: bool = True
    max_wait_s: float = 1.0
    max_preemptions: int = 100
    history: int = 1000
    jumps: bool = True

    def __post_init__(self) -> None:
        for name in ("block_tokens", "max_seqs", "token_budget", "max_preemptions"):
            if getattr(self, name) < 1:
                raise UsageError(f"engine: {name} {getattr(self, name)} is below 1")
        for name in ("kv_blocks", "host_blocks", "max_len", "max_spec", "history"):
            if getattr(self, name) < 0:
                raise UsageError(f"engine: {name} {getattr(self, name)} is below 0")
        if not 0 <= self.acceptance <= 1:
            raise UsageError(f"engine: acceptance {self.acceptance} is outside 0..1")
        if not self.max_wait_s > 0:
            raise UsageError(f"engine: max_wait_s {self.max_wait_s} is not above 0")
