"""`dispatchgym export`: turn a run's best weights into a bundle that anyone can load safely."""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file

from dispatchgym.agents import bundle
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.training.config import from_mapping
from dispatchgym.agents.training.tracking import log_bundle
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.graph import SPECS


def main(argv: list[str]) -> int:
    """Parse the arguments and export; returns the exit code."""
    options = _parser().parse_args(argv)
    best = options.run / "best"
    try:
        about: dict[str, Any] = json.loads((best / "about.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{options.run} has no best weights ({best / 'about.json'}: {error.strerror})") from error
    config = from_mapping(about["config"])
    policy = config.policy if options.cap is None else replace(config.policy, cap=options.cap)
    network = GraphNetwork(SPECS[config.graph], policy)
    network.load_state_dict(load_file(str(best / "weights.safetensors")))
    name = options.name or options.out.name
    bundle.export(
        network,
        config.shop,
        options.out,
        name=name,
        seed=config.seed,
        training={
            "warm_start": None,
            "config": about["config"],
            "course": course(options.run),
            "after_training": {} if options.cap is None else {"cap": options.cap},
        },
        results={key: value for key, value in about.items() if key.startswith("validation/") or key == "iteration"},
        revision=_revision(),
    )
    log_bundle(options.run, options.out)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    Console(soft_wrap=True).print(f"{name}: {options.out}, {size / 1e6:.2f} MB, golden cases replayed", markup=False)
    return 0


def course(run: Path) -> dict[str, Any]:
    """How the training went: every evaluation, what was changed on the way, decisions and seconds spent."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    judged = [
        {"iteration": row["iteration"], **{k: round(v, 3) for k, v in row.items() if k.startswith("validation/")}}
        for row in rows
        if "validation/greedy" in row
    ]
    seconds = 0.0
    if (run / "timing.jsonl").exists():
        for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines():
            timing = json.loads(line)
            seconds += timing.get("rollout_s", 0.0) + timing.get("update_s", 0.0)  # none at the start
    resumed = run / "resumed.jsonl"
    return {
        "iterations": rows[-1]["iteration"],
        "decisions": int(sum(row.get("rollout/decisions", 0) for row in rows)),
        "seconds": round(seconds),
        "validation": judged,
        "resumed": [json.loads(line) for line in resumed.read_text(encoding="utf-8").splitlines()]
        if resumed.exists()
        else [],
    }


def _revision() -> str | None:
    """The checkout's commit, None outside of one."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dispatchgym export",
        description="Write a run's best weights as a policy bundle: manifest.json, weights.safetensors, golden.npz. "
        "The bundle is loaded again before it replaces anything; it works as policy bundle:DIR. Where the run "
        "has an entry in wandb, the bundle is added to it as an artifact.",
    )
    parser.add_argument("run", type=Path, help="run directory of `dispatchgym train`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument(
        "--cap", type=float, help="put a cap on the jobs in the shop, a share of the machines; the manifest says so"
    )
    parser.add_argument("--name", help="what results call it (default: the folder's name)")
    return parser
