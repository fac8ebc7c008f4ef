"""`dispatchgym train`: train a policy from a configuration file, or go on with a run."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dispatchgym.agents.training import config as configuration
from dispatchgym.agents.training.config import TrainConfig
from dispatchgym.agents.training.evaluations import GREEDY, Evaluations
from dispatchgym.agents.training.run import train
from dispatchgym.envs.api import UsageError

PLAIN_EVERY_S = 10.0
"""Pause between plain lines where the output is not a terminal."""

CHANGEABLE = ("iterations=", "ppo.", "rollout.", "validation.", "tracking.", "checkpoint_every=", "threads=", "device=")
"""Overrides that --resume accepts; each use is noted in resumed.jsonl."""


class Bar(Progress):
    """A bar with a line of text below it, which would push the bar aside on a narrow terminal."""

    said = "starting"

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the line cut to the terminal's width."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.said, no_wrap=True, overflow="ellipsis")


class Watch:
    """Shows how far a training is: a bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, config: TrainConfig, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = config.iterations
        self.evaluations = Evaluations(config.validation.rules)
        self.console = console
        self.clock = clock
        self.printed = -math.inf
        self.began = 0.0
        self.first = 0  # iterations done when the clock was started
        self.done = 0
        self.task = TaskID(0)
        self.bar: Bar | None = None
        if console.is_terminal:
            self.bar = Bar(
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self.task = self.bar.add_task("", total=self.total)
            self.bar.start()

    def __call__(self, iteration: int, row: Mapping[str, float], timing: Mapping[str, float]) -> None:
        self.evaluations.add(row)
        self.done = iteration
        if "decisions_per_s" not in timing:  # the evaluation at the start, or an iteration of an earlier session
            self.began, self.first = self.clock(), iteration
            if self.bar is not None:
                self.bar.said = self.judged().removeprefix("; ")
                self.bar.update(self.task, completed=iteration)
            return
        said = f"{timing['decisions_per_s']:,.0f} decisions/s{self.judged()}"
        now = self.clock()
        if self.bar is not None:
            self.bar.said = said
            self.bar.update(self.task, completed=iteration)
        elif now - self.printed >= PLAIN_EVERY_S or iteration == self.total:
            self.printed = now
            left = (now - self.began) / (iteration - self.first) * (self.total - iteration)
            self.console.print(f"{iteration}/{self.total} iterations, {said}; about {left:.0f} s left", markup=False)

    def judged(self) -> str:
        """The latest evaluation, the best so far, and the rule to beat; empty before the first."""
        best = self.evaluations.best
        if best is None:
            return ""
        rule = self.evaluations.best_rule()
        beside = f" (best rule {rule.rule} {rule.gap:.2f} %)" if rule else ""
        return f"; validation {self.evaluations.rows[-1][GREEDY]:.2f} %, best {best[GREEDY]:.2f} %{beside}"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def main(argv: list[str]) -> int:
    """Parse the arguments, train, say where the results are; returns the exit code."""
    options = _parser().parse_intermixed_args(argv)
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
    watch = Watch(config, console)
    try:
        train(config, folder, watch, resume=options.resume is not None)
    except KeyboardInterrupt:
        watch.close()
        console.print(
            f"interrupted after iteration {watch.done}; go on with: dispatchgym train --resume {folder}", markup=False
        )
        raise
    finally:
        watch.close()
        if (folder / "report.html").exists():
            console.print(f"report: {folder / 'report.html'}", markup=False)
    console.print(f"{config.name}: {_result(watch.evaluations)}; weights in {folder / 'best'}", markup=False)
    return 0


def _result(evaluations: Evaluations) -> str:
    """What the training came to, in one sentence."""
    assert evaluations.best is not None
    rule = evaluations.best_rule()
    beside = f", best rule {rule.rule} {rule.gap:.2f} %" if rule else ""
    return (
        f"validation gap {evaluations.rows[0][GREEDY]:.2f} % at the start, "
        f"{evaluations.best[GREEDY]:.2f} % at best{beside}"
    )


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
        "config.resolved.yaml, metrics.jsonl, timing.jsonl, checkpoints/, best/ (by validation), report.html, and "
        "wandb/ for `wandb sync`: nothing is sent unless tracking.wandb=online.",
        epilog=f"keys and their defaults:\n{keys}\n\n"
        "example: dispatchgym train configs/jobshop/taillard.yaml seed=1 ppo.entropy=0.01 --out runs/one",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", type=Path, help="YAML file; its keys are listed below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, such as ppo.entropy=0.01")
    parser.add_argument("--out", type=Path, help="run directory (default: runs/NAME)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run from its latest checkpoint")
    return parser
