"""`dispatchgym fidelity`: how well a profile foretells what a real model does under the same traffic."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from dispatchgym.agents.evaluation.files import atomic_write, make_writable
from dispatchgym.agents.evaluation.machine import machine, versions
from dispatchgym.agents.evaluation.progress import progress
from dispatchgym.agents.simulation.names import parameter, scheduler
from dispatchgym.agents.simulation.runs import with_slos
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.executor.build import fit_config, make_executor
from dispatchgym.serving.executor.fidelity import NUDGE, Twin, at_load, kendall_tau, twin
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.serving.executor.trace_tokens import TraceTokens


@dataclass(frozen=True, slots=True)
class Options:
    """Run a workload on a real model and on its profile, under the same schedulers, and compare what users would feel.

    Time stands still between steps: requests arrive by the clock of the steps' own lengths, so a light load takes no
    longer than a heavy one. Outputs are as long as the workload says.

    Example: dispatchgym fidelity --model random:tiny --profile tiny.json --trace azure-2023-conv-twin --requests 60
    """

    model: str
    """Hugging Face directory, or random:SIZE, as for calibrate."""

    profile: str
    """The profile, by name or file; see calibrate."""

    trace: str = "azure-2023-conv-twin"
    """Traffic, as for simulate."""

    schedulers: str = "vllm"
    """Names with commas between; of three and more the two rankings by goodput are compared."""

    loads: tuple[float, ...] = (0.75,)
    """Shares of what the simulated engine can take under the first scheduler."""

    requests: int = 200
    """Take the first so many that the engine can hold."""

    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Parameters of a generator."""

    ttft_slo: float = 2.0
    """Bound in seconds on the time to the first token, for goodput."""

    tpot_slo: float = 0.1
    """Bound in seconds per token after the first."""

    device: str = "auto"
    """cuda, cpu, or auto for a GPU where there is one."""

    kv_blocks: int = 0
    """Blocks of the KV pool; 0 for as many as the device holds."""

    host_blocks: int = 0
    """Blocks on the host, for schedulers that swap."""

    block_tokens: int = 16
    """Tokens of a KV block."""

    max_seqs: int = 256
    """Most requests that run at once."""

    max_len: int = 0
    """Longest text; 0 for the model's own. Requests whose outputs would not fit are left out."""

    token_budget: int = 8192
    """Most tokens of a step."""

    seed: int = 0
    """Of the workload and of schedulers that draw."""

    json: Path | None = None
    """Write the comparison here too."""

    steps: Path | None = None
    """Write every step of the model here, a JSON line each."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        DispatchGymError: the model, the profile or the workload cannot be loaded.
    """
    options = tyro.cli(Options, args=argv, prog="dispatchgym fidelity", config=(tyro.conf.FlagCreatePairsOff,))
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    if not options.loads or not all(load > 0 for load in options.loads):
        raise UsageError(f"--loads {options.loads}: give shares above 0, such as 0.5 0.75 1")
    if options.requests < 1:
        raise UsageError(f"--requests is {options.requests}; it must be 1 or more")
    makers = {name: scheduler(name) for name in options.schedulers.replace(" ", "").split(",") if name}
    if not makers:
        raise UsageError(f"--schedulers {options.schedulers!r}: name one at least, such as vllm")
    profile = load_profile(options.profile)
    if options.json is not None:
        make_writable(options.json.parent, 1 << 20)
    model = open_model(options.model, options.device)
    config = fit_config(
        model,
        EngineConfig(
            block_tokens=options.block_tokens, kv_blocks=options.kv_blocks, host_blocks=options.host_blocks,
            max_seqs=options.max_seqs, max_len=options.max_len, token_budget=options.token_budget,
        ),
    )  # fmt: skip
    workload = _workload(options, config)
    executor = make_executor(model, config)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    with progress(len(makers) * len(options.loads), err) as advance:
        for load in options.loads:
            arriving = at_load(workload, load, next(iter(makers.values())), config, profile)
            twins = []
            for name, make in makers.items():
                on_model = partial(_renewed, executor, arriving)
                twins.append(twin(name, make, arriving, config, profile, on_model, options.seed))
                advance(f"{name} at {load:.0%}")
            _say(twins, load, out)
            rows += [_row(each, load) for each in twins]
            lines += [
                json.dumps({"scheduler": each.scheduler, "load": load, **asdict(step)})
                for each in twins for step in each.costs
            ]  # fmt: skip
    if options.json is not None:
        with atomic_write(options.json) as file:
            file.write(
                json.dumps({"command": argv, "machine": machine(), "versions": versions(), "runs": rows}, indent=1)
            )
    if options.steps is not None:
        with atomic_write(options.steps) as file:
            file.write("\n".join(lines) + "\n")
    return 0


def _workload(options: Options, config: EngineConfig) -> Workload:
    whole = workloads.load(options.trace, seed=options.seed, parameters=dict(map(parameter, options.set)))
    fits = np.flatnonzero(whole.prompt_tokens.astype(np.int64) + whole.output_tokens <= config.max_len)
    if len(fits) < 2:
        raise UsageError(
            f"--trace {options.trace}: hardly a request fits into {config.max_len} tokens; raise --max-len"
        )
    taken = whole.take(fits[: options.requests])
    most = np.minimum(taken.max_new_tokens, config.max_len - taken.prompt_tokens)
    return with_slos(replace(taken, max_new_tokens=most), options.ttft_slo, options.tpot_slo)


def _renewed(executor: TorchExecutor, workload: Workload, state: State) -> TorchExecutor:
    """The executor for a new engine, whose requests' texts follow the workload."""
    executor.renew(TraceTokens(workload, executor.model.spec.vocabulary, state))
    return executor


def _say(twins: list[Twin], load: float, out: Console) -> None:
    for each in twins:
        columns = ("", "model", "profile", "ratio - 1", f"if {NUDGE:.0%} faster", f"if {NUDGE:.0%} slower")
        table = Table(*columns, title=f"{each.scheduler} at {load:.0%} load", box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, (real, simulated, *nudged) in each.compared():
            ratios = [f"{value / real - 1:+.1%}" if real else "" for value in (simulated, *nudged)]
            table.add_row(name, f"{real:.4g}", f"{simulated:.4g}", *ratios)
        out.print(table)
        out.print(
            f"steps: {len(each.step_errors)}, mean error {each.mape:.1%}, worst tenth {each.worst_decile:.1%}; "
            f"blocks by the model's own times: {'equal at every step' if each.same_ledger else 'DIFFERENT'}\n",
            soft_wrap=True,
        )
    if len(twins) > 2:
        tau = kendall_tau([each.real.goodput_tps for each in twins], [each.simulated.goodput_tps for each in twins])
        out.print(f"rankings of {len(twins)} schedulers by goodput: Kendall tau {tau:.2f}\n")


def _row(each: Twin, load: float) -> dict[str, Any]:
    return {
        "scheduler": each.scheduler,
        "load": load,
        "steps": len(each.step_errors),
        "step_mape": each.mape,
        "step_worst_decile": each.worst_decile,
        "same_ledger": each.same_ledger,
        "real": each.real.plain(),
        "simulated": each.simulated.plain(),
        "faster": each.faster.plain(),
        "slower": each.slower.plain(),
    }
