"""Writing policy bundles: from a trained network, or from another bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import dispatchgym
from dispatchgym.agents.architecture import PolicyConfig, weight_shapes
from dispatchgym.agents.bundle import (
    FORMAT,
    GOLDEN,
    MANIFEST,
    ONNX,
    SCHEMA,
    TOLERANCE,
    WEIGHTS,
    Bundle,
    BundleError,
    distance,
    load,
)
from dispatchgym.agents.example_graphs import examples
from dispatchgym.agents.onnx_export import onnx_bytes, require_exporter
from dispatchgym.agents.plain_values import to_mapping
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.runtime import OneGraph, Runtime
from dispatchgym.agents.safe_tensors import placed
from dispatchgym.agents.settings import FAMILIES, Setting, fallback, may_wait
from dispatchgym.agents.torch_network import TorchNetwork
from dispatchgym.agents.training.checkpoint import replace_folder
from dispatchgym.envs.api import GraphSpec

ACTION = (
    "argmax of the logits over the candidates of a decision, ties to the first; candidate -1 is WAIT; "
    "a decision with one candidate is not asked"
)
GOLDEN_SIZES = ((4, 3), (6, 4), (3, 6))
"""Problems of the golden cases, see `example_graphs`; the last one once more with every link cut."""
PARITY_SIZES = ((2, 8), (7, 5), (15, 15), (25, 4), (40, 10))
"""Problems on which the runtimes must agree before a bundle is written, each also with all links cut."""
EXAMPLE_SIZE = (5, 4)


def export(
    network: GraphNetwork,
    setting: Setting,
    folder: Path,
    *,
    name: str,
    seed: int,
    training: Mapping[str, Any],
    results: Mapping[str, Any],
    revision: str | None = None,
    onnx: bool = True,
) -> Bundle:
    """Write a bundle and load it again in every runtime, which proves it.

    Args:
        training: configuration and course of the training, plain values.
        results: evaluation figures with their intervals, plain values.
        revision: commit of the code that exported it.
        onnx: write policy.onnx, which takes the packages of the extra "onnx".

    Raises:
        BundleError: what was written does not load, or two runtimes disagree; nothing was replaced.
        UsageError: packages are missing.
    """
    weights = stored_weights(network, setting)
    return write(
        weights, network.spec, network.config, setting, folder, name, {
            "seed": seed, "training": dict(training), "results": dict(results), "revision": revision,
            "fallback": fallback(network.spec.graph, network.config.rule),
        }, onnx=onnx,
    )  # fmt: skip


def write(
    weights: Mapping[str, Tensor],
    spec: GraphSpec,
    config: PolicyConfig,
    setting: Setting,
    folder: Path,
    name: str,
    remarks: Mapping[str, Any],
    *,
    onnx: bool = True,
) -> Bundle:
    """As `export`, from weights as they are stored; `remarks` are the rest of the manifest."""
    if onnx:
        require_exporter()
    new = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        files = [WEIGHTS, GOLDEN]
        (new / WEIGHTS).write_bytes(safetensors.torch.save(dict(weights)))
        judge = TorchNetwork(spec, config, {key: value.numpy() for key, value in weights.items()})
        np.savez_compressed(new / GOLDEN, **_golden(judge, setting))  # type: ignore[arg-type]  # numpy's stub misses **arrays
        if onnx:
            files.append(ONNX)
            example = {key: torch.from_numpy(value) for key, value in _flat(_example(spec, setting), judge).items()}
            where = placed((new / WEIGHTS).read_bytes())
            (new / ONNX).write_bytes(onnx_bytes(spec, config, weights, example, where, WEIGHTS))
        manifest = {
            "format": FORMAT,
            "schema": SCHEMA,
            "name": name,
            "family": spec.family,
            "graph": spec.graph,
            "spec": spec.digest,
            "architecture": to_mapping(config),
            FAMILIES[spec.family].key: to_mapping(setting),
            "action": ACTION,
            **{key: remarks[key] for key in ("fallback", "seed", "training", "results")},
            "package": dispatchgym.__version__,
            "revision": remarks["revision"],
            "files": {file: hashlib.sha256((new / file).read_bytes()).hexdigest() for file in sorted(files)},
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in manifest.items()]
        (new / MANIFEST).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")  # a line a key: small
        others = [load(new, "numpy").runtime, *([load(new, "onnx").runtime] if onnx else [])]
        prove(judge, others, setting)
        replace_folder(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return load(folder)


def stored_weights(network: GraphNetwork, setting: Setting) -> dict[str, Tensor]:
    """What deciding needs; matrices as float16, a rounding below the noise of training."""
    state = network.state_dict()
    return {
        key: (state[key].half() if state[key].dim() == 2 else state[key].float()).cpu().contiguous()
        for key in weight_shapes(network.spec, network.config, has_wait=may_wait(setting))
    }


def prove(judge: Runtime, others: Sequence[Runtime], setting: Setting) -> float:
    """Largest relative difference of the runtimes' logits over fresh problems, isolated nodes included.

    Raises:
        BundleError: it is larger than TOLERANCE.
    """
    largest = 0.0
    for (first, second), graph in examples(judge.spec, setting, PARITY_SIZES, seed=1):
        for shown in (graph, _cut(graph)):
            expected = judge.one(shown)
            for other in others:
                off = distance(other.one(shown), expected)
                if not off <= TOLERANCE:
                    raise BundleError(
                        f"runtimes {judge.name} and {other.name} disagree by {off:.2g} (relative) on a "
                        f"{first}x{second} problem, more than {TOLERANCE}; nothing was exported"
                    )
                largest = max(largest, off)
    return largest


def zipped(folder: Path, path: Path) -> None:
    """Write the bundle in `folder` as one .zip file."""
    new = path.with_name(f".{path.name}-new")
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (MANIFEST, WEIGHTS, ONNX, GOLDEN):
            if (folder / file).is_file():
                archive.write(folder / file, file)
    new.replace(path)


def _golden(network: Runtime, setting: Setting) -> dict[str, np.ndarray]:
    """Graphs of generated problems some way into their runs, and their logits: 'K.x/job', ..., 'K.logits'."""
    graphs = [graph for _, graph in examples(network.spec, setting, GOLDEN_SIZES, seed=0)]
    graphs.append(_cut(graphs[-1]))
    return {
        f"{case}.{key}": value
        for case, graph in enumerate(graphs)
        for key, value in {**_flat(graph, network, np.int32), "logits": network.one(graph)}.items()
    }


def _cut(graph: OneGraph) -> OneGraph:
    """The same nodes, all isolated."""
    return OneGraph(graph.x, {name: np.full_like(target, -1) for name, target in graph.link.items()}, graph.candidate)


def _example(spec: GraphSpec, setting: Setting) -> OneGraph:
    """A decision of a small problem."""
    return next(graph for _, graph in examples(spec, setting, (EXAMPLE_SIZE,), seed=2))


def _flat(graph: OneGraph, network: Runtime, index: type[np.integer[Any]] = np.int64) -> dict[str, np.ndarray]:
    """A graph's arrays by the names of the network's inputs."""
    found = {}
    for key in network.inputs:
        kind, _, which = key.partition("/")
        if kind == "x":
            found[key] = graph.x[which]
        else:
            found[key] = (graph.link[which] if which else graph.candidate).astype(index)
    return found
