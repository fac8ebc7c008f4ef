"""wandb as the tracker of a run: without an account, inside the run directory, and never in the training's way."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.logger import Logger, configure

from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.agents.evaluation.machine import machine, versions
from dispatchgym.agents.plain_values import to_mapping
from dispatchgym.agents.shop_world import POLICY, Pictured
from dispatchgym.agents.training.config import TrainConfig, load
from dispatchgym.agents.training.evaluations import GREEDY, Evaluations
from dispatchgym.envs.api import UsageError

if TYPE_CHECKING:
    from wandb import Run

LOG = logging.getLogger(__name__)

INIT_S = 30.0
"""A server that has not answered by then is done without."""

FINISH_S = 120.0
"""An upload that is not done so long after the training is left to `wandb sync`."""


FLUSH_S = 1.0
"""What a killed run may lack in wandb's log file; its own files lack nothing."""


def require_key(what: str) -> None:
    """Check that wandb can be asked to do `what`.

    Raises:
        UsageError: WANDB_API_KEY is not set.
    """
    if not os.environ.get("WANDB_API_KEY"):
        raise UsageError(f"{what} needs wandb's key; set WANDB_API_KEY")


def payload(row: Mapping[str, Any], timing: Mapping[str, float], evaluations: Evaluations) -> dict[str, Any]:
    """What the tracker is told of an iteration: its row, `speed/...`, and beside an evaluation the rules it is held to.

    Rules are judged once; they are told again with every evaluation, so that a chart shows them as a line.
    """
    told = dict(row) | {f"speed/{name}": value for name, value in timing.items()}
    if GREEDY in row:
        told |= evaluations.rules | evaluations.ahead(row)
    return told


def evaluation_table(evaluations: Evaluations) -> tuple[list[str | int], list[list[Any]]]:
    """Columns and rows: every evaluation, over all sizes and on each, the policy beside every rule."""
    rules = [rule for rule in evaluations.names if f"validation/{rule}" in evaluations.rules]
    data = [
        [
            row["iteration"],
            size or "all",
            row[f"{GREEDY}/{size}" if size else GREEDY],
            *(evaluations.rules[f"validation/{rule}/{size}" if size else f"validation/{rule}"] for rule in rules),
        ]
        for row in evaluations.rows
        for size in ("", *evaluations.sizes)
    ]
    return ["iteration", "size", "policy", *rules], data


class Tracker:
    """A run's entry in wandb. Whatever goes wrong there is said once, and the training goes on.

    Everything that wandb writes, staged artifacts included, lies in `wandb/` of the run directory.

    Raises:
        UsageError: the run is to be sent online and there is no key.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        if config.tracking.wandb == "online":
            require_key("tracking.wandb=online")
        self.config = config
        self.folder = folder
        self.evaluations = Evaluations(config.validation.rules)
        self._evaluated = 0
        self._has_failed = False
        self._rule_pictures: dict[str, npt.NDArray[np.uint8]] = {}
        self._run: Run | None = None
        self._open = ExitStack()
        if config.tracking.wandb != "disabled":
            with self._careful():
                self._run = self._open.enter_context(_entry(config, folder))

    def remember(self, row: Mapping[str, Any]) -> None:
        """Take note of a row that an earlier session has logged."""
        self._evaluated += self.evaluations.add(row)

    def log(self, row: Mapping[str, Any], timing: Mapping[str, float], pictured: Sequence[Pictured]) -> None:
        """Tell of one iteration; with an evaluation, now and then, show the schedules."""
        self.remember(row)
        if self._run is None:
            return
        with self._careful():
            told = payload(row, timing, self.evaluations)
            is_due = self._evaluated % self.config.tracking.every == 0 or row["iteration"] == self.config.iterations
            if GREEDY in row and pictured and is_due:
                told["schedules"] = self._pictures(int(row["iteration"]), pictured[0])
            self._run.log(told, step=int(row["iteration"]))

    def finish(self, succeeded: bool) -> None:
        """Add the table of evaluations and the best weights, and close; a second call does nothing."""
        with self._careful():
            if self._run is not None:
                import wandb

                columns, data = evaluation_table(self.evaluations)
                if data:
                    self._run.log({"evaluations": wandb.Table(columns=columns, data=data)})
                if (self.folder / "best").is_dir():
                    best = self.evaluations.best or {}
                    _add_artifact(self._run, self.folder / "best", f"{self.config.name}-best", "weights", best)
                self._run.finish(exit_code=0 if succeeded else 1)
        with self._careful():
            self._open.close()
        self._run = None

    def _pictures(self, iteration: int, pictured: Pictured) -> list[Any]:
        """The policy's schedule, and the best rule's to compare."""
        import wandb

        from dispatchgym.envs.jobshop import gantt  # loads matplotlib: only for runs that draw

        def drawn(policy: str) -> npt.NDArray[np.uint8]:
            return gantt.draw(pictured.instance, pictured.schedules[policy], pictured.scenario)

        images = [wandb.Image(drawn(POLICY), caption=f"{pictured.name}: policy, iteration {iteration}")]
        best = self.evaluations.best_rule()
        if best is not None and best.rule in pictured.schedules:
            if best.rule not in self._rule_pictures:
                self._rule_pictures[best.rule] = drawn(best.rule)
            images.append(wandb.Image(self._rule_pictures[best.rule], caption=f"{pictured.name}: rule {best.rule}"))
        return images

    @contextmanager
    def _careful(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker or its service comes up with: no reason to lose a training
            self._run = None
            if not self._has_failed:
                LOG.warning("wandb failed (%s); the run directory holds everything without it", _said(error))
            self._has_failed = True


def log_bundle(run: Path, bundle: Path) -> bool:
    """Add an exported bundle to the run's entry in wandb, as an artifact; False where the run has none."""
    if not _identity(run).exists():
        return False
    config = load(run / "config.resolved.yaml")
    try:
        with _entry(config, run) as entry:
            _add_artifact(entry, bundle, bundle.resolve().name, "bundle", {})
            entry.finish()
    except Exception as error:  # the bundle is written all the same
        LOG.warning("the bundle could not be added to the run's entry in wandb (%s)", _said(error))
        return False
    return True


