"""The graph policy: it starts as its rule, does not care for the order of jobs, and handles any graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dispatchgym.agents import graph_tensors
from dispatchgym.agents.architecture import STARTING_RULES, EncoderConfig, PolicyConfig
from dispatchgym.agents.encoder import Blocks
from dispatchgym.agents.graph_tensors import GraphTensors, concatenate, select
from dispatchgym.agents.playing import makespans, play
from dispatchgym.agents.policy import GraphActorCriticPolicy, GraphNetwork, pick
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.jobshop import scenario
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.graph import JOBS, SPECS
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.schedule import Variant, validate
from dispatchgym.solvers.jobshop import rules
from tests.agents.helpers import instances, network, policy_of, tiny_config, vec_env


@pytest.mark.parametrize("graph", ["jobs", "ops"])
@pytest.mark.parametrize("variant", ["jssp", "bws", "bns"])
def test_an_untrained_policy_is_its_rule(variant: Variant, graph: GraphName) -> None:
    shops, config = instances(), ShopConfig(variant)
    expected = [rules.rollout(shop, "lrpt", config).schedule.end.max() for shop in shops]
    assert makespans(network(graph), shops, config).tolist() == expected


@pytest.mark.parametrize("rule", [rule for rule in STARTING_RULES if rule in rules.RULES])
def test_every_starting_rule_is_the_rule_of_that_name(rule: str) -> None:
    shops = instances(4)
    net = GraphNetwork(JOBS, tiny_config(rule=rule))
    expected = [rules.rollout(shop, rule).schedule.end.max() for shop in shops]
    assert makespans(net, shops, ShopConfig()).tolist() == expected


def test_an_untrained_policy_with_a_hybrid_builder_and_shutdowns_is_its_rule() -> None:
    shops = instances(4)
    hybrid = ShopConfig("jssp", "hybrid", 0.5)
    expected = [rules.rollout(shop, "lrpt", hybrid).schedule.end.max() for shop in shops]
    assert makespans(network(), shops, hybrid).tolist() == expected
    down = [scenario.draw(shop, 0.2, seed) for seed, shop in enumerate(shops)]
    broken = ShopConfig("isbjssp")
    pairs = zip(shops, down, strict=True)
    expected = [rules.rollout(shop, "lrpt", broken, scenario=s).schedule.end.max() for shop, s in pairs]
    assert makespans(network(), shops, broken, scenarios=down).tolist() == expected


@pytest.mark.parametrize("cap", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("variant", ["bws", "bns", "isbjssp"])
def test_an_untrained_policy_with_a_cap_is_its_rule_with_that_cap(variant: Variant, cap: float) -> None:
    shops, config = instances(), ShopConfig(variant)
    down = [scenario.draw(shop, 0.2, seed) for seed, shop in enumerate(shops)] if variant == "isbjssp" else None
    net = GraphNetwork(JOBS, replace(tiny_config(), cap=cap))
    drawn = down or [None] * len(shops)
    pairs = zip(shops, drawn, strict=True)
    expected = [rules.rollout(shop, "lrpt", config, cap=cap, scenario=s).schedule.end.max() for shop, s in pairs]
    assert makespans(net, shops, config, scenarios=down).tolist() == expected
    with pytest.raises(UsageError, match="cap is 0"):
        PolicyConfig(cap=0)


def test_schedules_of_a_trained_policy_are_valid() -> None:
    shops = instances(3)
    for variant in ("jssp", "bws", "bns"):
        runs = ShopRuns.of(shops, ShopConfig(variant), rollouts=2)
        torch.manual_seed(0)
        found = play(network(trained=True), runs, temperature=1.0)
        for i, makespan in enumerate(found):
            schedule = runs.schedule(i)
            validate(schedule, shops[i // 2], variant)
            assert schedule.end.max() == makespan


def test_best_of_many_samples_is_no_worse_than_each() -> None:
    shops = instances(3)
    torch.manual_seed(0)
    one = makespans(network(), shops, ShopConfig(), samples=1)
    torch.manual_seed(0)
    many = makespans(network(), shops, ShopConfig(), samples=16)
    assert (many <= one).all() or (many.sum() < one.sum())


def shuffled(instance: Instance, order: np.ndarray) -> Instance:
    routes = []
    for j in order:
        ops = range(instance.job_ptr[j], instance.job_ptr[j + 1])
        routes.append([(int(instance.machine[o]), int(instance.duration[o])) for o in ops])
    return Instance.from_routes("shuffled", routes, instance.num_machines)


@pytest.mark.parametrize("graph", ["jobs", "ops"])
def test_the_order_of_jobs_does_not_change_their_scores(graph: GraphName) -> None:
    (instance,) = instances(1)
    order = np.random.default_rng(1).permutation(instance.num_jobs)
    net = network(graph, trained=True)
    config = ShopConfig("bws")
    there, here = (
        GraphTensors.from_batch(ShopBatch.of([one], config, graph).observe())
        for one in (shuffled(instance, order), instance)
    )
    scores, straight = net(there).logits[0, : len(order)], net(here).logits[0, : len(order)]
    torch.testing.assert_close(scores, straight[torch.from_numpy(order)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("graph", ["jobs", "ops"])
def test_a_graph_scores_the_same_alone_and_in_a_batch(graph: GraphName) -> None:
    net = network(graph, trained=True)
    runs = ShopRuns.of(instances(5), ShopConfig("bws"), graph)
    graphs = GraphTensors.from_dict(runs.observe())
    whole = net(graphs)
    for i in range(5):
        alone = net(select(net.spec, graphs, torch.tensor([i])))
        width = alone.logits.shape[1]
        torch.testing.assert_close(alone.logits[0], whole.logits[i, :width], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.value[0], whole.value[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("graph", ["jobs", "ops"])
def test_concatenating_selected_graphs_gives_the_batch_back(graph: GraphName) -> None:
    spec = SPECS[graph]
    graphs = GraphTensors.from_dict(ShopRuns.of(instances(5), ShopConfig("bws"), graph).observe())
    pieces = [select(spec, graphs, torch.tensor(index)) for index in ([0, 1], [2], [3, 4])]
    again = concatenate(spec, pieces)
    for name, value in graphs.to_dict().items():
        assert torch.equal(again.to_dict()[name], value), name


@pytest.mark.parametrize("graph", ["jobs", "ops"])
def test_blocks_by_size_change_nothing(graph: GraphName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_tensors, "LEAST_CELLS", 1)
    sizes = [12, 3, 40, 7, 8, 3, 23, 15, 16]
    shops = [random_instance(np.random.default_rng(i), jobs, 3) for i, jobs in enumerate(sizes)]
    graphs = GraphTensors.from_dict(ShopRuns.of(shops, ShopConfig("bws"), graph).observe())
    net = network(graph, trained=True)
    chosen = select(net.spec, graphs, torch.arange(len(sizes)))
    assert chosen.most is not None
    assert [size for _, size in chosen.most.blocks] == [8, 16, 24, 41]
    assert [count for count, _ in chosen.most.blocks] == [3, 3, 2, 1]
    gradients = []
    for batch in (chosen, graphs):
        net.zero_grad()
        logits, value = net(batch)
        (logits.clamp(min=-100).square().sum() + value.square().sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(net(chosen), net(graphs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("graph", ["jobs", "ops"])
def test_in_bfloat16_only_the_encoder_rounds(graph: GraphName) -> None:
    env = vec_env("bws", graph)
    obs = env.reset()
    net = network(graph, trained=True)
    exact = policy_of(env, net)
    rounded = GraphActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, spec=net.spec, config=net.config, precision="bf16"
    )
    rounded.load_state_dict(exact.state_dict())
    graphs, choice = GraphTensors.from_dict(obs), torch.zeros(env.num_envs, dtype=torch.int64)
    gradients = []
    for policy in (exact, rounded):
        policy.zero_grad()
        value, log_prob, entropy = policy.evaluate_actions(graphs, choice)
        assert {value.dtype, log_prob.dtype, entropy.dtype} == {torch.float32}
        (value.sum() + log_prob.sum() + entropy.sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert 0 < (log_prob - exact.evaluate_actions(graphs, choice)[1]).abs().max().item() < 0.05
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
    untrained = policy_of(env, network(graph))
    rule = GraphActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, spec=net.spec, config=net.config, precision="bf16"
    )
    rule.load_state_dict(untrained.state_dict())
    torch.testing.assert_close(rule.evaluate_actions(graphs, choice)[1], untrained.evaluate_actions(graphs, choice)[1])


def test_without_message_passing_other_jobs_do_not_matter() -> None:
    shops = instances(2)
    net = network(trained=True, message_passing=False)
    graphs = GraphTensors.from_dict(ShopRuns.of(shops[:1], ShopConfig()).observe())
    changed = graphs._replace(x={**graphs.x, "job": graphs.x["job"].clone()})
    changed.x["job"][1:] += 1.0
    assert net(changed).logits[0, 0] == net(graphs).logits[0, 0]
    with_messages = network(trained=True)
    assert with_messages(changed).logits[0, 0] != with_messages(graphs).logits[0, 0]


def test_rivals_only_heads_do_not_see_other_machines() -> None:
    runs = ShopRuns.of(instances(1), ShopConfig())
    graphs = GraphTensors.from_dict(runs.observe())
    net = network(trained=True)
    jobs = graphs.x["job"].shape[0]
    blocks_size = jobs + 1
    mask = net.encoder._bias(graphs, Blocks(graphs.ptr["job"], jobs, [(1, jobs + 1)]), torch.float32)[0][0] == 0
    machine = graphs.link["next"]
    for a in range(blocks_size - 1):
        for b in range(blocks_size - 1):
            assert mask[0, a + 1, b + 1]
            assert bool(mask[-1, a + 1, b + 1]) == bool(machine[a] == machine[b])


def test_wait_wins_exactly_when_its_own_score_is_positive() -> None:
    net = network()
    graphs = GraphTensors.from_dict(ShopRuns.of(instances(4), ShopConfig("bws")).observe())
    last = net.wait[-1]
    for bias, waits in ((-0.1, False), (0.1, True)):
        with torch.no_grad():
            last.bias.fill_(bias)
        chosen = pick(net(graphs).logits, 0.0)
        has_wait = [bool((part < 0).any()) for part in graphs.candidate.split(graphs.candidate_ptr.diff().tolist())]
        is_wait = graphs.candidate[graphs.candidate_ptr[:-1] + chosen] < 0
        assert is_wait.tolist() == [waits and has for has in has_wait]


def test_sampling_follows_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0]).log_softmax(0).expand(40_000, 3)
    share = torch.bincount(pick(logits, 1.0), minlength=3) / 40_000
    torch.testing.assert_close(share, logits[0].exp(), atol=0.01, rtol=0)
    assert (pick(logits, 0.0) == 0).all()


def test_wrong_configurations_name_the_way_out() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lrpt'"):
        PolicyConfig(rule="lrtp")
    with pytest.raises(UsageError, match="multiple"):
        EncoderConfig(width=10, heads=4)
    with pytest.raises(UsageError, match="no link 'nxt'"):
        GraphNetwork(JOBS, PolicyConfig(EncoderConfig(rivals=("nxt",))))
    with pytest.raises(UsageError, match="negative"):
        PolicyConfig(wait=0.5)
