"""Policy bundles: a directory that holds a trained policy, and nothing that could run code.

    manifest.json        what it is, for which graphs, how it was trained, sha256 of the other files
    weights.safetensors  the network's numbers (float16 where that is enough), input standardisation included
    golden.npz           a few graphs and the logits they must give

Loading checks every hash, rebuilds the network from our own code, replays the golden graphs, and only then
returns it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import dispatchgym
from dispatchgym.agents.architecture import PolicyConfig
from dispatchgym.agents.graph_tensors import GraphTensors
from dispatchgym.agents.plain_values import build as build_config
from dispatchgym.agents.plain_values import to_mapping
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.agents.training.checkpoint import replace_folder
from dispatchgym.envs.api import DispatchGymError, GraphSpec
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.graph import SPECS
from dispatchgym.envs.registry import unknown_name

SCHEMA = 1
FORMAT = "dispatchgym/policy"
WEIGHTS, GOLDEN = "weights.safetensors", "golden.npz"
KEYS = frozenset(
    (
        "format", "schema", "name", "family", "graph", "spec", "architecture", "shop", "action", "fallback",
        "seed", "training", "results", "package", "revision", "files",
    )
)  # fmt: skip
MOST_BYTES = 16 * 2**20
"""Of each file, and of what golden.npz unpacks to: more is no policy of ours."""
MOST_WEIGHTS = 8_000_000
GOLDEN_SIZES = ((4, 3), (6, 6), (10, 5), (15, 15), (1, 4))
TOLERANCE = 2e-4
"""Between logits here and where the bundle was made: other processors add in another order."""

CRITIC = "value."
"""Weights that only training needs: a loaded network's values mean nothing."""

ACTION = (
    "argmax of the logits over the candidates of a decision, ties to the first; candidate -1 is WAIT; "
    "a decision with one candidate is not asked"
)
SHIPPED = Path(__file__).parent / "bundles"


class BundleError(DispatchGymError, ValueError):
    """A bundle that cannot be trusted or read; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded policy.

    Args:
        name: what results call it.
        network: in evaluation mode, on the CPU.
        shop: variant and builder it was trained for.
        manifest: everything else it says about itself.
        digest: sha256 of the manifest, which holds those of the other files.
    """

    name: str
    network: GraphNetwork
    shop: ShopConfig
    manifest: Mapping[str, Any]
    digest: str


