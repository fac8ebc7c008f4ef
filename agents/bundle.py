"""Policy bundles: a folder, or a .zip of one, that holds a trained policy and nothing that could run code.

    manifest.json        what it is, for which graphs, how it was trained, its results, sha256 of the other files
    weights.safetensors  the network's numbers, input standardisation included
    policy.onnx          the network for onnxruntime; its numbers are those of weights.safetensors (may be missing)
    golden.npz           a few graphs and the logits they must give

Loading reads every file once, checks it by its hash, rebuilds the network from our own code, replays the golden
graphs, and only then returns it. Nothing is unpacked to disk, and torch is imported for runtime "torch" alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from dispatchgym.agents.architecture import STARTING_RULES, PolicyConfig, checked_path, column_of, weight_shapes
from dispatchgym.agents.numpy_network import NumpyNetwork
from dispatchgym.agents.onnx_file import OnnxFileError
from dispatchgym.agents.plain_values import build
from dispatchgym.agents.runtime import RUNTIMES, OneGraph, Runtime, RuntimeName
from dispatchgym.agents.settings import FAMILIES, SPECS, Setting, may_wait, setting_of
from dispatchgym.envs.api import DispatchGymError, GraphSpec, UsageError
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.llm.batch import ChoicesConfig
from dispatchgym.envs.packing.shortlist import ShortlistConfig
from dispatchgym.envs.registry import unknown_name

SCHEMA = 2
FORMAT = "dispatchgym/policy"
BUNDLE = "bundle:"
"""Before a bundle's name or path, where rules could be named too."""
MANIFEST, WEIGHTS, ONNX, GOLDEN = "manifest.json", "weights.safetensors", "policy.onnx", "golden.npz"
KEYS = frozenset(
    (
        "format", "schema", "name", "family", "graph", "spec", "architecture", "action", "fallback",
        "seed", "training", "results", "package", "revision", "files",
    )
)  # fmt: skip
"""Besides the setting, whose key depends on the family."""
MOST_BYTES = 16 * 2**20
"""Of each file, and of what golden.npz unpacks to: more is no policy of ours."""
MOST_WEIGHTS = 8_000_000
TOLERANCE = 1e-5
"""Between the logits of two runtimes, relative to the largest one (or to 1, if that is smaller)."""
ELSEWHERE = 1e-4
"""The same between this machine and the one that wrote the bundle: other processors add in another order."""

SHIPPED = Path(__file__).parent / "bundles"


class BundleError(DispatchGymError, ValueError):
    """A bundle that cannot be trusted or read; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded policy.

    Args:
        name: what results call it.
        runtime: computes its logits.
        setting: what it was trained for: variant and builder of a shop, or what may be done on a cluster.
        manifest: everything else it says about itself.
        digest: sha256 of all that decides what it does: graph, architecture, setting and weights; not of the remarks.
    """

    name: str
    runtime: Runtime
    setting: Setting
    manifest: Mapping[str, Any]
    digest: str

    @property
    def shop(self) -> ShopConfig:
        """The setting of a policy for job shops.

        Raises:
            UsageError: it is for something else.
        """
        if not isinstance(self.setting, ShopConfig):
            raise UsageError(f"bundle {self.name} is for {self.manifest['family']}, not for job shops")
        return self.setting

    @property
    def choices(self) -> ShortlistConfig:
        """The setting of a policy for clusters.

        Raises:
            UsageError: it is for something else.
        """
        if not isinstance(self.setting, ShortlistConfig):
            raise UsageError(f"bundle {self.name} is for {self.manifest['family']}, not for packing")
        return self.setting

    @property
    def engine(self) -> ChoicesConfig:
        """The setting of a policy for LLM engines.

        Raises:
            UsageError: it is for something else.
        """
        if not isinstance(self.setting, ChoicesConfig):
            raise UsageError(f"bundle {self.name} is for {self.manifest['family']}, not for LLM engines")
        return self.setting


