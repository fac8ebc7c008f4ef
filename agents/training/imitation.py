"""Warm start: before any reinforcement learning the network learns to choose as a slow teacher does.

The teacher is the pilot method (`envs.jobshop.pilot`): it tries every candidate to the end under a few rules. Whoever
plays, the teacher says of every choice how much worse than the best each candidate would have turned out. The first
round is played by the teacher, the later ones by the network itself, so that it learns what to do where its own
mistakes lead (Ross, Gordon and Bagnell, A reduction of imitation learning, AISTATS 2011).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from dispatchgym.agents.graph_tensors import GraphTensors, concatenate, cuts, select
from dispatchgym.agents.playing import behind_best, shown_to
from dispatchgym.agents.policy import GraphActorCriticPolicy, pick
from dispatchgym.agents.rollout_buffer import minibatch_sizes
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.agents.training.config import TrainConfig
from dispatchgym.envs.jobshop.graph import PILOT


def imitate(policy: GraphActorCriticPolicy, config: TrainConfig, log: Path) -> None:
    """Teach the policy; `config.warm_start` says how. Its critic learns nothing here.

    Writes a line an epoch into `log`: loss, and agreement, the share of choices in which the network's favourite is
    one of the teacher's.
    """
    chosen = config.warm_start
    optimizer = torch.optim.AdamW(policy.network.parameters(), chosen.learning_rate, weight_decay=0.0)
    seen: list[GraphTensors] = []
    steps = 0
    for round_number in range(chosen.rounds):
        seen += _play(policy, config, round_number)
        lessons = concatenate(PILOT, seen)
        seen = [lessons]
        for epoch in range(chosen.epochs):
            losses, agreed, count = [], 0.0, 0
            nodes = lessons.nodes_per_graph()
            order = torch.randperm(len(nodes), device=nodes.device)
            sizes = minibatch_sizes(nodes[order], chosen.minibatch, config.ppo.node_budget)
            for index, cut in zip(torch.split(order, sizes), cuts(PILOT, lessons, order, sizes), strict=True):
                lesson = select(PILOT, lessons, index, cut)
                behind = behind_best(lesson)
                logits = policy.choices(shown_to(policy.spec, lesson)).logits
                wanted = (-behind / chosen.softness).softmax(1)
                loss = -(wanted * logits.log_softmax(1)).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(policy.network.parameters(), config.ppo.max_grad_norm)
                optimizer.step()
                losses.append(loss.detach())
                with torch.no_grad():
                    agreed += float((behind.gather(1, logits.argmax(1, keepdim=True)) <= 0).sum())
                count += len(index)
                steps += 1
            row = {
                "round": round_number + 1,
                "epoch": epoch + 1,
                "loss": torch.stack(losses).mean().item(),
                "agreement": agreed / count,
                "decisions": len(nodes),
                "updates": steps,
            }
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


@torch.no_grad()
def _play(policy: GraphActorCriticPolicy, config: TrainConfig, round_number: int) -> list[GraphTensors]:
    """At least `decisions` / `rounds` choices on fresh instances, with the teacher's columns."""
    chosen = config.warm_start
    parts: list[GraphTensors] = []
    wanted, draw = chosen.decisions // chosen.rounds, 0
    while wanted > 0:
        seed = (config.seed, 3, round_number, draw)
        instances, scenarios = config.instances.draw(chosen.instances, seed, config.shop)
        runs = ShopRuns.of(instances, config.shop, PILOT.graph, 1, scenarios, config.rollout.lanes, policy.device)
        choices = np.zeros(runs.num_envs, np.int64)
        while wanted > 0 and not runs.over.all():
            obs = runs.observe()
            graphs = GraphTensors.from_dict(obs)
            if round_number == 0:
                action = pick(-behind_best(graphs) / chosen.softness, 1.0)
            else:
                action = pick(policy.choices(shown_to(policy.spec, graphs)).logits, 1.0)
            choices[obs["active"].cpu().numpy()] = action.cpu().numpy()
            runs.step(choices)
            parts.append(graphs)
            wanted -= graphs.num_graphs
        draw += 1
    return parts
