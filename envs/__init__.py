"""What a problem is: instances, dynamics, observations, metrics and drawing. Never imports torch."""

from typing import NamedTuple


class EnvEntry(NamedTuple):
    """Where an id's single and natively vectorised environments live, and the arguments that make it what it is."""

    single: str
    vector: str
    arguments: dict[str, str]


_SHOP = "dispatchgym.envs.jobshop.env:ShopEnv", "dispatchgym.envs.jobshop.vector:ShopVectorEnv"
_CLUSTER = "dispatchgym.envs.packing.env:PackingEnv", "dispatchgym.envs.packing.vector:PackingVectorEnv"
_ENGINE = "dispatchgym.envs.llm.env:LLMEngineEnv", "dispatchgym.envs.llm.vector:LLMEngineVectorEnv"
ENVS = {
    "dispatchgym/JobShop-v0": EnvEntry(*_SHOP, {"variant": "jssp"}),
    "dispatchgym/BlockingJobShop-v0": EnvEntry(*_SHOP, {"variant": "bws"}),
    "dispatchgym/InterruptingJobShop-v0": EnvEntry(*_SHOP, {"variant": "isbjssp"}),
    "dispatchgym/PodPacking-v0": EnvEntry(*_CLUSTER, {"world": "pods"}),
    "dispatchgym/GpuPacking-v0": EnvEntry(*_CLUSTER, {"world": "gpus"}),
    "dispatchgym/LLMEngine-v0": EnvEntry(*_ENGINE, {}),
}
"""Gymnasium id -> its environments."""


def register_envs() -> None:
    """Make the ids known to Gymnasium; `import dispatchgym` does it."""
    import gymnasium

    for name, entry in ENVS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name, entry_point=entry.single, vector_entry_point=entry.vector, kwargs=dict(entry.arguments)
            )
