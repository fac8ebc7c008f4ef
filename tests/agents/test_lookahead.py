"""Learned policies that look ahead: the two ways to read the columns agree, and the weight does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dispatchgym.agents import lookahead
from dispatchgym.agents.evaluation.policies import parse_policy
from dispatchgym.agents.graph_tensors import GraphTensors
from dispatchgym.agents.greedy_run import play_greedily
from dispatchgym.agents.playing import behind_best, play
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.agents.torch_network import TorchNetwork
from dispatchgym.envs.api import DispatchGymError, UsageError
from dispatchgym.envs.jobshop.batch import ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.graph import OPS
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.solvers.jobshop import pilot
from tests.agents.helpers import instances, network


def runtime_of(seed: int = 0) -> TorchNetwork:
    net = network(trained=True, seed=seed)
    weights = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    return TorchNetwork(net.spec, net.config, weights)


def test_numpy_and_torch_read_the_same_columns() -> None:
    batch = ShopBatch.of(instances(5), ShopConfig("bws"), "pilot")
    for _ in range(3):
        seen = batch.observe()
        rows = behind_best(GraphTensors.from_batch(seen)).numpy()
        own = lookahead.behind(seen)
        assert (own >= 0).all()
        assert np.isinf(rows).sum() == rows.size - len(own)
        np.testing.assert_array_equal(rows[~np.isinf(rows)], own)
        batch.step(seen.action[seen.candidate_ptr[:-1]])


@pytest.mark.parametrize("variant", ["jssp", "bws"])
def test_the_heavier_the_weight_the_more_it_follows_the_pilot(variant: Variant) -> None:
    def mean(weight: float) -> float:
        runs = [play_greedily(runtime_of(), one, ShopConfig(variant), None, weight) for one in shops]
        return float(np.mean([over.makespan[0] for over in runs]))

    shops = instances(8, seed=4)
    free, heavy = mean(0.0), mean(1e6)
    alone = float(np.mean([pilot.rollout(one, ShopConfig(variant)).schedule.makespan for one in shops]))
    assert mean(1e-9) == free
    assert heavy < free
    assert heavy == pytest.approx(alone, rel=0.08)  # the network only breaks ties


def test_sampled_runs_look_ahead_too() -> None:
    shop, torch_net = ShopConfig(), runtime_of().network
    torch.manual_seed(0)
    without = play(torch_net, ShopRuns.of(instances(2), shop, "jobs", 16), 1.0)
    with_it = play(torch_net, ShopRuns.of(instances(2), shop, "pilot", 16), 1.0, 16.0)
    assert with_it.mean() < without.mean()


def test_the_name_says_the_weight() -> None:
    for name in ("bundle:jobshop-classic+lookahead", "bundle:jobshop-classic+lookahead8"):
        assert parse_policy(name).name == name
    assert parse_policy("bundle:jobshop-classic+lookahead16").name == "bundle:jobshop-classic+lookahead"
    assert parse_policy("bundle:jobshop-blocking@8+lookahead").name == "bundle:jobshop-blocking@8+lookahead"
    with pytest.raises(UsageError, match="lookahaed"):
        parse_policy("bundle:jobshop-classic+lookahaed")
    with pytest.raises(UsageError, match="temperature"):
        parse_policy("bundle:jobshop-classic+temperature2")  # of nothing: the greedy run does not draw


def test_a_policy_of_the_complete_graph_cannot_look_ahead() -> None:
    with pytest.raises(UsageError, match="'ops'"):
        lookahead.require_columns(OPS)


@pytest.mark.parametrize("name", ["pilot", "pilot:lrpt+cap0.7", "pilot:mwkr+active"])
def test_pilot_policies_have_their_names(name: str) -> None:
    assert parse_policy(name).name == name


@pytest.mark.parametrize("name", ["pilot@3", "pilot:random", "pilot:nobody"])
def test_pilot_policies_that_cannot_be(name: str) -> None:
    with pytest.raises(DispatchGymError):
        parse_policy(name)
