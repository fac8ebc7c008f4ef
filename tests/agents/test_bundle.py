"""Bundles: what goes in comes out, and nothing that was tampered with gets in."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents import bundle_export
from dispatchgym.agents.bundle import Bundle, BundleError
from dispatchgym.agents.evaluation.problem import Problem
from dispatchgym.agents.learned_policy import parse_bundle, parse_learned
from dispatchgym.agents.numpy_network import NumpyNetwork
from dispatchgym.agents.playing import makespans
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.torch_network import TorchNetwork
from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.jobshop import scenario
from dispatchgym.envs.jobshop.batch import GraphName, ShopConfig
from dispatchgym.envs.jobshop.schedule import validate
from tests.agents.helpers import instances, network


@cache
def masters() -> TemporaryDirectory[str]:
    return TemporaryDirectory()


@cache
def master(graph: GraphName, variant: str) -> Path:
    """A bundle that tests copy: writing one takes a moment."""
    folder = Path(masters().name) / f"{graph}-{variant}"
    shop = ShopConfig(variant)  # type: ignore[arg-type]
    net = network(graph, trained=True)
    bundle_export.export(net, shop, folder, name="tiny", seed=0, training={"from": "test"}, results={}, onnx=False)
    return folder


def exported(folder: Path, graph: GraphName = "jobs", variant: str = "bws") -> Bundle:
    shutil.copytree(master(graph, variant), folder, dirs_exist_ok=True)
    return bundles.load(folder)


def network_of(loaded: Bundle) -> GraphNetwork:
    assert isinstance(loaded.runtime, TorchNetwork)
    return loaded.runtime.network


@pytest.mark.parametrize("graph", ["jobs", "ops"])
def test_a_bundle_plays_as_the_network_it_came_from(tmp_path: Path, graph: GraphName) -> None:
    loaded = exported(tmp_path / "b", graph)
    net = network(graph, trained=True)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(weight.half() if weight.dim() == 2 else weight)
    shops = instances(4)
    assert (makespans(network_of(loaded), shops, loaded.shop) == makespans(net, shops, loaded.shop)).all()
    assert loaded.manifest["fallback"] == "lrpt"
    assert loaded.manifest["spec"] == net.spec.digest


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rehash(folder: Path) -> None:
    """Make the hashes fit again: an attacker would."""
    files = ("weights.safetensors", "golden.npz")
    found = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}
    rewrite(folder, lambda m: m["files"].update(found))


def test_changed_files_are_refused(tmp_path: Path) -> None:
    for file in ("weights.safetensors", "golden.npz"):
        exported(tmp_path / "b")
        path = tmp_path / "b" / file
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError, match=f"{file}: its sha256"):
            bundles.load(tmp_path / "b")


def test_missing_and_truncated_files_are_refused(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    path = tmp_path / "b" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    rehash(tmp_path / "b")
    with pytest.raises(BundleError, match="not a safetensors file"):
        bundles.load(tmp_path / "b")
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        bundles.load(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 99, "schema 99"),
        ("format", "other", "not a policy's manifest"),
        ("extra", 1, "keys missing or not known: extra"),
        ("name", "../../x y", "is not one of letters"),
        ("family", "packing", "keys missing or not known: choices, shop"),
        ("family", "chess", "is not that of graph"),
        ("graph", ["jobs"], "is not known"),
        ("training", "long", "must be an object"),
        ("fallback", "pilot", "is not a rule"),
        ("graph", "hypergraph", "is not known"),
        ("spec", "0" * 64, "another version of graph"),
        ("files", {"../x": "0"}, "nothing else"),
    ],
)
def test_wrong_manifests_are_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    exported(tmp_path / "b")
    rewrite(tmp_path / "b", lambda m: m.update({key: value}))
    with pytest.raises(BundleError, match=message):
        bundles.load(tmp_path / "b")


def test_an_enormous_architecture_is_refused_before_it_is_built(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    rewrite(tmp_path / "b", lambda m: m["architecture"]["encoder"].update(width=100_000))
    with pytest.raises(BundleError, match="too large"):
        bundles.load(tmp_path / "b")


def test_weights_that_are_no_numbers_or_other_numbers_are_refused(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    path = tmp_path / "b" / "weights.safetensors"
    good = load_file(path)
    for value, message in ((float("nan"), "not finite"), (0.5, "off by")):
        save_file({**good, "score.weight": torch.full_like(good["score.weight"], value)}, path)
        rehash(tmp_path / "b")
        with pytest.raises(BundleError, match=message):
            bundles.load(tmp_path / "b")
    save_file({**good, "score.weight": torch.zeros(1, 3)}, path)
    rehash(tmp_path / "b")
    with pytest.raises(BundleError, match="has shape"):
        bundles.load(tmp_path / "b")
    save_file({name: value for name, value in good.items() if name != "score.weight"}, path)
    rehash(tmp_path / "b")
    with pytest.raises(BundleError, match="weights missing"):
        bundles.load(tmp_path / "b")


def test_archives_that_unpack_to_too_much_are_refused(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "b" / "golden.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.logits.npy", bytes(bundles.MOST_BYTES + 1))
    rehash(tmp_path / "b")
    with pytest.raises(BundleError, match="unpacks to more"):
        bundles.load(tmp_path / "b")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_loading_runs_nothing_that_is_in_the_files(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works
    sprung.unlink()
    exported(tmp_path / "b")
    np.savez(tmp_path / "b" / "golden.npz", **{"0.logits": np.array([Trap(sprung)], object)})
    rehash(tmp_path / "b")
    with pytest.raises(BundleError):
        bundles.load(tmp_path / "b")
    exported(tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").write_bytes(pickle.dumps(Trap(sprung)))
    rehash(tmp_path / "b")
    with pytest.raises(BundleError):
        bundles.load(tmp_path / "b")
    assert not sprung.exists()


def test_an_empty_golden_file_proves_nothing(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    np.savez(tmp_path / "b" / "golden.npz")
    rehash(tmp_path / "b")
    with pytest.raises(BundleError, match="holds no case"):
        bundles.load(tmp_path / "b")


def test_a_bundle_is_a_policy_by_its_path(tmp_path: Path) -> None:
    loaded = exported(tmp_path / "b")
    (shop,) = instances(1)
    problem = Problem("test", "small", shop, "bws")
    greedy = parse_bundle(f"bundle:{tmp_path / 'b'}")
    answer = greedy.prepare(problem)(None, 0)
    assert answer.schedule is not None
    validate(answer.schedule, shop, "bws")
    assert answer.schedule.end.max() == makespans(network_of(loaded), [shop], loaded.shop)[0]
    sampled = parse_bundle(f"bundle:{tmp_path / 'b'}@8+temperature2")
    first, again = (sampled.prepare(problem)(None, 3) for _ in range(2))
    assert first.schedule is not None
    assert again.schedule is not None
    assert (first.schedule.start == again.schedule.start).all()
    assert sampled.name.endswith("b@8+temperature2")
    assert (greedy.is_random, sampled.is_random) == (False, True)


def test_a_blocking_bundle_runs_with_shutdowns_but_not_as_the_best_of_many(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    greedy, sampled = parse_bundle(f"bundle:{tmp_path / 'b'}"), parse_bundle(f"bundle:{tmp_path / 'b'}@4")
    assert greedy.variants == {"bws", "bns", "isbjssp"}
    assert sampled.variants == {"bws", "bns"}
    (shop,) = instances(1)
    down = scenario.draw(shop, 0.2, 0)
    answer = greedy.prepare(Problem("test", "small", shop, "isbjssp", shutdown_probability=0.2))(down, 0)
    assert answer.schedule is not None
    validate(answer.schedule, shop, "isbjssp", down)


def test_wrong_names_and_options_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="bundle 'nothing' is not known"):
        parse_bundle("bundle:nothing")
    with pytest.raises(UsageError, match="bundle:NAME or bundle:PATH"):
        parse_bundle("bundle:")
    exported(tmp_path / "b")
    with pytest.raises(UsageError, match="number of runs"):
        parse_bundle(f"bundle:{tmp_path / 'b'}@many")
    with pytest.raises(UsageError, match="is not an option"):
        parse_bundle(f"bundle:{tmp_path / 'b'}@4+cap3")


def test_every_shipped_bundle_loads_and_is_small() -> None:
    assert set(bundles.shipped("jobshop")) == {"jobshop-blocking", "jobshop-classic", "jobshop-interrupting"}
    assert set(bundles.shipped("packing")) == {"packing-gpu", "packing-priority"}
    for name in bundles.shipped():
        folder = bundles.find(name)
        assert bundles.load(folder).manifest["name"] == name
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 1_000_000


def test_a_manifest_that_is_no_plain_json_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    good = path.read_text()
    for text in (good[:-20], good.replace('"seed": 0', '"seed": NaN'), "[" * 100_000, "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(BundleError, match=r"manifest\.json: is not"):
            bundles.load(tmp_path / "b")


@pytest.mark.parametrize("runtime", ["numpy", "torch"])
def test_a_zipped_bundle_is_the_same_policy(tmp_path: Path, runtime: bundles.RuntimeName) -> None:
    loaded = exported(tmp_path / "b")
    bundle_export.zipped(tmp_path / "b", tmp_path / "b.zip")
    again = bundles.load(bundles.find(str(tmp_path / "b.zip")), runtime)
    assert (again.digest, again.manifest) == (loaded.digest, loaded.manifest)
    assert parse_bundle(f"bundle:{tmp_path / 'b.zip'}").digest == loaded.digest


def test_archives_that_are_no_bundle_are_refused_and_unpacked_nowhere(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    path = tmp_path / "b.zip"

    def archive(*more: tuple[str, bytes]) -> None:
        bundle_export.zipped(tmp_path / "b", path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            for name, data in more:
                file.writestr(name, data)

    for name, data, message in (
        ("../outside", b"x", "holds '../outside'"),
        ("/tmp/outside", b"x", "holds '/tmp/outside'"),
        ("policy.onnx", bytes(bundles.MOST_BYTES + 1), "unpacks to more"),
    ):
        archive((name, data))
        with pytest.raises(BundleError, match=message):
            bundles.load(path)
    archive(*[(f"{i}", b"") for i in range(10)])
    with pytest.raises(BundleError, match="holds 13 files"):
        bundles.load(path)
    data = path.read_bytes()
    for part in (data[: len(data) // 2], b"", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(part)
        with pytest.raises(BundleError, match=r"not a \.zip file"):
            bundles.load(path)
    with pytest.raises(BundleError, match="neither a folder nor"):
        bundles.load(tmp_path / "nowhere")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["b", "b.zip"]


def test_an_archive_that_lies_about_a_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").write_bytes(bytes(bundles.MOST_BYTES * 4))
    path = tmp_path / "b.zip"
    bundle_export.zipped(tmp_path / "b", path)
    data = path.read_bytes()
    size = (bundles.MOST_BYTES * 4).to_bytes(4, "little")
    assert data.count(size) == 2  # in the file's own header and in the directory
    path.write_bytes(data.replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(BundleError):
        bundles.load(path)


@pytest.mark.parametrize("seed", range(40))
def test_a_bundle_with_any_bytes_changed_is_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    exported(tmp_path / "b")
    rng = np.random.default_rng(seed)
    path = tmp_path / "b" / ("weights.safetensors", "golden.npz")[seed % 2]
    data = bytearray(path.read_bytes())
    for at in rng.integers(0, min(len(data), 1500), 3):
        data[at] = rng.integers(0, 256)
    path.write_bytes(data[: None if seed % 4 else int(rng.integers(1, len(data)))])
    rehash(tmp_path / "b")
    try:
        bundles.load(tmp_path / "b", "numpy")
    except BundleError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 (a change may be harmless: a name in the zip header)


def test_golden_graphs_that_point_outside_themselves_are_refused(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    path = tmp_path / "b" / "golden.npz"
    good = dict(np.load(path))
    for key, value in (("0.candidate", 99), ("0.link/next", 99), ("0.candidate", -2), ("0.x/job", np.inf)):
        np.savez(path, **{**good, key: np.full_like(good[key], value)})
        rehash(tmp_path / "b")
        with pytest.raises(BundleError, match="case 0 is not a graph"):
            bundles.load(tmp_path / "b")


def test_a_bundle_without_onnx_says_what_else_to_load_it_with(tmp_path: Path) -> None:
    exported(tmp_path / "b")
    with pytest.raises(BundleError, match=r"without policy\.onnx; load it with runtime 'numpy' or 'torch'"):
        bundles.load(tmp_path / "b", "onnx")
    with pytest.raises(UnknownNameError, match="runtime 'nunpy' is not known"):
        bundles.load(tmp_path / "b", "nunpy")  # type: ignore[arg-type]


def test_an_export_whose_runtimes_disagree_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = exported(tmp_path / "b")
    one = NumpyNetwork.one
    monkeypatch.setattr(NumpyNetwork, "one", lambda self, graph: one(self, graph) * np.float32(1 + 3e-5))
    with pytest.raises(BundleError, match="numpy disagree by"):
        bundle_export.export(
            network(), before.shop, tmp_path / "b", name="other", seed=0, training={}, results={}, onnx=False
        )
    assert bundles.load(tmp_path / "b").manifest == before.manifest
    assert [each.name for each in tmp_path.iterdir()] == ["b"]


def test_learned_is_the_bundle_that_was_trained_for_the_shop() -> None:
    policy = parse_learned("learned")
    chosen = {variant: each.called for variant, each in policy.by_variant}
    assert chosen == {
        "jssp": "jobshop-classic",
        "bws": "jobshop-blocking",
        "bns": "jobshop-blocking",
        "isbjssp": "jobshop-interrupting",
    }
    assert "isbjssp" not in parse_learned("learned@4").variants
    (shop,) = instances(1)
    answer = policy.prepare(Problem("test", "small", shop, "jssp"))(None, 0)
    own = parse_bundle("bundle:jobshop-classic").prepare(Problem("test", "small", shop, "jssp"))(None, 0)
    assert answer.schedule is not None
    assert own.schedule is not None
    assert (answer.schedule.start == own.schedule.start).all()
