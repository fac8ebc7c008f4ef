"""Machine code of the engine and of its schedulers: compiled once on a machine, kept on disk."""

from __future__ import annotations

import numpy as np

from dispatchgym.agents import bundle as bundles
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import EngineSpec
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.llm.schedulers import FAMILY, load_scheduler, rehearse
from dispatchgym.solvers.llm.vllm import Vllm

RULES = ("vllm", "edf")
"""One that runs inside the engine, one that is asked for plans: the others need the same code."""


def compile_engine() -> None:
    """Run everything once that a live engine compiles at its first use."""
    spec = EngineSpec(EngineConfig(kv_blocks=512, max_len=4096), load_profile("h200-8b"), 512, slo_kind="mean")
    for name in (*RULES, *bundles.typed(FAMILY)):
        rehearse(load_scheduler(name), spec)
    none = np.zeros(0, np.int32)
    empty = Workload(np.zeros(0), none, none, hash_block=spec.config.block_tokens)
    state = fresh_state(empty, spec.config, spec.profile, 0, steps=False, tokens=False)
    engine = Engine(state, Vllm(), spec, clock=lambda: 0.0)
    number = engine.submit(8, 4)
    engine.abort(number)
    engine.release(number)
