"""policy.onnx: the same logits as the network for any sizes, and no file that does more than a policy does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents import bundle_export
from dispatchgym.agents.bundle import TOLERANCE, BundleError, distance
from dispatchgym.agents.export_command import main as export
from dispatchgym.agents.onnx_file import OPERATORS
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.batch import ShopConfig
from tests.agents.helpers import network
from tests.agents.random_graphs import random_batch

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")

ABOUT = {"training": {}, "results": {}, "name": "tiny", "seed": 0}


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blocking bundle with everything: hubs, rivals, WAIT, a cap."""
    net = network(trained=True)
    capped = GraphNetwork(net.spec, replace(net.config, cap=0.6))
    capped.load_state_dict(net.state_dict())
    folder = tmp_path_factory.mktemp("onnx") / "b"
    bundle_export.export(capped, ShopConfig("bws"), folder, **ABOUT)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "b"))


def test_onnxruntime_gives_the_logits_of_torch_at_any_size(master: Path) -> None:
    judge, other = (bundles.load(master, runtime).runtime for runtime in ("torch", "onnx"))
    rng = np.random.default_rng(0)
    for most in (1, 2, 5, 15, 60):
        for isolated in (0.0, 0.3, 1.0):
            for _ in range(2):
                batch = random_batch(judge.spec, rng, 3, most=most, isolated=isolated)
                expected, found = judge.logits(batch), other.logits(batch)
                for i, count in enumerate(np.diff(batch.candidate_ptr)):
                    assert distance(found[i, :count], expected[i, :count]) <= TOLERANCE


def test_the_file_is_small_and_anyone_can_run_it_where_it_lies(master: Path) -> None:
    assert (master / "policy.onnx").stat().st_size < 60_000
    session = onnxruntime.InferenceSession(master / "policy.onnx", providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} >= {"x/job", "x/machine", "x/shop", "link/next", "candidate"}
    onnx.checker.check_model(str(master / "policy.onnx"))
    used = {node.op_type for node in onnx.load(master / "policy.onnx", load_external_data=False).graph.node}
    assert used <= OPERATORS


def change(folder: Path, edit: Callable[[Any], None]) -> None:
    """Edit the model and make the hash fit again: an attacker would."""
    model = onnx.load(folder / "policy.onnx", load_external_data=False)
    edit(model)
    put(folder, model.SerializeToString())


def put(folder: Path, data: bytes) -> None:
    (folder / "policy.onnx").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["policy.onnx"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def endless(model: Any) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["never"], body=body))


def hidden_graph(model: Any) -> None:
    model.graph.node.append(
        onnx.helper.make_node("Identity", ["logits"], ["y"], body=onnx.helper.make_graph([], "b", [], []))
    )


def foreign(model: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Gelu", ["logits"], ["y"], domain="com.example"))


def function(model: Any) -> None:
    model.functions.append(onnx.helper.make_function("own", "F", ["x"], ["y"], [], [onnx.helper.make_opsetid("", 20)]))


def external(model: Any) -> dict[str, Any]:
    """Where the second of the weights lies: the entries by their keys."""
    _, second, *_ = [tensor for tensor in model.graph.initializer if tensor.external_data]
    return {entry.key: entry for entry in second.external_data}


def reads_elsewhere(model: Any) -> None:
    external(model)["location"].value = "../../secret"


def constant_from_elsewhere(model: Any) -> None:
    tensor = onnx.TensorProto(dims=[1], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["y"], value=tensor))


def beyond_the_end(model: Any) -> None:
    external(model)["offset"].value = str(10**9)


def before_the_start(model: Any) -> None:
    external(model)["offset"].value = "-4096"


def other_numbers(model: Any) -> None:
    external(model)["offset"].value = "0"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (endless, "operator 'Loop'"),
        (hidden_graph, "attribute that is a graph"),
        (foreign, "domain 'com.example'"),
        (function, "functions of its own"),
        (reads_elsewhere, r"read file '\.\./\.\./secret'"),
        (constant_from_elsewhere, "read file '/etc/hostname'"),
        (beyond_the_end, "onnxruntime refuses it"),
        (before_the_start, "onnxruntime refuses it"),
        (other_numbers, "off by|refuses"),
        (lambda model: model.ClearField("graph"), "0 graphs"),
        (lambda model: model.graph.input.pop(), "onnxruntime refuses it|its inputs are"),
    ],
)
def test_models_that_do_more_than_a_policy_are_refused(folder: Path, edit: Callable[[Any], None], message: str) -> None:
    change(folder, edit)
    with pytest.raises(BundleError, match=message) as caught:
        bundles.load(folder, "onnx")
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_models_are_refused(folder: Path) -> None:
    good = (folder / "policy.onnx").read_bytes()
    (folder / "policy.onnx").write_bytes(good[:-1])
    with pytest.raises(BundleError, match="its sha256 is not"):
        bundles.load(folder, "numpy")  # whoever loads it: a damaged bundle is a damaged bundle
    for data in (b"", good[: len(good) // 2], b"\xff" * 50, good[:-1]):
        put(folder, data)
        with pytest.raises(BundleError, match=r"policy\.onnx"):
            bundles.load(folder, "onnx")


def test_export_without_the_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UsageError, match=r"pip install 'dispatchgym\[onnx\]'.*--no-onnx"):
        export([str(bundles.find("jobshop-blocking")), "--out", str(tmp_path / "b")])
    assert list(tmp_path.iterdir()) == []
