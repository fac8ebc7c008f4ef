"""`dispatchgym calibrate`: measures steps of a model here and now, and writes a profile for the simulator."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console

from dispatchgym.agents.evaluation.files import atomic_write, make_writable
from dispatchgym.agents.evaluation.machine import machine, versions
from dispatchgym.agents.evaluation.progress import progress
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import FORMAT, Profile
from dispatchgym.serving.executor.build import fit_config, make_executor, rough_profile
from dispatchgym.serving.executor.measured import Measured, load_measured
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.sweep import PASSES, Bench, grid, measure_all, random_mixes
from dispatchgym.serving.executor.weights import Model

QUICK = 40
"""Mixes that a quick sweep measures."""
LEAST_LEN = 256
"""Tokens of the longest text, at least, over which a sweep says something."""


@dataclass(frozen=True, slots=True)
class Options:
    """Measure how long steps of a model take on this machine, and write a profile with which `simulate` foretells them.

    Example: dispatchgym calibrate --model random:tiny --out tiny.json

    Example: dispatchgym calibrate --model /models/Llama-3.1-8B --name h200-8b --out h200-8b.json --steps steps.jsonl

    Example: dispatchgym calibrate --refit steps.jsonl --out h200-8b.json
    """

    out: Path
    """The profile to write; `simulate --profile FILE` reads it."""

    model: str = ""
    """Hugging Face directory, or random:tiny, random:1b, random:8b for random weights."""

    refit: Path | None = None
    """Measure nothing: fit to the steps in this file, which `--steps` wrote."""

    name: str = ""
    """Of the profile; the file's, if left out."""

    device: str = "auto"
    """cuda, cpu, or auto for a GPU where there is one."""

    kv_blocks: int = 0
    """Blocks of the KV pool; 0 for as many as the device holds."""

    block_tokens: int = 16
    """Tokens of a KV block."""

    max_seqs: int = 256
    """Most requests that run at once."""

    max_len: int = 0
    """Longest text; 0 for the model's own."""

    token_budget: int = 8192
    """Most tokens of a step."""

    validate: int = 60
    """Random mixes, not fitted to, on which the profile is judged."""

    quick: bool = False
    """Measure a part of the grid alone."""

    steps: Path | None = None
    """Write every measured step here too, a JSON line each."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        DispatchGymError: the model cannot be loaded, or does not fit.
    """
    options = tyro.cli(Options, args=argv, prog="dispatchgym calibrate", config=(tyro.conf.FlagCreatePairsOff,))
    if options.out.suffix != ".json":
        raise UsageError(f"--out {options.out}: a profile is a .json file")
    if bool(options.model) == (options.refit is not None):
        raise UsageError("--model or --refit: give the model to measure, or the steps that were measured before")
    make_writable(options.out.parent, 1 << 20)
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    measured = load_measured(options.refit) if options.refit is not None else _measure(options, err)
    if options.steps is not None:
        measured.save(options.steps)
    profile = measured.profile()
    file = {
        "format": FORMAT,
        "note": f"dispatchgym calibrate {' '.join(argv)}; {machine()}; {versions()}",
        **asdict(replace(profile, name=options.name or options.out.stem)),
    }
    with atomic_write(options.out) as written:
        written.write(json.dumps(file, indent=1) + "\n")
    _say(profile, out)
    out.print(f"profile: {options.out}", soft_wrap=True)
    return 0


def _measure(options: Options, err: Console) -> Measured:
    model = open_model(options.model, options.device)
    config = fit_config(
        model,
        EngineConfig(
            block_tokens=options.block_tokens, kv_blocks=options.kv_blocks, max_seqs=options.max_seqs,
            max_len=options.max_len, token_budget=options.token_budget, max_spec=8,
        ),
    )  # fmt: skip
    if config.max_len < LEAST_LEN:
        raise UsageError(
            f"calibrate: texts of up to {config.max_len} tokens are too short to measure, {LEAST_LEN} would do; "
            "raise --max-len, or --kv-blocks, which must hold one"
        )
    return measure(model, replace(config, host_blocks=min(64, config.kv_blocks)), options, err)


def measure(model: Model, config: EngineConfig, options: Options, err: Console) -> Measured:
    """Steps over the grid and at random, swapping and pausing."""
    executor = make_executor(model, config)
    bench = Bench(executor, config, model.spec.vocabulary)
    rng = np.random.default_rng(1)
    late = executor.is_late
    fitted_to = [*grid(config, late), *random_mixes(config, 2 * options.validate, rng, late)]
    if options.quick:
        fitted_to = fitted_to[:: -(-len(fitted_to) // QUICK)]
    count = min(options.validate, QUICK // 4) if options.quick else options.validate
    judged_on = random_mixes(config, max(1, count), rng, late)
    with progress(PASSES[model.device.type] * (len(fitted_to) + len(judged_on)) + 2, err) as advance:
        steps = measure_all(bench, [*fitted_to, *judged_on], advance)
        blocks = min(config.host_blocks, config.max_len // config.block_tokens - 2)
        per_block = bench.swap_seconds_per_block(blocks)
        advance("swap")
        pause_s = bench.pause_seconds(min(config.token_budget, config.max_len - 8, 2048))
        advance("pause")
    block_bytes = model.spec.kv_bytes_per_token(model.dtype) * config.block_tokens
    rough = replace(
        rough_profile(model, config), pause_s=pause_s, swap_bytes_per_s=block_bytes / per_block,
        graph_sizes=_graph_sizes(model, config),
    )  # fmt: skip
    return Measured(rough, executor.captured_sizes, steps[: len(fitted_to)], steps[len(fitted_to) :])


def _graph_sizes(model: Model, config: EngineConfig) -> tuple[int, ...]:
    if model.device.type != "cuda":
        return ()
    from dispatchgym.serving.executor.graphs import graph_sizes

    torch.cuda.synchronize()
    return tuple(graph_sizes(config.max_seqs))


def _say(profile: Profile, out: Console) -> None:
    for name in (
        "base",
        "weights",
        "token",
        "row",
        "pair",
        "context",
        "chunk",
        "mixed",
        "host",
        "host_mixed",
        "lead",
        "pause",
    ):
        out.print(f"{name:>16} {getattr(profile, name + '_s') * 1e6:14.6f} us")
    for kind in ("decoding", "captured"):
        if (part := getattr(profile, kind)) is not None:
            times = {name[:-2]: seconds for name, seconds in asdict(part).items() if name.endswith("_s")}
            for name, seconds in times.items():
                out.print(f"{f'{kind} {name}':>16} {seconds * 1e6:14.6f} us")
    out.print(f"{'swap':>16} {profile.swap_bytes_per_s / 1e9:14.3f} GB/s")
    for kind, what in (("fitted", "steps it was fitted to"), ("held_out", "random steps it was not")):
        fit = profile.fit
        out.print(
            f"{int(fit[kind + '_steps'])} {what}: mean error {fit[kind + '_mape']:.1%}, P90 {fit[kind + '_p90']:.1%}, "
            f"worst tenth {fit[kind + '_worst_decile']:.1%}"
        )
