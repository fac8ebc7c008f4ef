"""Use an installed dispatchgym from outside its checkout: smoke.py CHECKOUT."""

import importlib.util
import sys
from pathlib import Path

import gymnasium

import dispatchgym
from dispatchgym.envs import ENVS


def main(checkout: str) -> None:
    """Exit with a message if the import is not the installed one or leaves names of its own."""
    package = Path(dispatchgym.__file__).resolve().parent
    if package.is_relative_to(Path(checkout).resolve()):
        sys.exit(f"error: dispatchgym was imported from the checkout: {package}")
    if links := [p.name for p in package.rglob("*") if p.is_symlink()]:
        sys.exit(f"error: the installed package holds links: {', '.join(links)}")
    for name in ("envs", "solvers", "agents", "serving", "dashboards", "configs"):
        if importlib.util.find_spec(name) is not None:
            sys.exit(f"error: `import {name}` works; only `dispatchgym.{name}` must")
    for name in ENVS:
        env = gymnasium.make(name)
        observation, _ = env.reset(seed=0)
        if observation not in env.observation_space:
            sys.exit(f"error: the first observation of {name} lies outside its space")
    print(f"wheel check: all of {', '.join(ENVS)} can be made and reset")
    print(f"wheel check: dispatchgym {dispatchgym.__version__} imports from the fresh environment, no other name does")


if __name__ == "__main__":
    main(*sys.argv[1:])
