"""Every runtime computes what the trained network computes, on any graph."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents import compiled_network, numpy_network
from dispatchgym.agents.architecture import STARTING_RULES, EncoderConfig, PolicyConfig, weight_shapes
from dispatchgym.agents.bundle import TOLERANCE, distance
from dispatchgym.agents.numpy_network import NumpyNetwork, _gelu
from dispatchgym.agents.onnx_export import OneDecision
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.runtime import OneGraph
from dispatchgym.agents.settings import may_wait
from dispatchgym.agents.torch_network import TorchNetwork, tensors
from dispatchgym.envs.jobshop.graph import SPECS
from dispatchgym.envs.llm.graph import SPEC as ENGINE
from tests.agents.helpers import RIVALS, tiny_config
from tests.agents.random_graphs import random_batch


@st.composite
def networks(draw: st.DrawFn) -> GraphNetwork:
    graph = draw(st.sampled_from(sorted(SPECS)))
    spec = SPECS[graph]
    columns = {f.name for f in spec.node(spec.candidate).features}
    rule = draw(st.sampled_from([None, *(name for name, (column, _) in STARTING_RULES.items() if column in columns)]))
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    config = tiny_config("jobs" if graph == "pilot" else graph, rule)  # type: ignore[arg-type]
    encoder = replace(
        config.encoder,
        width=12,
        heads=heads,
        layers=draw(st.integers(1, 3)),
        hubs=draw(st.booleans()),
        message_passing=draw(st.booleans()),
        rivals=draw(st.sampled_from([(), RIVALS["ops" if graph == "ops" else "jobs"]])),
    )
    torch.manual_seed(draw(st.integers(0, 1000)))
    net = GraphNetwork(spec, replace(config, encoder=encoder, cap=draw(st.sampled_from([None, 0.5, 1.2]))))
    with torch.no_grad():
        for weight in net.state_dict().values():
            weight.add_(torch.randn_like(weight), alpha=0.3)
        for node in spec.nodes:
            if hasattr(net.encoder, f"scale_{node.name}"):
                net.encoder.get_buffer(f"scale_{node.name}").abs_().add_(0.1)
    return net.eval()


def weights_of(net: GraphNetwork, has_wait: bool = True) -> dict[str, np.ndarray]:
    state = net.state_dict()
    return {name: state[name].numpy() for name in weight_shapes(net.spec, net.config, has_wait=has_wait)}


@settings(max_examples=40)
@given(net=networks(), seed=st.integers(0, 10_000), graphs=st.integers(1, 4), isolated=st.sampled_from([0.0, 0.3, 1.0]))
def test_numpy_gives_the_logits_of_torch_on_any_batch(
    net: GraphNetwork, seed: int, graphs: int, isolated: float
) -> None:
    batch = random_batch(net.spec, np.random.default_rng(seed), graphs, isolated=isolated)
    expected = TorchNetwork(net.spec, net.config, weights_of(net)).logits(batch)
    found = NumpyNetwork(net.spec, net.config, weights_of(net)).logits(batch)
    count = np.diff(batch.candidate_ptr)
    for i in range(graphs):
        assert distance(found[i, : count[i]], expected[i, : count[i]]) <= TOLERANCE
        assert (found[i, count[i] :] == -1e9).all()


@settings(max_examples=20)
@given(net=networks(), seed=st.integers(0, 10_000))
def test_the_dense_form_that_is_exported_gives_the_logits_of_the_network(net: GraphNetwork, seed: int) -> None:
    batch = random_batch(net.spec, np.random.default_rng(seed))
    graph = OneGraph(batch.x, batch.link, batch.candidate)
    judge = TorchNetwork(net.spec, net.config, weights_of(net))
    flat = tensors(net.spec, graph).to_dict()
    with torch.inference_mode():
        found = OneDecision(net.spec, net.config)(
            {name: flat[name] for name in judge.inputs},
            {name: torch.from_numpy(value) for name, value in weights_of(net).items()},
        )
    assert distance(found.numpy(), judge.one(graph)) <= TOLERANCE


def engine_network(seed: int, **encoder: object) -> NumpyNetwork:
    """A network for LLM engines, of random weights."""
    torch.manual_seed(seed)
    sizes = {"width": 32, "layers": 2, "hubs": False, "rivals": (), **encoder}
    net = GraphNetwork(ENGINE, PolicyConfig(EncoderConfig(**sizes), "merit"))  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in net.state_dict().values():
            weight.add_(torch.randn_like(weight), alpha=0.3)
        for node in ("request", "engine"):
            net.encoder.get_buffer(f"scale_{node}").abs_().add_(0.1)
    return NumpyNetwork(ENGINE, net.config, weights_of(net))


def engine_graph(rng: np.random.Generator, requests: int) -> OneGraph:
    x = {n.name: rng.normal(0, 2, (requests, len(n.features))).astype(np.float32) for n in ENGINE.nodes}
    x["engine"] = x["engine"][:1]
    return OneGraph(x, {"shares": np.full(requests, -1)}, np.arange(requests))


@pytest.mark.parametrize(("width", "heads", "layers"), [(32, 4, 2), (12, 3, 1), (21, 7, 3), (8, 1, 1)])
def test_the_kernel_gives_the_logits_of_numpy_at_any_size(width: int, heads: int, layers: int) -> None:
    network = engine_network(width, width=width, heads=heads, layers=layers)
    stacked = network.stacked()
    assert stacked is not None
    most = 70
    room, logits = compiled_network.scratch(stacked, most), np.empty(most)
    rng = np.random.default_rng(0)
    for requests in (*rng.permutation(np.arange(1, most + 1)).tolist(), 1):  # what a larger graph leaves is not seen
        graph = engine_graph(rng, requests)
        compiled_network.score(stacked, room, graph.x["request"], graph.x["engine"][0], requests, logits)
        assert distance(logits[:requests], network.one(graph)) <= TOLERANCE


def test_the_kernel_does_not_make_numbers_of_what_is_none() -> None:
    network = engine_network(0)
    stacked = network.stacked()
    assert stacked is not None
    room, logits = compiled_network.scratch(stacked, 8), np.empty(8)
    graph = engine_graph(np.random.default_rng(0), 8)
    for node, row in (("request", 3), ("engine", 0)):
        x = {name: each.copy() for name, each in graph.x.items()}
        x[node][row, 2] = np.nan
        compiled_network.score(stacked, room, x["request"], x["engine"][0], 8, logits)
        assert np.isnan(logits).all()  # everyone attends to everyone
    compiled_network.score(stacked, room, graph.x["request"], graph.x["engine"][0], 8, logits)
    assert distance(logits, network.one(graph)) <= TOLERANCE  # and forgets them


@pytest.mark.parametrize("parts", [{"hubs": True}, {"rivals": ("shares",)}, {"message_passing": False}])
def test_networks_that_follow_links_are_no_kernel(parts: dict[str, object]) -> None:
    assert engine_network(0, **parts).stacked() is None


def test_links_of_large_graphs_are_added_up_as_those_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["ops"]
    net = GraphNetwork(spec, tiny_config("ops"))
    batch = random_batch(spec, np.random.default_rng(0), most=30)
    numpy = NumpyNetwork(spec, net.config, weights_of(net))
    dense = numpy.logits(batch)
    monkeypatch.setattr(numpy_network, "_DENSE", 0)
    assert distance(numpy.logits(batch), dense) <= TOLERANCE


def test_without_its_wait_head_a_network_keeps_the_initial_logit_of_wait() -> None:
    spec = SPECS["jobs"]
    net = GraphNetwork(spec, tiny_config())
    graph = OneGraph(
        *(getattr(random_batch(spec, np.random.default_rng(1)), name) for name in ("x", "link")), np.array([0, -1])
    )
    for runtime in (TorchNetwork, NumpyNetwork):
        logits = runtime(spec, net.config, weights_of(net, has_wait=False)).one(graph)
        assert logits[1] == pytest.approx(logits[0] + net.config.wait, abs=1e-5)


def test_gelu_is_the_exact_one() -> None:
    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    exact = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()]
    assert np.abs(_gelu(x) - exact).max() < 1e-6


@pytest.mark.parametrize("graph", sorted(SPECS))
def test_the_listed_weights_are_those_of_the_network(graph: str) -> None:
    config = tiny_config("jobs" if graph == "pilot" else graph)  # type: ignore[arg-type]
    for hubs in (True, False):
        for passing in (True, False):
            each = replace(config, encoder=replace(config.encoder, hubs=hubs, message_passing=passing))
            state = GraphNetwork(SPECS[graph], each).state_dict()
            shapes = {name: tuple(value.shape) for name, value in state.items() if not name.startswith("value.")}
            assert weight_shapes(SPECS[graph], each, has_wait=True) == shapes


def test_choosing_takes_the_first_of_equals_and_0_where_there_is_no_choice() -> None:
    spec = SPECS["jobs"]
    net = GraphNetwork(spec, tiny_config(rule=None))  # an untrained network without a rule: all logits are equal
    batch = random_batch(spec, np.random.default_rng(2), 3)
    over = batch._replace(candidate_ptr=np.append(batch.candidate_ptr, batch.candidate_ptr[-1]))
    over = over._replace(ptr={name: np.append(p, p[-1]) for name, p in batch.ptr.items()})
    assert NumpyNetwork(spec, net.config, weights_of(net)).choose(over)[3] == 0
    equal = random_batch(spec, np.random.default_rng(3))
    equal = equal._replace(candidate=np.zeros(2, np.int32), candidate_ptr=np.array([0, 2], np.int32))
    for runtime in (TorchNetwork, NumpyNetwork):
        assert runtime(spec, net.config, weights_of(net)).choose(equal).tolist() == [0]


@pytest.mark.parametrize("runtime", ["numpy", "onnx"])
def test_playing_with_a_shipped_bundle_takes_no_torch(runtime: str) -> None:
    code = (
        "import sys, numpy as np\n"
        "from dispatchgym.agents.bundle import find, load\n"
        "from dispatchgym.agents.greedy_run import play_greedily\n"
        "from dispatchgym.envs.jobshop.generate import random_instance\n"
        f"loaded = load(find('jobshop-classic'), {runtime!r})\n"
        "over = play_greedily(loaded.runtime, random_instance(np.random.default_rng(0), 5, 4), loaded.shop)\n"
        "print(int(over.makespan[0]) > 0, [n for n in ('torch', 'stable_baselines3') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "True []", done.stderr


@pytest.mark.parametrize("name", bundles.shipped())
def test_every_runtime_agrees_on_every_shipped_bundle(name: str) -> None:
    torch_, *others = (bundles.load(bundles.find(name), runtime) for runtime in ("torch", "numpy", "onnx"))
    spec = torch_.runtime.spec
    rng = np.random.default_rng(5)
    for most in (1, 4, 12, 40, 70):
        for isolated in (0.2, 1.0):
            batch = random_batch(spec, rng, most=most, isolated=isolated)
            if not may_wait(torch_.setting):
                jobs = batch.candidate[batch.candidate >= 0]
                batch = batch._replace(candidate=jobs, candidate_ptr=np.array([0, len(jobs)], np.int32))
            expected = torch_.runtime.logits(batch)[0]
            for other in others:
                assert distance(other.runtime.logits(batch)[0], expected) <= TOLERANCE
