"""What runs the steps of engines, by name: the simulator, or a model on a device."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.executor import Executor
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.workload import Workload

SIMULATED, TINY, AUTO = "simulated", "random:tiny", "auto"
NAMED = "dispatchgym.llm_executors"
"""Entry points of this group give short names to module:attr; what serves models adds its own ("torch") there."""


class Backend(Protocol):
    """Runs steps of one engine after another; "module:attr" of a class of `Backend`s is called with model and
    device."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What a reader of results should know: model, device."""

    def fit(self, config: EngineConfig, workload: Workload) -> EngineConfig:
        """The configuration, pools cut to what is there.

        Raises:
            UsageError: the workload cannot run here.
        """

    def executor(self, state: State, workload: Workload) -> Executor:
        """For the engine with these arrays, of a configuration that fits; the one before is done with."""


@dataclass(frozen=True, slots=True)
class RunsOn:
    """A backend by its names. Small: it travels to worker processes.

    Args:
        executor: "simulated", "torch", or module:attr of a class of `Backend`s.
        model: Hugging Face directory, or random:tiny, random:1b, random:8b.
        device: cuda, cpu, or auto for a GPU where there is one.
    """

    executor: str = SIMULATED
    model: str = TINY
    device: str = AUTO

    @property
    def is_simulated(self) -> bool:
        """Step times come from a profile; there is no backend."""
        return self.executor == SIMULATED

    def backend(self) -> Backend:
        """The backend, one for each of its names in a process.

        Raises:
            UsageError: there is none of that name, or its model cannot be loaded.
        """
        return _backend(self)


SIMULATOR = RunsOn()


@functools.lru_cache(maxsize=1)  # two models might not fit beside each other
def _backend(named: RunsOn) -> Backend:
    known = {each.name: each.value for each in entry_points(group=NAMED)}
    module, _, attribute = known.get(named.executor, named.executor).partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
        inspect.signature(make).bind(named.model, named.device)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        names = ", ".join((SIMULATED, *known))
        raise UsageError(
            f"executor {named.executor!r}: write {names} or module:attr, which takes model and device ({error})"
        ) from error
    made: Backend = make(named.model, named.device)
    return made
