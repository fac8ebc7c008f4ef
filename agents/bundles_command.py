"""`dispatchgym bundles`: the shipped policy bundles with their results, or one bundle in detail."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import Bundle
from dispatchgym.agents.bundle_results import Evaluated, Figure, evaluations
from dispatchgym.agents.runtime import RUNTIMES
from dispatchgym.agents.settings import FAMILIES
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.llm.batch import ChoicesConfig
from dispatchgym.envs.packing.shortlist import ShortlistConfig


def main(argv: list[str]) -> int:
    """Parse the arguments and print; returns the exit code."""
    options = _parser().parse_args(argv)
    names: list[str] = options.bundle or bundles.shipped()
    found = [_About.of(name) for name in names]
    if options.json:
        print(json.dumps([each.plain() for each in found], indent=1))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    if options.bundle and len(found) == 1:
        _print_detail(found[0], console)
    else:
        _print_list(found, console)
    return 0


class _About:
    """A loaded bundle, checked by its golden cases, and its results."""

    def __init__(self, called: str, path: Path, loaded: Bundle) -> None:
        self.called = called
        self.path = path
        self.loaded = loaded
        self.manifest: Mapping[str, Any] = loaded.manifest
        self.evaluations = evaluations(loaded.manifest["results"])

    @classmethod
    def of(cls, called: str) -> _About:
        path = bundles.find(called)
        return cls(called, path, bundles.load(path, "numpy"))

    @property
    def num_bytes(self) -> int:
        if self.path.is_file():
            return self.path.stat().st_size
        return sum((self.path / file).stat().st_size for file in (bundles.MANIFEST, *self.manifest["files"]))

    @property
    def runtimes(self) -> list[str]:
        return [each for each in RUNTIMES if each != "onnx" or bundles.ONNX in self.manifest["files"]]

    @property
    def course(self) -> dict[str, float]:
        """Figures of the training, as far as the manifest has them."""
        course = self.manifest["training"].get("course", {})
        keys = ("iterations", "decisions", "seconds")
        found = {key: course[key] for key in keys if isinstance(course, dict) and key in course}
        return {key: value for key, value in found.items() if isinstance(value, (int, float))}

    def plain(self) -> dict[str, Any]:
        """What --json prints."""
        setting = FAMILIES[self.manifest["family"]].key
        kept = ("family", "graph", setting, "architecture", "fallback", "seed", "package", "revision", "results")
        return {
            "name": self.loaded.name,
            "policy": f"bundle:{self.called}",
            "bytes": self.num_bytes,
            "digest": self.loaded.digest,
            "runtimes": self.runtimes,
            **{key: self.manifest[key] for key in kept},
            "training": self.course,
        }


def _print_list(found: Sequence[_About], console: Console) -> None:
    width = max((len(each.called) for each in found), default=0)
    for each in found:
        encoder = each.loaded.runtime.config.encoder
        console.print(
            f"bundle:{each.called:{width}}  {_setting(each.loaded)}; {encoder.layers} layers of "
            f"width {encoder.width}; {each.num_bytes / 1e6:.2f} MB; trained on {_trained(each)}",
            markup=False,
        )
        for line in _headlines(each) or ["no results attached"]:
            console.print(f"{'':{width + 9}}{line}", markup=False)
    console.print(
        "\n`dispatchgym bundles NAME` shows one in detail; `dispatchgym evaluate SUITE --policies bundle:NAME` runs it",
        markup=False,
    )


def _setting(loaded: Bundle) -> str:
    """What it was trained for."""
    if isinstance(loaded.setting, ShopConfig):
        return f"{loaded.setting.variant}, builder {loaded.setting.builder_name}"
    choices = loaded.setting
    if isinstance(choices, ChoicesConfig):
        return f"LLM engines, up to {choices.most} choices at a time"
    if loaded.runtime.spec.graph == "bindings":
        return f"GPU clusters, the {choices.most} best bindings"
    return f"pods by priority, up to {choices.moves} moves, {'with' if choices.evict else 'no'} evictions"


def _headlines(about: _About) -> list[str]:
    return [
        f"{evaluated.suite} {evaluated.variant} {figure.policy}: {_value(figure)}"
        for evaluated in about.evaluations
        for figure in evaluated.own
        if figure.group is None
    ]


def _print_detail(about: _About, console: Console) -> None:
    loaded, manifest = about.loaded, about.manifest
    encoder = loaded.runtime.config.encoder
    rivals = " then ".join(encoder.rivals) or "none"
    lines = {
        "policy": f"bundle:{about.called}",
        "family": f"{manifest['family']}, graph {manifest['graph']!r}",
        "for": _setting(loaded),
        "network": f"{encoder.layers} layers of width {encoder.width}, {encoder.heads} heads, "
        f"hubs {'yes' if encoder.hubs else 'no'}, rivals by {rivals}",
        "rule": f"starts as {loaded.runtime.config.rule}"
        + (f", cap {loaded.runtime.config.cap:g}" if loaded.runtime.config.cap else "")
        + f"; falls back to {manifest['fallback']}",
        "training": f"{_trained(about)}, seed {manifest['seed']}{_begun(about)}",
        "size": f"{about.num_bytes / 1e6:.2f} MB, runtimes {', '.join(about.runtimes)}",
        "made by": f"dispatchgym {manifest['package']}, revision {manifest['revision']}",
        "digest": loaded.digest[:16],
    }
    for name, value in lines.items():
        console.print(f"{name:9} {value}", markup=False)
    for evaluated in about.evaluations:
        console.print()
        console.print(_figures(evaluated))
    if not about.evaluations:
        console.print("\nno results attached; `dispatchgym export BUNDLE --out BUNDLE --results OUT/summary.json`")


def _figures(evaluated: Evaluated) -> Table:
    seeds = f"{evaluated.seeds} seed{'s' if evaluated.seeds != 1 else ''}"
    title = f"{evaluated.suite}, {evaluated.variant}, {seeds}, dispatchgym {evaluated.package}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("policy")
    table.add_column("group")
    for column in ("mean (95 % interval)", "runs", "CPU s a run"):
        table.add_column(column, justify="right")
    for figure in (*evaluated.own, *evaluated.beside):
        table.add_row(figure.policy, figure.group or "all", _value(figure), str(figure.runs), f"{figure.cpu_s:.2f}")
    return table


def _value(figure: Figure) -> str:
    unit = " %" if figure.metric == "gap_pct" else ""
    interval = "" if figure.interval is None else f" ({figure.interval[0]:.2f} to {figure.interval[1]:.2f})"
    return f"{figure.mean:.2f}{unit}{interval}"


def _trained(about: _About) -> str:
    course = about.course
    said = []
    if "decisions" in course:
        said.append(f"{course['decisions'] / 1e6:.3g} M decisions")
    if "seconds" in course:
        said.append(f"{course['seconds'] / 60:.0f} min")
    return ", ".join(said) or "unknown"


def _begun(about: _About) -> str:
    warm_start = about.manifest["training"].get("warm_start")
    teacher = warm_start.get("teacher") if isinstance(warm_start, dict) else warm_start
    setting = about.loaded.setting
    if isinstance(setting, ShortlistConfig | ChoicesConfig) and setting.merit:
        return "; began as the tuned merit"
    return f"; began by imitating {teacher!s:.40}" if teacher else "; from scratch"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dispatchgym bundles",
        description="List the policy bundles that come with the package, or those named: what they are for, how they "
        "were trained, and their results as their manifests have them. Each is loaded and its golden cases replayed.",
    )
    parser.add_argument("bundle", nargs="*", help="a shipped bundle's name, a folder or a .zip file; one: in detail")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead")
    return parser
