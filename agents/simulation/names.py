"""Schedulers by the names people type: `vllm`, with constants of its own `sarathi+chunk=256`, or `bundle:NAME`."""

from __future__ import annotations

import inspect
import math
from functools import partial

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import BUNDLE
from dispatchgym.agents.learned_llm import LearnedEngine
from dispatchgym.agents.simulation.runs import Make
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.llm.schedulers import SCHEDULERS


def scheduler(text: str) -> Make:
    """What makes a fresh scheduler of that name, with the constants behind its pluses.

    Raises:
        UnknownNameError: no such scheduler, bundle or constant. UsageError: a constant that is no NAME=VALUE, or of the
            wrong kind.
        BundleError: a bundle that cannot be trusted.
    """
    name, *constants = text.split("+")
    if name not in SCHEDULERS and not name.startswith(BUNDLE):
        raise unknown_name("scheduler", name, [*SCHEDULERS, *bundles.typed("llm")])
    made = SCHEDULERS[name] if not name.startswith(BUNDLE) else partial(LearnedEngine, name.removeprefix(BUNDLE))
    if name.startswith(BUNDLE):
        made()  # answers before anything runs
    known = {
        each.name: each.default
        for each in inspect.signature(made).parameters.values()
        if isinstance(each.default, int | float | str)  # what can be typed
    }
    given = dict(map(parameter, constants))
    for each, value in given.items():
        if each not in known:
            raise unknown_name(f"constant of scheduler {name}", each, known)
        if not _fits(value, known[each]):
            raise UsageError(f"scheduler {name}: {each}={value} is not {_kind(known[each])}, such as {known[each]}")
    return partial(made, **given)


def _fits(value: float | bool | str, default: float | bool | str) -> bool:
    """The value is of the default's kind; a whole number is a number too."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return type(value) is type(default)


def _kind(default: float | bool | str) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[type(default)]


def parameter(text: str) -> tuple[str, int | float | bool | str]:
    """Name and value of a NAME=VALUE; the value a number or a truth where it reads as one.

    Raises:
        UsageError: it is none.
    """
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageError(f"{text!r} is no NAME=VALUE, such as distribution=2")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