def export(
    network: GraphNetwork,
    shop: ShopConfig,
    folder: Path,
    *,
    name: str,
    seed: int,
    training: Mapping[str, Any],
    results: Mapping[str, Any],
    revision: str | None = None,
) -> Bundle:
    """Write a bundle and load it again, which proves it.

    Args:
        training: configuration and course of the training, plain values.
        results: evaluation figures with their intervals, plain values.
        revision: commit of the code that exported it.

    Raises:
        BundleError: what was written does not load to the same logits.
    """
    spec = network.spec
    rounded = GraphNetwork(spec, network.config)
    weights = _half(network.state_dict())
    rounded.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False)
    new = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(weights, str(new / WEIGHTS))
    np.savez(new / GOLDEN, **_golden(rounded.eval(), shop))  # type: ignore[arg-type]  # numpy's stub misses **arrays
    manifest = {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": name,
        "family": spec.family,
        "graph": spec.graph,
        "spec": spec.digest,
        "architecture": to_mapping(network.config),
        "shop": to_mapping(shop),
        "action": ACTION,
        "fallback": network.config.rule,
        "seed": seed,
        "training": dict(training),
        "results": dict(results),
        "package": dispatchgym.__version__,
        "revision": revision,
        "files": {file: _sha256(new / file) for file in (WEIGHTS, GOLDEN)},
    }
    (new / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    load(new)
    replace_folder(new, folder)
    return load(folder)


def load(folder: Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        BundleError: something is missing, changed, unknown, not a number or gives other logits than it did.
    """
    manifest, digest = _manifest(folder)
    for file, expected in manifest["files"].items():
        _check_size(folder / file)
        if _sha256(folder / file) != expected:
            raise BundleError(f"{folder / file}: its sha256 is not the manifest's; fetch or export the bundle anew")
    spec: GraphSpec = SPECS[manifest["graph"]]
    config: PolicyConfig = build_config(PolicyConfig, manifest["architecture"], "architecture")
    shop: ShopConfig = build_config(ShopConfig, manifest["shop"], "shop")
    encoder = config.encoder
    if encoder.layers * encoder.width**2 * 12 > MOST_WEIGHTS:
        raise BundleError(f"{folder}: a network of width {encoder.width} and {encoder.layers} layers is too large")
    network = GraphNetwork(spec, config)
    needed = {key: value for key, value in network.state_dict().items() if not key.startswith(CRITIC)}
    network.load_state_dict(_weights(folder / WEIGHTS, needed), strict=False)
    network.eval().requires_grad_(False)
    _replay(folder / GOLDEN, network)
    return Bundle(manifest["name"], network, shop, manifest, digest)


def find(name: str) -> Path:
    """The folder of a shipped bundle's name, or of a path.

    Raises:
        UnknownNameError: neither; the message offers the closest names.
    """
    path = Path(name)
    if (path / "manifest.json").is_file():
        return path
    if name in shipped():
        return SHIPPED / name
    raise unknown_name("bundle", name, shipped())


def shipped() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(folder.name for folder in SHIPPED.glob("*") if (folder / "manifest.json").is_file())


def _half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What deciding needs, without the value head; matrices as float16, a rounding below the noise of training."""
    return {
        key: (value.half() if value.dim() == 2 else value.float()).cpu().contiguous()
        for key, value in state.items()
        if not key.startswith(CRITIC)
    }


def _golden(network: GraphNetwork, shop: ShopConfig) -> dict[str, np.ndarray]:
    """Graphs of a few generated shops some way into their runs, and their logits: 'K.x/job', ..., 'K.logits'."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for case, (jobs, machines) in enumerate(GOLDEN_SIZES):
        runs = ShopRuns.of([random_instance(rng, jobs, machines)], shop, network.spec.graph)
        obs = runs.observe()
        for _ in range(jobs * machines // 3):
            runs.step(np.zeros(1, np.int64))
            if runs.over.all():
                break
            obs = runs.observe()
        graphs = GraphTensors.from_dict(obs)
        if graphs.num_graphs == 0:
            continue  # a shop of one job leaves nothing to decide
        arrays |= {f"{case}.{key}": value.numpy() for key, value in graphs.to_dict().items()}
        with torch.inference_mode():
            arrays[f"{case}.logits"] = network(graphs).logits.numpy()
    return arrays


def _manifest(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / "manifest.json"
    _check_size(path)
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{path}: is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path}: is not a policy's manifest; it must hold an object with format {FORMAT!r}")
    if manifest.get("schema") != SCHEMA:
        raise BundleError(f"{path}: has schema {manifest.get('schema')!r:.40}; this version reads {SCHEMA}")
    if set(manifest) != KEYS:
        odd = ", ".join(sorted(set(manifest) ^ KEYS))
        raise BundleError(f"{path}: keys missing or not known: {odd}")
    files = manifest["files"]
    if not isinstance(files, dict) or set(files) != {WEIGHTS, GOLDEN}:
        raise BundleError(f"{path}: files must name {WEIGHTS} and {GOLDEN}, nothing else")
    if manifest["graph"] not in SPECS:
        raise BundleError(f"{path}: graph {manifest['graph']!r:.40} is not known; known are: {', '.join(SPECS)}")
    if manifest["spec"] != SPECS[manifest["graph"]].digest:
        raise BundleError(f"{path}: was trained for another version of graph {manifest['graph']!r}; train it anew")
    return manifest, hashlib.sha256(raw).hexdigest()


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise BundleError(f"{path}: is missing; a bundle holds manifest.json, {WEIGHTS} and {GOLDEN}")
    if path.stat().st_size > MOST_BYTES:
        raise BundleError(f"{path}: has {path.stat().st_size} bytes; no policy of ours is larger than {MOST_BYTES}")


def _weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        found = load_file(str(path))
    except SafetensorError as error:
        raise BundleError(f"{path}: is not a safetensors file ({error})") from error
    if set(found) != set(expected):
        odd = ", ".join(sorted(set(found) ^ set(expected))[:5])
        raise BundleError(f"{path}: weights missing or not known: {odd}")
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise BundleError(f"{path}: {name} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}")
        if not value.isfinite().all():
            raise BundleError(f"{path}: {name} holds values that are not finite numbers")
    return {name: value.float() for name, value in found.items()}


def _replay(path: Path, network: GraphNetwork) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise BundleError(f"{path}: unpacks to more than {MOST_BYTES} bytes")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: cannot be read ({error})") from error
    cases = sorted({key.partition(".")[0] for key in arrays})
    if not cases:
        raise BundleError(f"{path}: holds no case; nothing proves that the weights are right")
    for case in cases:
        flat = {key.partition(".")[2]: torch.from_numpy(v) for key, v in arrays.items() if key.startswith(f"{case}.")}
        try:
            expected = flat.pop("logits")
            with torch.inference_mode():
                logits = network(GraphTensors.from_dict(flat)).logits
            gap = float((logits - expected).abs().max())
        except (KeyError, RuntimeError, IndexError) as error:
            raise BundleError(f"{path}: case {case} is not a graph of this network ({error})") from error
        if not gap <= TOLERANCE:
            raise BundleError(f"{path}: case {case} gives logits that are off by {gap:.2g}, more than {TOLERANCE}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
