"""The configuration of a training run: one frozen dataclass a part, filled from YAML and `key=value` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dispatchgym.agents.architecture import PolicyConfig
from dispatchgym.agents.bundle import BUNDLE
from dispatchgym.agents.graph_vec_env import RolloutConfig
from dispatchgym.agents.llm_world import LLMSource
from dispatchgym.agents.packing_world import PackingSource
from dispatchgym.agents.plain_values import build, to_mapping
from dispatchgym.agents.rollout_buffer import Advantage
from dispatchgym.agents.schedules import SHAPES
from dispatchgym.agents.settings import Setting
from dispatchgym.agents.shop_world import InstanceSource
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.llm.graph import SPECS as ENGINE_SPECS
from dispatchgym.envs.packing import shortlist
from dispatchgym.envs.registry import unknown_name

SCHEMA = 1

Graph = Literal["jobs", "ops", "pilot", "repack", "bindings", "engine"]
"""Graphs to train on: three of the job shop, two of packing, one of an LLM engine."""


def is_packing(graph: Graph) -> bool:
    """The graph is one of packing, and `packing` describes its world; else `shop` and `instances` do."""
    return graph in shortlist.SPECS


def is_llm(graph: Graph) -> bool:
    """The graph is that of an LLM engine, and `llm` describes its world."""
    return graph in ENGINE_SPECS


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """How the policy is updated; the names are those of the PPO paper.

    Args:
        learning_rate: highest rate of AdamW.
        schedule: its course, a name in `agents.schedules.SHAPES`.
        warm_up: share of the training until the highest rate is reached.
        epochs: passes over the decisions.
        share: of the decisions, how many each pass uses, drawn anew without replacement: the decisions of an episode
            say much the same, and time of an update goes with their number.
        minibatch: most decisions of a gradient step.
        node_budget: most graph nodes of a gradient step: bounds the memory whatever the shops' sizes. With 3 layers of
            width 128 a step keeps about 11 kB a node, in bf16 6 kB.
        clip: of the probability ratio.
        target_kl: an update stops once its mean divergence from the policy that played is 1.5 times this; 0 for never.
        entropy: weight of the entropy bonus.
        value: weight of the value loss; 0 without a critic ("group" advantages need none), some 0.05 with one: the
            layers are shared, and a large weight makes them serve the critic alone.
        max_grad_norm: gradients are scaled down to this norm.
        weight_decay: of AdamW.
        advantage: "group" relative to the rollouts of the same instance, "clock" to what these earn from the same time
            on, where episodes have a clock, or "gae".
        leader: with "group", what the best rollout of an instance gets on top.
        least_spread: with "group", returns of an instance's rollouts are told apart in units of their spread, but at
            least of this: where little is at stake they count for less.
        gamma, gae_lambda: with "gae".
    """

    learning_rate: float = 4e-4
    schedule: str = "linear"
    warm_up: float = 0.0
    epochs: int = 2
    share: float = 1.0
    minibatch: int = 32_768
    node_budget: int = 1_500_000
    clip: float = 0.2
    target_kl: float = 0.0
    entropy: float = 0.002
    value: float = 0.0
    max_grad_norm: float = 0.5
    weight_decay: float = 0.01
    advantage: Advantage = "group"
    leader: float = 0.0
    least_spread: float = 0.0
    gamma: float = 1.0
    gae_lambda: float = 0.98

    def __post_init__(self) -> None:
        if self.schedule not in SHAPES:
            raise unknown_name("schedule", self.schedule, SHAPES)
        for name in ("learning_rate", "clip", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise UsageError(f"ppo.{name} is {getattr(self, name)}; it must be above 0")
        if self.target_kl < 0:
            raise UsageError(f"ppo.target_kl is {self.target_kl}; it must be at least 0, which never stops an update")
        if not 0.0 < self.share <= 1.0:
            raise UsageError(f"ppo.share is {self.share}; it must be above 0 and at most 1")
        if self.advantage == "gae" and not self.value > 0:
            raise UsageError(f"ppo.value is {self.value}: gae advantages need a critic; try ppo.value=0.05")
        for name in ("epochs", "minibatch", "node_budget"):
            if getattr(self, name) < 1:
                raise UsageError(f"ppo.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class WarmStartConfig:
    """Imitation before the first iteration; see `imitation`.

    Args:
        teacher: "none", or "pilot" for the pilot method, for graphs whose columns the graph `pilot` has too.
        decisions: choices that the teacher judges.
        rounds: the first is played by the teacher, later ones by the network.
        instances: different ones at a time.
        epochs: passes over all choices so far after every round.
        minibatch: choices of a gradient step.
        learning_rate: of AdamW.
        softness: mean durations by which a candidate is worse when it is imitated 1/e times as often as the best.
    """

    teacher: Literal["none", "pilot"] = "none"
    decisions: int = 200_000
    rounds: int = 3
    instances: int = 512
    epochs: int = 4
    minibatch: int = 4096
    learning_rate: float = 1e-3
    softness: float = 0.1

    def __post_init__(self) -> None:
        for name in ("decisions", "rounds", "instances", "epochs", "minibatch"):
            if getattr(self, name) < 1:
                raise UsageError(f"warm_start.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "softness"):
            if not getattr(self, name) > 0:
                raise UsageError(f"warm_start.{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """The fixed set on which the best checkpoint is chosen: generated instances, never a benchmark's.

    Args:
        every: iterations between two evaluations.
        instances: how many, sizes in turn.
        sizes: (jobs, machines), in job shops; default those of the training.
        samples: besides the greedy run, the best of so many sampled ones; 0 for none.
        seed: of the set; training never uses it.
        rules: judged once, for comparison.
        average: over instances: the "interquartile" mean, or the "plain" one where the hard instances are what matters.
    """

    every: int = 10
    instances: int = 50
    sizes: tuple[tuple[int, int], ...] = ()
    samples: int = 0
    seed: int = 1_000_003
    rules: tuple[str, ...] = ("lrpt", "mwkr", "fdd/mwkr")
    average: Literal["interquartile", "plain"] = "interquartile"

    def __post_init__(self) -> None:
        if self.every < 1 or self.instances < 1 or self.samples < 0:
            raise UsageError(
                f"validation.every {self.every}, instances {self.instances}, samples {self.samples}: "
                "the first two must be at least 1, the last at least 0"
            )


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """Who else is told how the run goes; its own files hold everything in any case.

    Args:
        wandb: "offline" writes into the run directory alone, for `wandb sync` later; "online" sends as well and needs
            a key; "disabled" does neither. A key alone changes nothing.
        project: of wandb.
        entity: of wandb, user or team; without one the key's own.
        tensorboard: event files in tensorboard/ of the run directory, by Stable-Baselines3's logger.
        gantt: validation instances whose schedules are kept for report.html; the first of them is drawn for wandb.
        every: evaluations between two such drawings; the last evaluation is always drawn.
    """

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "dispatchgym"
    entity: str | None = None
    tensorboard: bool = False
    gantt: int = 2
    every: int = 10

    def __post_init__(self) -> None:
        if self.gantt < 0 or self.every < 1:
            raise UsageError(
                f"tracking.gantt {self.gantt}, every {self.every}: the first must be at least 0, the second 1"
            )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides a training run.

    Args:
        name: of the run.
        seed: of weights, instances and draws.
        iterations: rollout and update, so many times.
        device: "auto" takes a GPU if there is one.
        threads: of torch on the CPU; more than 1 pays only on a machine that has them to spare.
        precision: "float32"; "tf32": matrix products on a GPU faster and accurate to 3 digits; "bf16": besides, the
            encoder works in bfloat16 while training: half the memory traffic, 2 to 3 digits. Logits, losses and weights
            stay float32, and so does all of the evaluation.
        graph: which observation, and by it which world: "jobs", "ops" and "pilot" are of the job shop, "repack" is of
            clusters of pods, "bindings" of clusters of GPUs, "engine" of an LLM engine.
        start: bundle:NAME or bundle:PATH whose weights and input standardisation the training begins with; its graph,
            policy and setting must be those of the run. None to begin as `policy.rule`.
        ema: per iteration, how much of the averaged weights stays; the average is what is evaluated and exported.
        checkpoint_every: iterations between two checkpoints.
    """

    name: str = "jobshop"
    seed: int = 0
    iterations: int = 200
    device: str = "auto"
    threads: int = 1
    precision: Literal["float32", "tf32", "bf16"] = "tf32"
    graph: Graph = "jobs"
    start: str | None = None
    ema: float = 0.9
    checkpoint_every: int = 10
    shop: ShopConfig = field(default_factory=ShopConfig)
    instances: InstanceSource = field(default_factory=InstanceSource)
    packing: PackingSource = field(default_factory=PackingSource)
    llm: LLMSource = field(default_factory=LLMSource)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.checkpoint_every < 1 or self.threads < 1:
            raise UsageError(
                f"iterations {self.iterations}, checkpoint_every {self.checkpoint_every}, threads {self.threads}: "
                "all must be at least 1"
            )
        if self.warm_start.teacher == "pilot" and self.graph not in ("jobs", "pilot"):
            raise UsageError(
                f"warm_start.teacher is 'pilot', which sees jobs; graph {self.graph!r} cannot follow it: use 'jobs'"
            )
        if not 0.0 <= self.ema < 1.0:
            raise UsageError(f"ema is {self.ema}; it must be a share from 0 up to 1")
        if self.start is not None and not self.start.startswith(BUNDLE):
            raise UsageError(f"start is {self.start!r}; write {BUNDLE}NAME or {BUNDLE}PATH")
        if is_llm(self.graph) and not self.llm.is_simulated and self.rollout.lanes > 1:
            raise UsageError(
                f"rollout.lanes is {self.rollout.lanes}, but llm.executor {self.llm.executor!r} runs one episode at a "
                "time; write rollout.lanes=1"
            )

    @property
    def setting(self) -> Setting:
        """What a policy is trained for, as bundles keep it."""
        if is_llm(self.graph):
            return self.llm.choices
        return self.packing.choices if is_packing(self.graph) else self.shop


