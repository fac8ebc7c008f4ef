"""`dispatchgym train`: train a policy from a configuration file, or go on with a run."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dispatchgym.agents.training import config as configuration
from dispatchgym.agents.training.config import TrainConfig
from dispatchgym.agents.training.run import train
from dispatchgym.envs.api import UsageError

PLAIN_EVERY_S = 10.0
"""Pause between plain lines where the output is not a terminal."""

CHANGEABLE = ("iterations=", "ppo.", "rollout.", "validation.", "checkpoint_every=", "threads=", "device=")
"""Overrides that --resume accepts; each use is noted in resumed.jsonl."""


class Watch:
    """Shows how far a training is: a bar on a terminal, a plain line now and then elsewhere.

    Rates go to `timing.jsonl`: metrics.jsonl holds only what is the same in every run with the same seed.
    """

    def __init__(self, total: int, folder: Path, console: Console) -> None:
        self.total = total
        self.folder = folder
        self.console = console
        self.printed = 0.0
        self.judged = ""
        self.task = TaskID(0)
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[said]}", markup=False),
                console=console,
                transient=True,
            )
            self.task = self.bar.add_task("", total=total, said="")
            self.bar.start()

    def __call__(self, iteration: int, row: dict[str, float], timing: dict[str, float]) -> None:
        with (self.folder / "timing.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **{k: round(v, 4) for k, v in timing.items()}}) + "\n")
        if "validation/greedy" in row:
            self.judged = f"; validation {row['validation/greedy']:.2f} %"
        said = f"{timing['decisions_per_s']:,.0f} decisions/s{self.judged}"
        if self.bar is not None:
            self.bar.update(self.task, completed=iteration, said=said)
        elif time.monotonic() - self.printed >= PLAIN_EVERY_S or iteration == self.total:
            self.printed = time.monotonic()
            left = (self.total - iteration) * (timing["rollout_s"] + timing["update_s"])
            self.console.print(f"{iteration}/{self.total} iterations, {said}; about {left:.0f} s left", markup=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def main(argv: list[str]) -> int:
    """Parse the arguments, train, say where the results are; returns the exit code."""
    options = _parser().parse_args(argv)
    console = Console(soft_wrap=True)
    if options.resume is not None:
        folder = options.resume
        given = [str(options.config)] * (options.config is not None) + options.overrides
        config = _of_run(folder, given)
        if given:
            with (folder / "resumed.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"overrides": given}) + "\n")
    else:
        overrides = list(options.overrides)
        path = options.config
        if path is not None and "=" in str(path) and not path.exists():
            overrides.insert(0, str(path))  # no file named: everything at its default but this key
            path = None
        config = configuration.load(path, overrides)
        folder = options.out or Path("runs") / config.name
        if (folder / "metrics.jsonl").exists():
            raise UsageError(f"{folder} holds a run already; name another with --out, or go on with --resume {folder}")
    watch = Watch(config.iterations, folder, console)
    try:
        done = train(config, folder, watch, resume=options.resume is not None)
    finally:
        watch.close()
    start = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    console.print(
        f"{config.name}: validation {start['validation/greedy']:.2f} % above the lower bound at the start "
        f"(rule {config.policy.rule}), {done.best:.2f} % at best; weights in {folder / 'best'}",
        markup=False,
    )
    return 0


def _of_run(folder: Path, overrides: list[str]) -> TrainConfig:
    """The run's own configuration; what shapes problem, network and seed stays as it is."""
    for override in overrides:
        if not override.startswith(CHANGEABLE):
            raise UsageError(
                f"--resume goes on with the run's own configuration; {override!r} cannot change, "
                f"only {', '.join(key.rstrip('.=') for key in CHANGEABLE)} can"
            )
    path = folder / "config.resolved.yaml"
    if not path.exists():
        raise UsageError(f"{folder} is not a run directory: it has no config.resolved.yaml")
    if yaml.safe_load(path.read_text(encoding="utf-8")).get("schema") != configuration.SCHEMA:
        raise UsageError(f"{path}: was written by another version; this one reads schema {configuration.SCHEMA}")
    return configuration.load(path, overrides)


def _parser() -> argparse.ArgumentParser:
    keys = "\n".join(f"  {line}" for line in configuration.describe())
    parser = argparse.ArgumentParser(
        prog="dispatchgym train",
        description="Train a dispatch rule with PPO on generated instances. Writes the run directory: "
        "config.resolved.yaml, metrics.jsonl, timing.jsonl, checkpoints/ and best/ (by validation).",
        epilog=f"keys and their defaults:\n{keys}\n\n"
        "example: dispatchgym train configs/jobshop/classic.yaml seed=1 ppo.entropy=0.01 --out runs/one",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", type=Path, help="YAML file; its keys are listed below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, such as ppo.entropy=0.01")
    parser.add_argument("--out", type=Path, help="run directory (default: runs/NAME)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run from its latest checkpoint")
    return parser
