"""`dispatchgym export`: turn a run's best weights, or another bundle, into a bundle that anyone can load safely."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from dispatchgym.agents import bundle, bundle_export
from dispatchgym.agents.architecture import PolicyConfig
from dispatchgym.agents.bundle_results import attached
from dispatchgym.agents.export_targets import TARGETS, instructions, policy_name
from dispatchgym.agents.onnx_export import require_exporter
from dispatchgym.agents.plain_values import build, to_mapping
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.settings import SPECS
from dispatchgym.agents.training.config import from_mapping
from dispatchgym.agents.training.tracking import log_bundle
from dispatchgym.envs.api import UsageError

OF_SIZE = re.compile(r"/\d+x\d+$")
"""Ends figures of one size among the validation's: too many to keep for every evaluation."""


def main(argv: list[str]) -> int:
    """Parse the arguments and export; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.target is not None and (options.out or options.results or options.name or options.cap is not None):
        parser.error("--target writes nothing: leave --out, --results, --cap and --name away")
    if options.target is not None:
        print(instructions(policy_name(options.source), options.target))
        return 0
    if options.out is None:
        parser.error("the following arguments are required: --out, or --target")
    if options.onnx:
        require_exporter()
    out: Path = options.out
    is_zip = out.suffix == ".zip"
    name = options.name or (out.stem if is_zip else out.name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name if is_zip else out
        if (options.source / bundle.MANIFEST).is_file() or options.source.suffix == ".zip":
            _from_bundle(options, folder, name)
        else:
            _from_run(options, folder, name)
            log_bundle(options.source, folder)
        if is_zip:
            bundle_export.zipped(folder, out)
    size = out.stat().st_size if is_zip else sum(file.stat().st_size for file in out.iterdir())
    runtimes = "torch, onnx and numpy" if options.onnx else "torch and numpy"
    Console(soft_wrap=True).print(
        f"{name}: {out}, {size / 1e6:.2f} MB; {runtimes} agree, golden cases replayed", markup=False
    )
    return 0


def _from_run(options: argparse.Namespace, folder: Path, name: str) -> None:
    best = options.source / "best"
    if options.results:
        raise UsageError("--results belong to a bundle that was evaluated: export, evaluate, then export that bundle")
    try:
        about: dict[str, Any] = json.loads((best / "about.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{options.source} is neither a bundle nor a run with best weights "
            f"({best / 'about.json'}: {error.strerror})"
        ) from error
    config = from_mapping(about["config"])
    policy = config.policy if options.cap is None else replace(config.policy, cap=options.cap)
    network = GraphNetwork(SPECS[config.graph], policy)
    network.load_state_dict(load_file(str(best / "weights.safetensors")))
    bundle_export.export(
        network,
        config.setting,
        folder,
        name=name,
        seed=config.seed,
        training={
            "warm_start": None if config.warm_start.teacher == "none" else to_mapping(config.warm_start),
            "config": about["config"],
            "course": course(options.source),
            "after_training": {} if options.cap is None else {"cap": options.cap},
        },
        results={
            "validation": {k: v for k, v in about.items() if k.startswith("validation/") or k == "iteration"},
            "evaluations": [],
        },
        revision=_revision(),
        onnx=options.onnx,
    )


def _from_bundle(options: argparse.Namespace, folder: Path, name: str) -> None:
    """The same weights again, with evaluations attached, under another cap or name, or by a newer exporter."""
    loaded = bundle.load(options.source, "numpy")
    manifest, training, results = loaded.manifest, loaded.manifest["training"], loaded.manifest["results"]
    config: PolicyConfig = build(PolicyConfig, manifest["architecture"], "architecture")
    if options.cap is not None and options.cap != config.cap:
        config = replace(config, cap=options.cap)
        training = {**training, "after_training": {**training.get("after_training", {}), "cap": options.cap}}
        results = {**results, "evaluations": []}  # they were another policy's
        if options.results:
            raise UsageError("--results are those of the bundle as it is; change its cap first, then evaluate it")
    results = attached(results, options.results, loaded.digest)
    weights = {key: torch.from_numpy(value) for key, value in bundle.stored_weights(options.source).items()}
    remarks = {**manifest, "training": training, "results": results}
    bundle_export.write(weights, loaded.runtime.spec, config, loaded.setting, folder, name, remarks, onnx=options.onnx)


def course(run: Path) -> dict[str, Any]:
    """How the training went: every evaluation, what was changed on the way, decisions and seconds spent."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    judged = [
        {
            "iteration": row["iteration"],
            **{k: round(v, 3) for k, v in row.items() if k.startswith("validation/") and not OF_SIZE.search(k)},
        }
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
        description="Write a run's best weights as a policy bundle: manifest.json, weights.safetensors, policy.onnx, "
        "golden.npz. Before it replaces anything it is loaded again in every runtime, and their logits must agree. "
        "It works as policy bundle:DIR. With a bundle as the source, the same weights are written again: to attach "
        "results, to put a cap on it, to give it another name. A run's entry in wandb gets the bundle as an artifact.",
    )
    parser.add_argument("source", type=Path, help="run directory of `dispatchgym train`, or a bundle")
    parser.add_argument("--out", type=Path, help="folder of the bundle, or a file ending in .zip")
    parser.add_argument(
        "--target", choices=list(TARGETS),
        help="write nothing: print what to run so that the source, a bundle or a scheduler's name, decides there, and "
        "what is lost there",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[], metavar="SUMMARY",
        help="summary.json of evaluations of the source bundle, to go into the manifest",
    )  # fmt: skip
    parser.add_argument(
        "--cap", type=float, help="put a cap on the jobs in the shop, a share of the machines; the manifest says so"
    )
    parser.add_argument("--name", help="what results call it (default: the folder's name)")
    parser.add_argument(
        "--no-onnx", dest="onnx", action="store_false",
        help="leave policy.onnx out; needed where the packages onnx and onnxscript are not installed",
    )  # fmt: skip
    return parser
