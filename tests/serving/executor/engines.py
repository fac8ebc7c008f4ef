"""Real engines over tiny models, and ways to drive them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import ENDED
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.solvers.llm.vllm import Vllm
from tests.envs.llm.helpers import PROFILE
from tests.serving.executor.models import VOCABULARY, model

I32 = npt.NDArray[np.int32]


class Scripted:
    """A policy of a single function from views to plans."""

    name = "scripted"
    oracle = False

    def __init__(self, decide: Any) -> None:
        self.decide = decide

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass


def prompts(seed: int, *lengths: int) -> list[I32]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, n).astype(np.int32) for n in lengths]


def all_of_it(view: EngineView) -> Plan:
    """Everybody runs all that is left."""
    tables = (view.running, view.waiting)
    return Plan(grants=[(int(r), int(n)) for t in tables for r, n in zip(t.id, t.left, strict=True)])


class Bench:
    """A live engine on a clock that stands still but for its steps, over a tiny model."""

    def __init__(
        self, family: str = "qwen3", policy: Any = None, *, late: bool = False, max_len: int = 256, **config: Any
    ) -> None:
        settings = EngineConfig(**{"kv_blocks": 64, "max_seqs": 8, "max_len": max_len, **config})
        none = np.zeros(0)
        state = fresh_state(Workload(none, none, none), settings, PROFILE, 0, steps=False, tokens=False)
        spec = EngineSpec(settings, PROFILE, settings.kv_blocks)
        policy = Vllm() if policy is None else Scripted(policy) if not isinstance(policy, CompiledPolicy) else policy
        if isinstance(policy, CompiledPolicy):
            policy.prepare(state, spec, 0)
        self.executor = TorchExecutor(
            model(family), kv_blocks=settings.kv_blocks, max_seqs=settings.max_seqs, max_len=max_len,
            block_tokens=settings.block_tokens, host_blocks=settings.host_blocks, late=late,
        )  # fmt: skip
        self.engine = Engine(state, policy, spec, executor=self.executor, clock=lambda: 0.0)

    def submit(self, prompt: I32, max_new: int, *, hashes: Any = None, **sampling: Any) -> int:
        request = self.engine.submit(len(prompt), max_new, hashes=hashes)
        self.executor.add(request, prompt, Sampling(max_new=max_new, **sampling))
        return request

    def is_over(self, request: int) -> bool:
        return bool(self.engine.state.req["state"][request] == ENDED)

    def run(self) -> None:
        while self.engine.step():
            pass
        self.executor.flush()

    def text(self, request: int) -> list[int]:
        found: list[int] = self.executor.outputs(request).ids.tolist()
        return found


def answers(family: str, asked: list[tuple[I32, int]], policy: Any = None, **config: Any) -> list[list[int]]:
    """Greedy outputs of requests that are all there at once."""
    bench = Bench(family, policy, **config)
    requests = [bench.submit(prompt, count) for prompt, count in asked]
    bench.run()
    return [bench.text(request) for request in requests]
