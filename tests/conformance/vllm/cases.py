"""Random cases on which an engine's scheduler is compared with vLLM's: requests, limits, options. No vLLM in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dispatchgym.envs.llm.batching import RulePolicy
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import EngineSpec
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.vllm import Vllm

EVERY_STEP_1_S = Profile(
    name="steps", gpu="none", model="none", source="roofline", kv_tokens=1, kv_bytes_per_token=1, segments=1,
    base_s=1.0, weights_s=0.0, token_s=0.0,
)  # fmt: skip
"""Time counts steps, so that arrivals do not hang on any step time."""

BLOCK = 16


@dataclass(frozen=True)
class Case:
    """Requests as columns, engine limits, and the options of vLLM's scheduler.

    Attributes:
        shared: blocks at the start of each prompt that its family has in common.
        family: whose they are.
        spare: blocks kept free when admitting beside others, what vLLM makes of `watermark`.
    """

    seed: int
    arrival: Sequence[int]
    prompt: Sequence[int]
    output: Sequence[int]
    max_new: Sequence[int]
    priority: Sequence[int]
    family: Sequence[int]
    shared: Sequence[int]
    kv_blocks: int
    budget: int
    max_seqs: int
    caching: bool
    by_priority: bool
    threshold: int
    full_input: bool
    spare: int
    chunked: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def longest(self) -> int:
        return max(p + m for p, m in zip(self.prompt, self.max_new, strict=True))

    def workload(self) -> Workload:
        hashes, ptr = [], [0]
        for r, (prompt, family, shared) in enumerate(zip(self.prompt, self.family, self.shared, strict=True)):
            hashes += [1 + 1000 * family + j for j in range(shared)]
            hashes += [10**6 + 1000 * r + j for j in range(prompt // BLOCK - shared)]
            ptr.append(len(hashes))
        return Workload(
            arrival_s=np.array(self.arrival, float), prompt_tokens=np.array(self.prompt),
            output_tokens=np.array(self.output), max_new_tokens=np.array(self.max_new),
            priority=np.array(self.priority), hash_ptr=np.array(ptr), hashes=np.array(hashes, np.int64),
            hash_block=BLOCK,
        )  # fmt: skip

    def engine(self) -> EngineConfig:
        return EngineConfig(
            block_tokens=BLOCK, kv_blocks=self.kv_blocks, max_seqs=self.max_seqs, token_budget=self.budget,
            prefix_caching=self.caching, max_preemptions=10**9,
        )  # fmt: skip

    def policy(self) -> Vllm:
        return Vllm(
            threshold=self.threshold, full_input=self.full_input, watermark=(self.spare + 0.5) / self.kv_blocks,
            priority=self.by_priority, chunked=self.chunked,
        )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What a scheduler did: the time, (request, tokens) in order, requests preempted."""

    now: float
    tokens: tuple[tuple[int, int], ...]
    preempted: tuple[int, ...]


def random_case(seed: int) -> Case:
    """Pools from hardly large enough to roomy, budgets from one block to all, every option now and then."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 50))
    longest = int(rng.choice([60, 200, 500]))
    prompt = rng.integers(1, longest, n)
    output = rng.integers(1, int(rng.choice([8, 60, 200])), n)
    max_new = output + np.where(rng.random(n) < 0.5, 0, rng.integers(1, 60, n))
    families = int(rng.integers(1, 4))
    caching = bool(rng.random() < 0.6)
    shared = np.minimum(rng.integers(0, 12, n), prompt // BLOCK) if rng.random() < 0.7 else np.zeros(n, int)
    need = int(-(-(prompt + max_new).max() // BLOCK))
    chunked = bool(rng.random() < 0.85)
    tightest = int((prompt + max_new).max()) if not chunked else 1
    budget = max(tightest, int(rng.choice([16, 33, 64, 128, 300, 2048])))
    gaps = rng.exponential(float(rng.choice([0.0, 0.5, 3.0, 20.0])), n)
    return Case(
        seed=seed,
        arrival=np.floor(np.cumsum(gaps)).astype(int).tolist(),
        prompt=prompt.tolist(),
        output=output.tolist(),
        max_new=max_new.tolist(),
        priority=rng.integers(0, int(rng.choice([1, 3, 10])), n).tolist(),
        family=rng.integers(0, families, n).tolist(),
        shared=shared.tolist(),
        kv_blocks=need + int(rng.choice([0, 2, need // 2, need, 3 * need, 20 * need])),
        budget=budget,
        max_seqs=int(rng.choice([2, 8, 64])),
        caching=caching,
        by_priority=bool(rng.random() < 0.4),
        threshold=int(rng.choice([0, 0, 0, 20, 64])),
        full_input=bool(rng.random() < 0.7),
        spare=int(rng.choice([0, 0, 1, 3])),
        chunked=chunked,
    )


class Watched:
    """A batching rule whose steps are written down."""

    oracle = False

    def __init__(self, policy: RulePolicy) -> None:
        self.policy, self.name = policy, policy.name
        self.steps: list[Step] = []

    def prepare(self, state: State, spec: EngineSpec, seed: int) -> None:
        self.policy.prepare(state, spec, seed)

    def advance(self, state: State, until_s: float) -> int:
        # Part of what a compiled policy offers, and for whole simulations; cases are run step by step, so that a call
        # of it would be a mistake of the test.
        raise NotImplementedError("is run step by step")

    def fill(self, state: State) -> None:
        before = state.req["preemptions"].copy()
        self.policy.fill(state)
        e = state.eng[0]
        rows = state.batch[: e["batch"]]
        gone = np.repeat(np.arange(len(before)), state.req["preemptions"] - before)
        tokens = tuple(zip(rows["request"].tolist(), rows["tokens"].tolist(), strict=True))
        self.steps.append(Step(float(e["now"]), tokens, tuple(gone.tolist())))


def our_steps(case: Case) -> list[Step]:
    """What our vllm policy does in our engine."""
    watched = Watched(case.policy())
    state = fresh_state(case.workload(), case.engine(), EVERY_STEP_1_S, 0, steps=False, tokens=False)
    spec = EngineSpec(case.engine(), EVERY_STEP_1_S, case.kv_blocks)
    watched.prepare(state, spec, 0)
    Engine(state, watched, spec).run()
    return watched.steps