def load(path: Path, runtime: RuntimeName = "torch") -> Bundle:
    """Read and check a bundle.

    Args:
        path: its folder or .zip file.
        runtime: which library computes the logits.

    Raises:
        BundleError: something is missing, changed, unknown, not a number or gives other logits than it did; or the
            bundle has no policy.onnx and the runtime is "onnx".
        UnknownNameError: no such runtime.
    """
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", str(runtime), RUNTIMES)
    contents = _Contents(path)
    manifest = _manifest(contents)
    for file, expected in manifest["files"].items():
        if hashlib.sha256(contents.read(file)).hexdigest() != expected:
            raise BundleError(f"{contents.at(file)}: its sha256 is not the manifest's; fetch or export the bundle anew")
    spec = SPECS[manifest["graph"]]
    config: PolicyConfig = build(PolicyConfig, manifest["architecture"], "architecture")
    family = FAMILIES[manifest["family"]]
    setting: Setting = build(family.kind, setting_of(manifest), family.key)
    encoder = config.encoder
    if encoder.layers * encoder.width**2 * 12 > MOST_WEIGHTS:
        raise BundleError(f"{path}: a network of width {encoder.width} and {encoder.layers} layers is too large")
    checked_path(spec, encoder.rivals)
    weights = _weights(contents, weight_shapes(spec, config, has_wait=may_wait(setting)))
    network = _network(contents, runtime, spec, config, weights, ONNX in manifest["files"])
    if config.rule is not None:
        column, sign = STARTING_RULES[config.rule]
        scale = weights[f"encoder.scale_{spec.candidate}"][column_of(spec, spec.candidate, column)]
        network.rule_weight = float(sign * weights["rule_scale"] / scale)
    _replay(contents, network)
    return Bundle(manifest["name"], network, setting, manifest, _digest(manifest))


def stored_weights(path: Path) -> dict[str, npt.NDArray[np.floating]]:
    """A bundle's numbers as its file has them, not checked any further than safetensors does."""
    return safetensors.numpy.load(_Contents(path).read(WEIGHTS))


def find(name: str) -> Path:
    """Where a shipped bundle's name, or a path, leads: a folder or a .zip file.

    Raises:
        UnknownNameError: neither; the message offers the closest names.
    """
    path = Path(name)
    if (path / MANIFEST).is_file() or (path.suffix == ".zip" and path.is_file()):
        return path
    if name in shipped():
        return SHIPPED / name
    raise unknown_name("bundle", name, shipped())


def shipped(family: str | None = None) -> list[str]:
    """Names of the bundles that come with the package, of one family or of all."""
    found = sorted(folder.name for folder in SHIPPED.glob("*") if (folder / MANIFEST).is_file())
    return [name for name in found if family in (None, manifest_of(SHIPPED / name)["family"])]


def typed(family: str | None = None) -> list[str]:
    """As `shipped`, as people type them."""
    return [BUNDLE + name for name in shipped(family)]


def manifest_of(path: Path) -> dict[str, Any]:
    """A bundle's manifest, checked for its form; nothing else of the bundle is read.

    Raises:
        BundleError: it is not a manifest of this version.
    """
    return _manifest(_Contents(path))


