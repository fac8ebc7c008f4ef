"""What a scheduler sees of an engine, what it may order, and what it must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.state import State

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


class RequestTable(NamedTuple):
    """Requests as columns, one entry each, all read-only copies; shape (requests,)."""

    id: I64
    arrival_s: F64
    ttft_slo_s: F64  # inf: none
    tpot_slo_s: F64
    last_token_s: F64  # nan: none yet
    first_token_s: F64
    queued_s: F64  # when it last entered the queue
    run_s: F64  # end of the last step it took part in
    service_s: F64  # seconds of the steps it took part in
    prompt_tokens: I64
    max_new_tokens: I64
    priority: I64
    tenant: I64
    session: I64
    program: I64
    computed: I64  # tokens whose KV is held
    generated: I64
    blocks: I64  # held on the device, shared ones included
    host_blocks: I64  # above 0: swapped out
    cached_tokens: I64  # of a waiting one: tokens the prefix cache would spare now
    preemptions: I64
    group: I64  # interrupted step it belongs to, -1 for none

    @property
    def known(self) -> I64:
        """Tokens whose text is known: prompt and output so far."""
        return self.prompt_tokens + self.generated

    @property
    def left(self) -> I64:
        """Known tokens without KV: what is to be run before the next token comes out."""
        return self.known - np.maximum(self.computed, self.cached_tokens)

    @property
    def decoding(self) -> Bool:
        """Every known token but the newest output has its KV."""
        return np.asarray((self.generated > 0) & (self.known - self.computed == 1))

    @property
    def deadline_s(self) -> F64:
        """When the first token is due."""
        return self.arrival_s + self.ttft_slo_s

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True, slots=True)
class Oracle:
    """Facts that no real scheduler has: true output lengths, in the order of the view's tables."""

    running_output: I64
    waiting_output: I64


@dataclass(frozen=True, slots=True)
class Texts:
    """What prompts have in common, for policies that have `texts = True`.

    Attributes:
        hashes: of each request in the view, the hashes of its prompt, one a block of `block_tokens`; see Workload.
    """

    hashes: Mapping[int, I64]
    block_tokens: int


@dataclass(frozen=True, slots=True)
class EngineView:
    """An engine at the moment of a decision. Copies: nothing here leads back into the engine.

    Attributes:
        now_s, step: the clock, and the steps made so far.
        running: requests that hold blocks, in order of admission.
        waiting: the queue, its head first; preempted ones are at the head.
        free_blocks: blocks that may be taken, cached content included.
        kv_blocks, block_tokens: size of the pool, and of a block.
        free_seqs: further requests that may run.
        token_budget: most tokens of a step.
        host_free: free blocks on the host.
        max_preemptions: a request preempted so often is not preempted by a plan any more.
        history: output lengths of requests that finished, the oldest first.
        finished: requests that ever finished.
        interrupted: the decision comes in the middle of a step, which now pauses.
        texts: hashes of prompts, for policies that ask for them; else None.
        oracle: true lengths, for policies that are marked `oracle`; else None.
        plain_s: seconds of the step before, if everyone decoded one token in it and nothing came between; else 0. Of
            what the host does for the next step, so much is done by then, see Profile.
    """

    now_s: float
    step: int
    running: RequestTable
    waiting: RequestTable
    free_blocks: int
    kv_blocks: int
    block_tokens: int
    free_seqs: int
    token_budget: int
    host_free: int
    max_preemptions: int
    history: I32
    finished: int
    interrupted: bool
    texts: Texts | None
    oracle: Oracle | None
    plain_s: float = 0.0

    def blocks_for(self, tokens: int | I64) -> int | I64:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep the cached blocks of the first `tokens` of a request's text for `seconds`; 0 tokens ends its pin."""

    request: int
    tokens: int
    seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next step runs, and side orders. An empty plan means first come, first served.

    Carried out in this order: drops, preemptions, pins, grants. The engine changes what cannot be done, and counts it.

    Attributes:
        grants: (request, tokens) in order: a running request runs up to so many tokens, a waiting one is let in with
            up to so many. For a decoding request 1 is a token, 1 + k verifies a draft of k. Running requests that are
            not listed pause with all they have. Grants beyond the token budget are cut.
        preempt: (request, "recompute" or "swap").
        victims: who is preempted, in order, if a running request finds no block; after these the last admitted.
        drop: requests to give up.
        pins: prefixes to keep.
        wait_until_s: make no step before this time, unless a request arrives (`wake_on_arrival`) or `wake_depth`
            requests wait; only without grants.
        hold_steps: repeat the grants of decoding requests for so many steps, for those still running;
            ends with an arrival, with a finish, or when blocks run short. `hold_through`: events that do not end it.
        interruptible: the step, if it only reads prompts, may stop at a segment boundary once a request arrives;
            the policy is then asked again. Granting one of its requests goes on with it.
    """

    grants: Sequence[tuple[int, int]] | npt.NDArray[np.integer] = ()
    preempt: Sequence[tuple[int, str]] = ()
    victims: Sequence[int] | npt.NDArray[np.integer] = ()
    drop: Sequence[int] = ()
    pins: Sequence[Pin] = ()
    wait_until_s: float | None = None
    wake_on_arrival: bool = True
    wake_depth: int = 0
    hold_steps: int = 1
    hold_through: frozenset[str] = field(default_factory=frozenset)
    interruptible: bool = False


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a policy may know before the first request: the engine's limits and its step times."""

    config: EngineConfig
    profile: Profile
    kv_blocks: int
    slo_kind: str = "max"
    cost: F64 = field(init=False, repr=False, compare=False)
    """The profile's terms, worked out once: schedulers read them at every step."""

    def __post_init__(self) -> None:
        cost = self.profile.terms()
        cost.flags.writeable = False
        object.__setattr__(self, "cost", cost)


@runtime_checkable
class Policy(Protocol):
    """A scheduler. `oracle` policies see true lengths, and those with a true attribute `texts` see hashes of prompts;
    the others see None."""

    name: str
    oracle: bool

    def reset(self, spec: EngineSpec, seed: int) -> None:
        """Forget everything; a new run begins."""

    def decide(self, view: EngineView) -> Plan:
        """The next step. Pure given the view and own state."""


@runtime_checkable
class CompiledPolicy(Protocol):
    """A scheduler that runs inside the engine, on its arrays, through the same functions as every plan."""

    name: str
    oracle: bool

    def prepare(self, state: State, spec: EngineSpec, seed: int) -> None:
        """A new run begins on these arrays."""

    def fill(self, state: State) -> None:
        """Fill the step at hand, for an engine that runs its steps elsewhere."""

    def advance(self, state: State, until_s: float) -> int:
        """Run the engine until all is done, the clock passes `until_s` or a log is full (codes of state.py)."""


def is_compiled(policy: Policy | CompiledPolicy) -> TypeGuard[CompiledPolicy]:
    """Which of the two it is; asked at every step, where `isinstance` on a protocol takes long."""
    return hasattr(policy, "fill")