def tensorboard_logger(folder: Path) -> Logger:
    """Stable-Baselines3's logger, writing TensorBoard's event files into tensorboard/ of the run directory.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    try:
        return configure(str(folder / "tensorboard"), ["tensorboard"])
    except (ImportError, AssertionError) as error:
        raise UsageError(
            "tracking.tensorboard=true needs TensorBoard: pip install 'dispatchgym[tensorboard]'"
        ) from error


@contextmanager
def _entry(config: TrainConfig, folder: Path) -> Iterator[Run]:
    """The run's entry, begun or gone on with; all of wandb's files lie in the run directory meanwhile."""
    home = folder.resolve() / "wandb"
    home.mkdir(parents=True, exist_ok=True)
    places = {f"WANDB_{kind}_DIR": str(home / kind.lower()) for kind in ("DATA", "CACHE", "CONFIG", "ARTIFACT")}
    quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    with _environment({**places, **quiet, "WANDB_DIR": str(home.parent)}):
        import wandb  # reads the environment on import

        others = wandb.run  # somebody's own run in this process, which is none of our business
        try:
            entry = wandb.init(
                project=config.tracking.project,
                entity=config.tracking.entity,
                id=_run_id(folder),
                name=config.name,
                dir=str(home.parent),
                config={**to_mapping(config), "machine": machine(), "versions": versions()},
                mode="online" if config.tracking.wandb == "online" else "offline",
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    x_disable_stats=True,
                    x_disable_meta=True,
                    x_disable_machine_info=True,
                    init_timeout=INIT_S,
                    finish_timeout=FINISH_S,
                    x_transaction_log_flush_interval=FLUSH_S,
                ),
            )
            entry.define_metric("*", step_metric="iteration")
            yield entry
        finally:
            if others is None:
                wandb.teardown()  # the service remembers the folders it was started with


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _identity(folder: Path) -> Path:
    return folder / "wandb" / "run-id"


def _run_id(folder: Path) -> str:
    """Drawn once for a run directory, so that a resumed run goes on under its id."""
    path = _identity(folder)
    if not path.exists():
        with atomic_write(path) as file:
            file.write(secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


def _add_artifact(entry: Run, folder: Path, name: str, kind: str, figures: Mapping[str, Any]) -> None:
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), kind, metadata=dict(figures))
    artifact.add_dir(str(folder))
    entry.log_artifact(artifact)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