class _Contents:
    """The files of a bundle, each read once and never more than MOST_BYTES of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: dict[str, bytes] = {}
        if path.is_dir():
            return
        if not path.is_file():
            raise BundleError(f"{path}: is neither a folder nor a .zip file")
        try:
            with zipfile.ZipFile(path) as archive:
                self._unpack(archive)
        # what zipfile raises at damaged, compressed in unknown ways, encrypted and cut-off archives
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise BundleError(f"{path}: is not a .zip file that can be read ({error})") from error

    def _unpack(self, archive: zipfile.ZipFile) -> None:
        entries = archive.infolist()
        known = (MANIFEST, WEIGHTS, ONNX, GOLDEN)
        if len(entries) > len(known):
            raise BundleError(f"{self.path}: holds {len(entries)} files; a bundle has {', '.join(known)}")
        for entry in entries:
            if entry.filename not in known or entry.filename in self._read:
                raise BundleError(f"{self.path}: holds {entry.filename!r:.80}; a bundle has {', '.join(known)}, once")
            if entry.file_size > MOST_BYTES:
                raise BundleError(f"{self.at(entry.filename)}: unpacks to more than {MOST_BYTES} bytes")
            with archive.open(entry) as file:
                self._read[entry.filename] = file.read(MOST_BYTES + 1)

    def at(self, file: str) -> Path:
        """What messages call the file."""
        return self.path / file

    def read(self, file: str) -> bytes:
        if file not in self._read:
            path = self.path / file
            if not path.is_file():
                raise BundleError(f"{path}: is missing; a bundle holds {MANIFEST}, {WEIGHTS} and {GOLDEN}")
            with path.open("rb") as stream:
                self._read[file] = stream.read(MOST_BYTES + 1)
        data = self._read[file]
        if len(data) > MOST_BYTES:
            raise BundleError(f"{self.at(file)}: has more than {MOST_BYTES} bytes; no policy of ours is as large")
        return data


def _manifest(contents: _Contents) -> dict[str, Any]:
    path = contents.at(MANIFEST)
    try:
        manifest = json.loads(contents.read(MANIFEST), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path}: is not a policy's manifest; it must hold an object with format {FORMAT!r}")
    if manifest.get("schema") != SCHEMA:
        raise BundleError(
            f"{path}: has schema {manifest.get('schema')!r:.40}; this version reads {SCHEMA}: export the policy anew"
        )
    kind = manifest.get("family")
    keys = KEYS | {FAMILIES[kind].key} if isinstance(kind, str) and kind in FAMILIES else KEYS | {"shop"}
    if set(manifest) != keys:
        odd = ", ".join(sorted(set(manifest) ^ keys))
        raise BundleError(f"{path}: keys missing or not known: {odd:.200}")
    name, files, graph = manifest["name"], manifest["files"], manifest["graph"]
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]{1,100}", name):
        raise BundleError(f"{path}: name {name!r:.40} is not one of letters, digits and . _ + -")
    if not isinstance(files, dict) or set(files) not in ({WEIGHTS, GOLDEN}, {WEIGHTS, GOLDEN, ONNX}):
        raise BundleError(f"{path}: files must name {WEIGHTS}, {GOLDEN} and perhaps {ONNX}, nothing else")
    for key in ("training", "results"):
        if not isinstance(manifest[key], dict):
            raise BundleError(f"{path}: {key} is {manifest[key]!r:.40}; it must be an object")
    if not isinstance(graph, str) or graph not in SPECS:
        raise BundleError(f"{path}: graph {graph!r:.40} is not known; known are: {', '.join(SPECS)}")
    if manifest["family"] != SPECS[graph].family:
        raise BundleError(f"{path}: family {manifest['family']!r:.40} is not that of graph {graph!r}")
    rules = FAMILIES[manifest["family"]].rules
    if not isinstance(manifest["fallback"], str) or manifest["fallback"] not in rules:
        raise BundleError(f"{path}: fallback {manifest['fallback']!r:.40} is not a rule; rules are: {', '.join(rules)}")
    if manifest["spec"] != SPECS[graph].digest:
        raise BundleError(f"{path}: was trained for another version of graph {graph!r}; train it anew")
    return manifest


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _digest(manifest: Mapping[str, Any]) -> str:
    decides = [manifest["spec"], manifest["architecture"], setting_of(manifest), manifest["files"][WEIGHTS]]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _weights(contents: _Contents, expected: Mapping[str, tuple[int, ...]]) -> dict[str, npt.NDArray[np.floating]]:
    path = contents.at(WEIGHTS)
    try:
        found = safetensors.numpy.load(contents.read(WEIGHTS))
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: is not a safetensors file ({error})") from error
    if set(found) != set(expected):
        odd = ", ".join(sorted(set(found) ^ set(expected))[:5])
        raise BundleError(f"{path}: weights missing or not known: {odd:.200}")
    for name, value in found.items():
        if value.shape != expected[name]:
            raise BundleError(f"{path}: {name} has shape {value.shape}, expected {expected[name]}")
        if value.dtype not in (np.float16, np.float32):
            raise BundleError(f"{path}: {name} has type {value.dtype}; it must be float16 or float32")
        if not np.isfinite(value).all():
            raise BundleError(f"{path}: {name} holds values that are not finite numbers")
    return found


def _network(
    contents: _Contents,
    runtime: RuntimeName,
    spec: GraphSpec,
    config: PolicyConfig,
    weights: Mapping[str, npt.NDArray[np.floating]],
    has_onnx: bool,
) -> Runtime:
    if runtime == "torch":
        from dispatchgym.agents.torch_network import TorchNetwork

        return TorchNetwork(spec, config, weights)
    if runtime == "numpy":
        return NumpyNetwork(spec, config, weights)
    if not has_onnx:
        raise BundleError(f"{contents.path}: was exported without {ONNX}; load it with runtime 'numpy' or 'torch'")
    from dispatchgym.agents.onnx_network import OnnxNetwork

    try:
        return OnnxNetwork(spec, config, contents.read(ONNX), contents.read(WEIGHTS), WEIGHTS)
    except OnnxFileError as error:
        raise BundleError(f"{contents.at(ONNX)}: {error}") from error


def _replay(contents: _Contents, network: Runtime) -> None:
    path = contents.at(GOLDEN)
    try:
        with zipfile.ZipFile(io.BytesIO(contents.read(GOLDEN))) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise BundleError(f"{path}: unpacks to more than {MOST_BYTES} bytes")
        with np.load(io.BytesIO(contents.read(GOLDEN)), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except BundleError:
        raise
    # the same, and what NumPy raises at headers that lie about type or size
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
    cases = sorted({key.partition(".")[0] for key in arrays})
    if not cases:
        raise BundleError(f"{path}: holds no case; nothing proves that the weights are right")
    for case in cases:
        graph, expected = _case(path, case, arrays, network)
        off = distance(_guarded(path, case, lambda graph=graph: network.one(graph)), expected)  # type: ignore[misc]
        if not off <= ELSEWHERE:
            raise BundleError(f"{path}: case {case} gives logits that are off by {off:.2g}, more than {ELSEWHERE}")


def distance(logits: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """Largest difference of logits, relative to the largest expected one or to 1 if that is smaller; NaN if any is."""
    if logits.shape != expected.shape:
        return np.inf
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(logits.astype(np.float64) - expected).max(initial=0.0)) / scale


def _case(
    path: Path, case: str, arrays: Mapping[str, npt.NDArray[Any]], network: Runtime
) -> tuple[OneGraph, npt.NDArray[np.floating]]:
    """A golden graph, of the right shapes and within its own bounds, and the logits it must give."""
    spec = network.spec
    mine = {key.partition(".")[2]: value for key, value in arrays.items() if key.partition(".")[0] == case}
    if set(mine) != {*network.inputs, "logits"}:
        raise BundleError(f"{path}: case {case} is not a graph of this network")
    rows = {n.name: len(mine[f"x/{n.name}"]) for n in spec.nodes if f"x/{n.name}" in mine and mine[f"x/{n.name}"].ndim}
    right = rows.get(spec.context) == 1
    for n in spec.nodes:
        if f"x/{n.name}" in mine:
            x = mine[f"x/{n.name}"]
            right &= x.dtype == np.float32 and x.shape[1:] == (len(n.features),) and bool(np.isfinite(x).all())
    targets = {e.name: (rows.get(e.source, 0), rows.get(e.target)) for e in spec.links}
    targets |= {"": (len(mine["logits"]) if mine["logits"].ndim else 0, rows.get(spec.candidate))}
    for key, index in mine.items():
        kind, _, which = key.partition("/")
        if kind in ("link", "candidate"):
            length, most = targets[which]
            right &= index.dtype.kind == "i" and index.shape == (length,)
            most = np.iinfo(np.int32).max if most is None else most  # a target that this network never reads
            right = right and bool(((index >= -1) & (index < most)).all())
    if not right or mine["logits"].dtype != np.float32 or not len(mine["logits"]) or not rows[spec.candidate]:
        raise BundleError(f"{path}: case {case} is not a graph of this network")
    return (
        OneGraph(
            {name: mine[f"x/{name}"] for name in rows},
            {key.partition("/")[2]: value for key, value in mine.items() if key.startswith("link/")},
            mine["candidate"],
        ),
        mine["logits"],
    )


def _guarded(path: Path, case: str, compute: Callable[[], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """What `compute` returns; whatever it raises (onnxruntime's errors have no common root) as one of ours."""
    try:
        with np.errstate(all="ignore"):
            return compute()
    except Exception as error:
        raise BundleError(f"{path}: case {case} cannot be computed ({str(error).splitlines()[:1]})") from error
