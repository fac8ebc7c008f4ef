"""`dispatchgym dashboard`: show the wandb dashboard of training runs as JSON, or save it in a project."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from dispatchgym.envs.api import UsageError


def main(argv: list[str]) -> int:
    """Parse the arguments and show or publish; returns the exit code."""
    options = _parser().parse_args(argv)
    code: int = options.run(options)
    return code


def _show(options: argparse.Namespace) -> int:
    from dispatchgym.dashboards.training import as_json, workspace

    text = json.dumps(as_json(workspace(project=options.project)), indent=1)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


def _publish(options: argparse.Namespace) -> int:
    from dispatchgym.agents.training.tracking import require_key

    require_key("saving a dashboard")
    from dispatchgym.dashboards.training import workspace

    board = workspace(entity=options.entity, project=options.project)
    try:
        board.save()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the network or the server comes up with
        said = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"wandb did not save the dashboard in {options.entity}/{options.project}: {said}") from error
    Console(soft_wrap=True).print(f"saved: {board.url}", markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dispatchgym dashboard",
        description="The wandb dashboard of training runs: learning, quality by size, PPO health, speed and schedules. "
        "It is code (dashboards/training.py); only `publish` talks to wandb.",
    )
    commands = parser.add_subparsers(required=True, metavar="show | publish")
    show = commands.add_parser("show", help="print the dashboard as JSON, without an account")
    show.add_argument("--project", default="dispatchgym", help="project named in it (default: %(default)s)")
    show.add_argument("--out", type=Path, metavar="FILE", help="write it there instead")
    show.set_defaults(run=_show)
    publish = commands.add_parser("publish", help="save the dashboard in a wandb project; needs WANDB_API_KEY")
    publish.add_argument("--project", default="dispatchgym", help="where the runs are (default: %(default)s)")
    publish.add_argument("--entity", required=True, help="user or team that the project belongs to")
    publish.set_defaults(run=_publish)
    return parser