def load(path: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration in a YAML file with dotted `key=value` overrides, such as `ppo.entropy=0.01`.

    Raises:
        UsageError: a file that cannot be read, a value of the wrong kind.
        UnknownNameError: a key that does not exist; the message offers the closest ones.
    """
    document: Any = {}
    if path is not None:
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: is not YAML ({error})") from error
        if not isinstance(document, dict):
            raise UsageError(f"{path}: holds {document!r:.80}; a configuration is a mapping of keys")
    document.pop("schema", None)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"override {override!r} has no '='; write key=value, such as ppo.entropy=0.01")
        _put(document, key, _parsed(override, text))
    return from_mapping(document)


def from_mapping(document: Mapping[str, Any]) -> TrainConfig:
    """The configuration of nested plain values; the inverse of `to_mapping`."""
    config: TrainConfig = build(TrainConfig, document, "")
    return config


def dump(config: TrainConfig) -> str:
    """YAML of every value, defaults included."""
    document = {"schema": SCHEMA, **to_mapping(config)}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def describe(document: Mapping[str, Any] | None = None, prefix: str = "") -> list[str]:
    """One line a key: dotted name and default."""
    lines = []
    for name, value in (to_mapping(TrainConfig()) if document is None else document).items():
        if isinstance(value, Mapping):
            lines += describe(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name}={value}")
    return lines


def _parsed(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"override {override!r}: its value is not YAML ({error})") from error


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        document = document.setdefault(name, {})
        if not isinstance(document, dict):
            raise UsageError(f"override {key!r}: {name!r} is a value, not a group of keys")
    document[last] = value
