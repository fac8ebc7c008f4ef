"""Schedulers for a live engine: a rule by name, or a learned policy from a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import BUNDLE
from dispatchgym.agents.learned_llm import load_bundle
from dispatchgym.agents.llm_policy import ChoicePolicy
from dispatchgym.agents.simulation.names import scheduler
from dispatchgym.envs.api import InvalidPlanError, UsageError
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, Policy
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.llm.menu import Menu
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from dispatchgym.solvers.llm.vllm import Vllm

FAMILY = "llm"
"""Of bundles that decide about engines."""
REHEARSED = 24
"""Requests that a scheduler must serve in simulated time before it decides about real ones."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A scheduler that is ready to decide.

    Attributes:
        name: as it was asked for.
        version: digest of a bundle, "" for a rule.
        policy: decides.
        fallback: decides where the policy cannot.
        is_quick: none of the policy's decisions is known to take long; see `Seat`.
    """

    name: str
    version: str
    policy: Policy | CompiledPolicy
    fallback: Policy | CompiledPolicy
    is_quick: bool = False


def load_scheduler(name: str) -> Loaded:
    """The scheduler of that name, with constants behind pluses (`sarathi+chunk=256`), or of a bundle.

    Raises:
        UnknownNameError: no such scheduler. BundleError: a bundle that cannot be trusted.
        UsageError: it needs true output lengths, which no live engine knows; a bundle of another world.
    """
    if name.startswith(BUNDLE):
        return _from_bundle(name)
    policy = scheduler(name)()
    if policy.oracle:
        raise UsageError(
            f"scheduler {name} reads true output lengths, which a live engine cannot know; "
            f"{name.partition('+')[0]}+lengths=max takes what clients allow, where it has that constant"
        )
    return Loaded(name, "", policy, Vllm(), is_quick=not isinstance(policy, Menu))


def _from_bundle(name: str) -> Loaded:
    folder = bundles.find(name.removeprefix(BUNDLE))
    manifest = bundles.manifest_of(folder)
    if manifest["family"] != FAMILY:
        raise UsageError(f"{name} is a policy for {manifest['family']}, not for LLM engines")
    loaded = load_bundle(folder)
    policy = ChoicePolicy(loaded.runtime, loaded.engine, name)
    return Loaded(name, loaded.digest[:16], policy, SCHEDULERS[loaded.manifest["fallback"]](), is_quick=True)


def find_bundle(name: str, folder: Path | None) -> str:
    """`bundle:NAME` as the loader finds it: a bundle in `folder`, or a shipped one.

    Raises:
        UsageError: the name would lead out of the folder. UnknownNameError: there is no such bundle.
    """
    plain = name.removeprefix(BUNDLE)
    if Path(plain).name != plain or plain in ("", ".", ".."):
        raise UsageError("a bundle is asked for by its name in the server's bundle folder, not by a path")
    if folder is not None and (folder / plain).exists():
        return f"{BUNDLE}{folder / plain}"
    if plain not in bundles.shipped():
        raise unknown_name("bundle", plain, [*bundles_in(folder), *bundles.shipped(FAMILY)])
    return name


def bundles_in(folder: Path | None) -> list[str]:
    """Names of the bundles in a folder; none without one."""
    return sorted(each.name for each in folder.iterdir() if (each / bundles.MANIFEST).is_file()) if folder else []


def rehearse(loaded: Loaded, spec: EngineSpec) -> None:
    """Let both of a scheduler's parts serve a few requests in simulated time: what they compile, they compile now.

    Raises:
        InvalidPlanError: the policy raises or gives no plan.
    """
    rng = np.random.default_rng(0)
    longest = max(2, min(512, spec.kv_blocks * spec.config.block_tokens // 4, spec.config.max_len or 512))
    prompts, outputs = rng.integers(1, longest // 2 + 1, (2, REHEARSED), np.int32)
    ptr = np.concatenate([[0], np.cumsum(prompts // spec.config.block_tokens)])
    work = Workload(
        arrival_s=np.cumsum(rng.exponential(0.02, REHEARSED)), prompt_tokens=prompts, output_tokens=outputs,
        ttft_slo_s=np.full(REHEARSED, 1.0), tenant=np.arange(REHEARSED, dtype=np.int32) % 3, hash_ptr=ptr,
        hashes=rng.integers(1, 2**62, int(ptr[-1])), hash_block=spec.config.block_tokens,
    )  # fmt: skip
    for policy in (loaded.policy, loaded.fallback):
        state = fresh_state(work, spec.config, spec.profile, 0, steps=False, tokens=False)
        engine = Engine(state, policy, spec)
        start(policy, engine)
        for _ in range(400 * REHEARSED):
            if not engine.step():
                break
        else:
            raise InvalidPlanError(f"scheduler {loaded.name} did not get {REHEARSED} requests done in rehearsal")


def start(policy: Policy | CompiledPolicy, engine: Engine) -> None:
    """A new run of the policy begins, on this engine."""
    if isinstance(policy, CompiledPolicy):
        policy.prepare(engine.state, engine.spec, 0)
    else:
        policy.reset(engine.spec, 0)
