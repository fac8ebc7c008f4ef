"""What a problem is: instances, dynamics, observations, metrics and drawing. Never imports torch."""

ENVS = {
    "dispatchgym/JobShop-v0": "dispatchgym.envs.jobshop.env:JobShopEnv",
    "dispatchgym/BlockingJobShop-v0": "dispatchgym.envs.jobshop.env:BlockingJobShopEnv",
    "dispatchgym/InterruptingJobShop-v0": "dispatchgym.envs.jobshop.env:InterruptingJobShopEnv",
}
"""Gymnasium id -> "module:class"."""


def register_envs() -> None:
    """Make the ids known to Gymnasium; `import dispatchgym` does it."""
    import gymnasium

    for name, entry_point in ENVS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=entry_point)
