"""The policy that Stable-Baselines3's PPO trains: a dispatch rule, plus what a graph network adds to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn
from torch.nn import functional

from dispatchgym.agents.architecture import CLOSED, NEVER, STARTING_RULES, WAIT_SCORES, PolicyConfig, column_of
from dispatchgym.agents.encoder import Encoder
from dispatchgym.agents.graph_tensors import GraphTensors, owner
from dispatchgym.envs.api import GraphSpec, UsageError


class Choices(NamedTuple):
    """What the network says about a batch of decisions.

    Attributes:
        logits: padded with a huge negative number, shape (G, most candidates).
        value: expected return from here, shape (G,).
    """

    logits: Tensor
    value: Tensor


class GraphNetwork(nn.Module):
    """Candidates' logits and the value of graphs; no trace of reinforcement learning in it.

    Logit of a candidate: `rule_scale` x the rule's standardised score + a head on (node, context). WAIT, the
    candidate without a node: the best other logit + a head on the context + what the rule makes of it (WAIT_SCORES).
    Both heads end in zeros, so an untrained network is the rule itself.
    """

    def __init__(self, spec: GraphSpec, config: PolicyConfig) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        width = config.encoder.width
        self.encoder = Encoder(spec, config.encoder)
        self.score_node = nn.Linear(width, width)
        self.score_context = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.wait = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.value = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        wait_out = self.wait[-1]
        assert isinstance(wait_out, nn.Linear)
        for weight in (self.score.weight, wait_out.weight):
            nn.init.zeros_(weight)
        nn.init.constant_(wait_out.bias, config.wait)
        self.rule_scale = nn.Parameter(torch.tensor(config.rule_scale if config.rule else 0.0))
        self.rule_column, self.rule_sign = -1, 0
        if config.rule is not None:
            column, self.rule_sign = STARTING_RULES[config.rule]
            names = [f.name for f in spec.node(spec.candidate).features]
            if column not in names:
                raise UsageError(f"rule {config.rule!r} needs column {column!r}, which graph {spec.graph!r} has not")
            self.rule_column = names.index(column)
        lead = WAIT_SCORES.get(config.rule or "")
        self.wait_column = -1 if lead is None else column_of(spec, spec.context, lead)
        if config.cap is not None:
            self.inside = column_of(spec, spec.candidate, "in_shop")
            self.crowd = column_of(spec, spec.context, "in_shop")
            self.log_machines = column_of(spec, spec.context, "log_machines")

    def forward(self, graphs: GraphTensors) -> Choices:
        return self.choices(graphs, *self.encoder(graphs))

    def choices(self, graphs: GraphTensors, nodes: Tensor, context: Tensor) -> Choices:
        """What follows from the encoder's states of the candidates' nodes (C, width) and the contexts (G, width)."""
        candidates = graphs.candidate.shape[0]
        graph = owner(graphs.candidate_ptr, candidates)
        position = torch.arange(candidates, device=graph.device) - graphs.candidate_ptr[graph]
        is_wait = graphs.candidate < 0
        row = graphs.candidate.clamp(min=0)
        hidden = functional.gelu(self.score_node(nodes) + self.score_context(context).index_select(0, graph))
        logit = self.score(hidden).squeeze(-1)
        if self.rule_column >= 0:
            # no mean is subtracted: a shift of all candidates changes nothing
            scale = self.encoder.get_buffer(f"scale_{self.spec.candidate}")[self.rule_column]
            priority = graphs.x[self.spec.candidate][:, self.rule_column][row]
            logit = logit + self.rule_scale * self.rule_sign / scale * priority
        size = graphs.most_of(self.spec.candidate).candidates
        slot = graph * size + position
        shape = (graphs.num_graphs, size)
        wait_slot = is_wait.new_zeros(shape[0] * size).index_copy(0, slot, is_wait).view(shape)
        wait = self.wait(context)
        if self.wait_column >= 0:
            lead = graphs.x[self.spec.context][:, self.wait_column, None]
            wait = wait + self.rule_scale / scale * lead
        if self.config.cap is not None:
            outside = self._outside(graphs, row, graph) & ~is_wait
            has_inside = is_wait.new_zeros(shape[0] * size).index_copy(0, slot, ~is_wait & ~outside)
            has_inside = has_inside.view(shape).any(1, keepdim=True)
            has_wait = wait_slot.any(1, keepdim=True)
            logit = logit - CLOSED * (outside & (has_inside | has_wait).squeeze(1).index_select(0, graph))
            wait = wait + CLOSED * (has_wait & ~has_inside)
        logits = logit.new_full((shape[0] * size,), NEVER)
        logits = logits.index_copy(0, slot, torch.where(is_wait, NEVER, logit)).view(shape)
        best = logits.max(dim=1, keepdim=True).values
        logits = torch.where(wait_slot, best + wait, logits)
        return Choices(logits, self.value(context).squeeze(-1))

    def _outside(self, graphs: GraphTensors, row: Tensor, graph: Tensor) -> Tensor:
        """Candidates that the cap keeps out: jobs outside a shop that is full, bool (candidates,)."""
        assert self.config.cap is not None
        context = graphs.x[self.spec.context]
        machines = torch.expm1(context[:, self.log_machines]).round()
        limit = (self.config.cap * machines + 0.5).floor().clamp(min=1)
        is_full = (context[:, self.crowd] * machines).round() >= limit
        is_new = graphs.x[self.spec.candidate][:, self.inside].index_select(0, row) < 0.5
        return is_new & is_full.index_select(0, graph)


class GraphActorCriticPolicy(BasePolicy):
    """`GraphNetwork` behind the interface that stock `stable_baselines3.PPO` expects.

    Observations are the dictionaries of `GraphVecEnv` (GraphTensors.to_dict plus "active" and "over"), actions
    are positions in the list of candidates. Environments that are over have no graph: they get action 0,
    log-probability 0 and value 0.

    Args:
        spec: the graphs to expect.
        config: the network.
        precision: "bf16" runs the encoder in an autocast to bfloat16; logits, values and losses stay float32.
        optimizer_class, optimizer_kwargs: as in Stable-Baselines3.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        spec: GraphSpec,
        config: PolicyConfig,
        precision: str = "float32",
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observation_space, action_space, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs
        )
        if use_sde:
            raise UsageError("use_sde explores continuous actions; this policy chooses among candidates")
        self.spec = spec
        self.config = config
        self.precision = precision
        self.network = GraphNetwork(spec, config)
        self.optimizer = self.optimizer_class(
            self.network.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]  # the base class's parameters are required, a subclass's not
            **self.optimizer_kwargs,
        )

    def forward(self, obs: Mapping[str, Tensor], deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(actions, values, log-probabilities), each of shape (environments,)."""
        environments, active = obs["over"].shape[0], obs["active"]
        result = (
            torch.zeros(environments, dtype=torch.int64, device=active.device),
            torch.zeros(environments, device=active.device),
            torch.zeros(environments, device=active.device),
        )
        if active.shape[0] == 0:
            return result
        choices = self.choices(GraphTensors.from_dict(obs))
        action = pick(choices.logits, 0.0 if deterministic else 1.0)
        log_prob = torch.log_softmax(choices.logits, 1).gather(1, action[:, None]).squeeze(1)
        for whole, part in zip(result, (action, choices.value, log_prob), strict=True):
            whole[active] = part
        return result

    def evaluate_actions(self, obs: GraphTensors, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(values, log-probabilities, entropies) of stored decisions, each of shape (decisions,)."""
        choices = self.choices(obs)
        log_probs = torch.log_softmax(choices.logits, 1)
        entropy = -(log_probs.exp() * log_probs).sum(1)
        return choices.value, log_probs.gather(1, actions.long().view(-1, 1)).squeeze(1), entropy

    def choices(self, graphs: GraphTensors) -> Choices:
        """What the network says, in the policy's precision."""
        kind = graphs.candidate.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            nodes, context = self.network.encoder(graphs)
        return self.network.choices(graphs, nodes, context)

    def predict_values(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Values, shape (environments, 1)."""
        values = torch.zeros(obs["over"].shape[0], 1, device=obs["over"].device)
        if obs["active"].shape[0]:
            values[obs["active"], 0] = self.choices(GraphTensors.from_dict(obs)).value
        return values

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.forward(observation, deterministic)[0]

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """Ragged dictionaries are always batches."""
        return {key: torch.as_tensor(value, device=self.device) for key, value in observation.items()}, True

    @torch.no_grad()
    def fit_scale(self, graphs: Iterable[GraphTensors]) -> None:
        """Set the input standardisation to the mean and spread of these graphs' columns.

        A column that never varies keeps scale 1.
        """
        sums: dict[str, list[Tensor]] = {}
        for one in graphs:
            for name, x in one.x.items():
                wide = x.double()
                part = [torch.tensor(float(len(x)), device=x.device), wide.sum(0), wide.square().sum(0)]
                sums[name] = [a + b for a, b in zip(sums[name], part, strict=True)] if name in sums else part
        for name in (node.name for node in self.network.encoder.seen):
            count, total, square = sums[name]
            mean = total / count.clamp(min=1)
            spread = (square / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
            self.network.encoder.get_buffer(f"mean_{name}").copy_(mean)
            self.network.encoder.get_buffer(f"scale_{name}").copy_(torch.where(spread > 1e-4, spread, 1.0))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(spec=self.spec, config=self.config, precision=self.precision, lr_schedule=self._dummy_schedule)
        return data


def pick(logits: Tensor, temperature: float) -> Tensor:
    """A candidate a row of logits: the best, ties to the first, at temperature 0; else a draw. Shape (G,)."""
    if temperature == 0.0:
        return logits.argmax(1)
    noise = torch.empty_like(logits).exponential_().log_()  # the Gumbel-max trick: argmax(logit - log(exponential))
    return (logits / temperature - noise).argmax(1)


def count_weights(module: nn.Module) -> int:
    """Trainable numbers in a module."""
    return int(np.sum([p.numel() for p in module.parameters() if p.requires_grad]))
