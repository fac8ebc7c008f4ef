"""Workloads by name: the public traces, their twins, and the shapes that papers use; `load` also takes a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads import files, traces, twins
from dispatchgym.envs.registry import Registry, unknown_name

_HERE = "dispatchgym.envs.llm.workloads"

GENERATORS = Registry(
    "workload",
    {
        "past-future": f"{_HERE}.papers:past_future",
        "flow-prefill": f"{_HERE}.papers:flow_prefill",
        "laps": f"{_HERE}.papers:laps",
        "batch-llm": f"{_HERE}.papers:batch_llm",
        "mc-sf": f"{_HERE}.papers:mc_sf",
        "exspec": f"{_HERE}.papers:exspec",
        "i-dlm": f"{_HERE}.papers:i_dlm",
        "chat": f"{_HERE}.mixes:chat",
        "tenants": f"{_HERE}.mixes:tenants",
        "sessions": f"{_HERE}.mixes:sessions",
    },
)
"""Name -> function of a random generator, a number of requests (None for its own) and the parameters it names."""

DEFAULT_SEED = 0


def names() -> tuple[str, ...]:
    """Every name that `load` knows, files aside."""
    return (*traces.TRACES, *(f"{name}-twin" for name in twins.SHAPES), *GENERATORS)


def load(
    name: str | Path,
    *,
    requests: int | None = None,
    rate_scale: float = 1.0,
    rate_per_s: float | None = None,
    seed: int = DEFAULT_SEED,
    parameters: Mapping[str, Any] | None = None,
) -> Workload:
    """The workload of that name.

    Args:
        name: of a public trace, its -twin, a generator, or the path of a trace file (see `files`).
        requests: the first so many of a trace; how many a twin or a generator makes [as many as the trace has, or the
            generator's usual number].
        rate_scale: 2 makes everything arrive twice as fast.
        rate_per_s: arrivals a second of a twin, of a generator, or of a trace without arrival times.
        seed: of all that is drawn.
        parameters: of a generator, by its argument's name.

    Raises:
        UnknownNameError: no such workload. UsageError: a request that cannot be met, or a trace that is not here.
        InvalidInstanceError: a file that holds no requests; names line and column.
    """
    if requests is not None and requests < 1:
        raise UsageError(f"requests is {requests}; it must be at least 1")
    if not (np.isfinite(rate_scale) and rate_scale > 0):
        raise UsageError(f"rate_scale is {rate_scale}; it must be a positive number")
    if seed < 0:
        raise UsageError(f"seed is {seed}; it must be a whole number >= 0")
    workload = _made(str(name), requests, rate_per_s, seed, dict(parameters or {}))
    if requests is not None and requests != len(workload):
        if requests > len(workload):
            raise UsageError(f"{name} has {len(workload)} requests, not {requests}; its -twin has any number")
        workload = workload.take(np.arange(requests))
    if rate_scale != 1.0:
        workload = replace(workload, arrival_s=workload.arrival_s / rate_scale)
    return workload


def is_file(name: str) -> bool:
    """Whether `load` takes this name for a file."""
    return name.removesuffix(".gz").endswith(files.SUFFIXES) or "/" in name


def parameters_of(name: str) -> dict[str, Any]:
    """Argument -> usual value of a generator."""
    arguments = list(inspect.signature(GENERATORS[name]).parameters.values())[2:]
    return {argument.name: argument.default for argument in arguments}


def _made(name: str, requests: int | None, rate_per_s: float | None, seed: int, parameters: dict[str, Any]) -> Workload:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x6C6C]))
    if name in GENERATORS:
        known = parameters_of(name)
        if rate_per_s is not None:
            if "rate_per_s" not in known:
                raise UsageError(f"workload {name} takes no rate; its requests come when they come")
            parameters = {"rate_per_s": rate_per_s, **parameters}
        for each in parameters:
            if each not in known:
                raise unknown_name(f"parameter of workload {name}", each, known)
        make: Callable[..., Workload] = GENERATORS[name]
        return make(rng, requests, **parameters)
    if parameters:
        raise UsageError(f"{name} takes no parameters; they belong to generators: {', '.join(GENERATORS)}")
    if name.removesuffix("-twin") in twins.SHAPES and name.endswith("-twin"):
        return twins.twin(name.removesuffix("-twin"), rng, requests, rate_per_s)
    if name in traces.TRACES:
        if rate_per_s is not None and not traces.TRACES[name].lengths_only:
            raise UsageError(f"{name} has arrival times of its own; scale them instead of giving a rate")
        return traces.load(name, rate_per_s=rate_per_s, seed=seed)
    if is_file(name):
        return files.read(Path(name), rate_per_s=rate_per_s, seed=seed)
    raise unknown_name("workload", name, names())
