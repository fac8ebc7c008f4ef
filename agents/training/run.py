"""One training run: stock PPO, and a callback that averages, judges, logs and saves between iterations."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from dispatchgym.agents import bundle
from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.agents.graph_tensors import GraphTensors
from dispatchgym.agents.graph_vec_env import GraphVecEnv
from dispatchgym.agents.plain_values import to_mapping
from dispatchgym.agents.policy import GraphActorCriticPolicy, GraphNetwork
from dispatchgym.agents.rollout_buffer import RaggedRolloutBuffer
from dispatchgym.agents.schedules import Schedule
from dispatchgym.agents.shop_world import Pictured, ShopExam
from dispatchgym.agents.torch_network import TorchNetwork
from dispatchgym.agents.training.checkpoint import (
    load_checkpoint,
    on_device,
    random_states,
    replace_folder,
    restore_random_states,
    save_checkpoint,
)
from dispatchgym.agents.training.config import TrainConfig, dump
from dispatchgym.agents.training.evaluations import GREEDY
from dispatchgym.agents.training.imitation import imitate
from dispatchgym.agents.training.pictures import write_pictures
from dispatchgym.agents.training.run_report import write_run_report
from dispatchgym.agents.training.tracking import Tracker, payload, tensorboard_logger
from dispatchgym.agents.training.validation import Validation
from dispatchgym.agents.training.world import world_of
from dispatchgym.envs.api import DispatchGymError, UsageError

Report = Callable[[int, Mapping[str, float], Mapping[str, float]], None]
"""Called after every iteration with its number, its metrics and its timings (none for those of an earlier session)."""

SCALE_INSTANCES = 20
"""Instances that the starting rule plays to fit the input standardisation."""


class TrainingDivergedError(DispatchGymError, ArithmeticError):
    """The loss or a weight is no longer a number."""


def build(config: TrainConfig) -> PPO:
    """Stock PPO around our environment, buffer and policy; untrained, so it plays as its starting rule."""
    torch.set_num_threads(config.threads)
    best_device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(best_device if config.device == "auto" else config.device)
    torch.backends.cuda.matmul.allow_tf32 = config.precision != "float32"
    env = GraphVecEnv(world_of(config), config.rollout, seed=config.seed, device=device)
    ppo = config.ppo
    model = PPO(
        GraphActorCriticPolicy,  # type: ignore[arg-type]  # PPO needs its three methods, not its base class
        env,
        learning_rate=Schedule(ppo.learning_rate, ppo.schedule, ppo.warm_up),
        n_steps=env.length,
        batch_size=env.num_envs * env.length,  # no limit of its own: the buffer cuts minibatches
        n_epochs=ppo.epochs,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip,
        target_kl=ppo.target_kl or None,
        normalize_advantage=False,  # the buffer does, over the whole rollout
        ent_coef=ppo.entropy,
        vf_coef=ppo.value,
        max_grad_norm=ppo.max_grad_norm,
        rollout_buffer_class=RaggedRolloutBuffer,
        rollout_buffer_kwargs={
            "spec": env.world.spec,
            "advantage": ppo.advantage,
            "group": config.rollout.rollouts,
            "leader": ppo.leader,
            "least_spread": ppo.least_spread,
            "minibatch": ppo.minibatch,
            "node_budget": ppo.node_budget,
            "share": ppo.share,
        },
        policy_kwargs={
            "spec": env.world.spec,
            "config": config.policy,
            "precision": config.precision,
            "optimizer_kwargs": {"weight_decay": ppo.weight_decay, "fused": True},
        },
        seed=config.seed,
        device=device,
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def fit_scale(policy: GraphActorCriticPolicy, config: TrainConfig) -> None:
    """Fit the input standardisation to what the starting rule meets on a few instances of the source."""
    world = world_of(config)
    runs = world.runs(SCALE_INSTANCES, 1, 1, policy.device)
    world.start(runs, (config.seed, 2))
    seen = []
    choices = np.zeros(runs.num_envs, np.int64)
    while not runs.over.all():
        obs = runs.observe()
        seen.append(GraphTensors.from_dict(obs))
        with torch.no_grad():
            action = policy(obs)[0]
        choices[:] = action.cpu().numpy()
        runs.step(choices)
    policy.fit_scale(seen)


def start_from(policy: GraphActorCriticPolicy, config: TrainConfig, name: str) -> None:
    """Give the policy the weights and the input standardisation of a bundle; a critic begins anew.

    Raises:
        UsageError: it is for other graphs, of another architecture or for another setting.
    """
    loaded = bundle.load(bundle.find(name.removeprefix(bundle.BUNDLE)))
    runtime = loaded.runtime
    assert isinstance(runtime, TorchNetwork)
    for part, own, other in (
        ("graph", config.graph, runtime.spec.graph),
        ("policy", config.policy, runtime.config),
        ("setting", config.setting, loaded.setting),
    ):
        if own != other:
            raise UsageError(
                f"start {name!r}: its {part} is not the run's; use the recipe that it was trained by, which its "
                f"{bundle.MANIFEST} has as training.config"
            )
    policy.network.load_state_dict(runtime.network.state_dict())


class RunCallback(BaseCallback):
    """What happens between two iterations; everything that a checkpoint must hold is an attribute here."""

    def __init__(self, config: TrainConfig, folder: Path, report: Report, tracker: Tracker) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.report = report
        self.tracker = tracker
        self.validation = Validation(config)
        self.iteration = 0
        self.best = math.inf
        self._rules: dict[str, float] = {}  # what they reach, until a row of metrics.jsonl says so
        self._is_new = True
        self.average: GraphNetwork  # moving average of the weights
        self._rollout: dict[str, float] = {}  # of the rollout that has not been learned from yet; then empty
        self._clock = time.perf_counter()
        self._rollout_s = 0.0

    def _init_callback(self) -> None:
        self.average = copy.deepcopy(self._policy.network).requires_grad_(False)

    @property
    def pictured(self) -> list[Pictured]:
        """Validation instances with their schedules, in job shops."""
        exam = self.validation.exam
        return exam.pictured if isinstance(exam, ShopExam) else []

    @property
    def _policy(self) -> GraphActorCriticPolicy:
        policy = self.model.policy
        assert isinstance(policy, GraphActorCriticPolicy)
        return policy

    @property
    def _env(self) -> GraphVecEnv:
        env = self.model.env
        assert isinstance(env, GraphVecEnv)
        return env

    def restore(self, state: dict[str, Any]) -> None:
        """Put model, environment, counters and random generators where a checkpoint was taken."""
        device = self.model.device
        self._policy.load_state_dict(on_device(state["policy"], device))
        self._policy.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(on_device(state["average"], device))
        self.iteration = state["iteration"]
        self._is_new = False
        rules = self.validation.rules()
        if state["validation"] == self.validation.exam.digest:
            self.best = state["best"]
        else:  # another validation set has other figures: the best on it is still to be found
            self._rules = rules
        # counted in the present rollout's size, which --resume may have changed: schedules follow iterations
        self.model.num_timesteps = self.iteration * self._env.num_envs * self._env.length
        self.model._n_updates = state["num_updates"]
        self._env.rounds = state["rounds"]
        restore_random_states(state["random"])

    def _on_training_start(self) -> None:
        if self._is_new:
            self._rules = self.validation.rules()
            begin = time.perf_counter()
            row = {"iteration": 0, **self._judge()}
            self._finish_iteration(row, {"evaluation_s": time.perf_counter() - begin}, is_checkpoint=True)
        self._clock = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._rollout:
            self._after_update()

    def _on_rollout_end(self) -> None:
        now = time.perf_counter()
        self._rollout_s, self._clock = now - self._clock, now
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]  # on-policy algorithms have one
        returns = buffer.rewards.sum(axis=0)
        by_instance = returns.reshape(-1, self.config.rollout.rollouts)
        self._rollout = {
            "rollout/return": float(returns.mean()),
            "rollout/spread": float(by_instance.std(axis=1).mean()),
            "rollout/best": float(by_instance.max(axis=1).mean()),
            "rollout/decisions": float(buffer.num_decisions),
        }

    def _on_training_end(self) -> None:
        if self._rollout:
            self._after_update()

    def _after_update(self) -> None:
        self._check_numbers()
        self.iteration += 1
        now = time.perf_counter()
        update_s = now - self._clock
        self._average_weights()
        row: dict[str, Any] = {"iteration": self.iteration, **self._rollout}
        row |= {name: float(value) for name, value in self.logger.name_to_value.items() if name.startswith("train/")}
        row["train/rule_scale"] = self._policy.network.rule_scale.item()
        is_last = self.iteration == self.config.iterations
        if self.iteration % self.config.validation.every == 0 or is_last:
            row |= self._judge(row)
        timing = {
            "decisions_per_s": self._rollout["rollout/decisions"] / (self._rollout_s + update_s),
            "rollout_s": self._rollout_s,
            "update_s": update_s,
            "evaluation_s": time.perf_counter() - now,
            "gpu_memory_mib": self._gpu_memory_mib(),
        }
        self._rollout = {}
        self._finish_iteration(row, timing, self.iteration % self.config.checkpoint_every == 0 or is_last)
        self._clock = time.perf_counter()

    def _gpu_memory_mib(self) -> float:
        """The most that was in use so far, 0 without a GPU."""
        device = self.model.device
        return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0

    def _check_numbers(self) -> None:
        loss = self.logger.name_to_value.get("train/loss", 0.0)
        finite = torch.stack([p.isfinite().all() for p in self._policy.network.parameters()]).all()
        if not (math.isfinite(float(loss)) and bool(finite)):
            raise TrainingDivergedError(
                f"training diverged in iteration {self.iteration + 1} (loss {loss}); the last good checkpoint is in "
                f"{self.folder / 'checkpoints'}; lower ppo.learning_rate (now {self.config.ppo.learning_rate:g}) "
                "or ppo.max_grad_norm and resume"
            )

    def _average_weights(self) -> None:
        # The average of the first iterations is the plain mean, so that the start is soon forgotten.
        keep = min(self.config.ema, self.iteration / (self.iteration + 1))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self._policy.network.parameters(), strict=True):
                mean.lerp_(new, 1.0 - keep)

    def _judge(self, row: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Evaluate, and keep the weights and their schedules if they are the best so far."""
        found = {**self._rules, **self.validation.judge(self.average)}
        self._rules = {}
        if found[GREEDY] < self.best:
            self.best = found[GREEDY]
            about = {"iteration": self.iteration, **(row or {}), **found, "config": to_mapping(self.config)}
            save_network(self.average, self.folder / "best", about)
            write_pictures(self.folder / "pictures.json", self.config.shop.variant, self.pictured, self.iteration)
        return found

    def _finish_iteration(self, row: dict[str, Any], timing: dict[str, float], is_checkpoint: bool) -> None:
        """Write down what was found, save, and only then tell whoever listens."""
        rounded = {name: round(value, 4) for name, value in timing.items()}
        for name, line in (("metrics", row), ("timing", {"iteration": self.iteration, **rounded})):
            with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if is_checkpoint:
            self._save()
            write_run_report(self.folder)
        self.report(self.iteration, row, timing)
        self.tracker.log(row, timing, self.pictured)
        if self.config.tracking.tensorboard:
            for name, value in payload(row, timing, self.tracker.evaluations).items():
                self.logger.record(name, value)
            self.logger.dump(self.iteration)

    def _save(self) -> None:
        state = {
            "policy": self._policy.state_dict(),
            "optimizer": self._policy.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "iteration": self.iteration,
            "best": self.best,
            "validation": self.validation.exam.digest,
            "num_updates": getattr(self.model, "_n_updates", 0),
            "rounds": self._env.rounds,
            "random": random_states(),
        }
        save_checkpoint(self.folder / "checkpoints", self.iteration, state)


def save_network(network: GraphNetwork, folder: Path, about: dict[str, Any]) -> None:
    """Write weights.safetensors and about.json into `folder`, replacing what is there at once."""
    new = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, str(new / "weights.safetensors"))
    (new / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    replace_folder(new, folder)


def train(config: TrainConfig, folder: Path, report: Report, resume: bool = False) -> RunCallback:
    """Train in a run directory, from the start or from its latest checkpoint.

    Raises:
        TrainingDivergedError: the loss is no longer a number; checkpoints up to then are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.resolved.yaml") as file:
        file.write(dump(config))
    model = build(config)
    assert isinstance(model.policy, GraphActorCriticPolicy)
    if config.tracking.tensorboard:
        model.set_logger(tensorboard_logger(folder))
    state = load_checkpoint(folder / "checkpoints") if resume else {}
    tracker = Tracker(config, folder)
    callback = RunCallback(config, folder, report, tracker)
    total = config.iterations * model.n_envs * model.n_steps
    outcome = "interrupted"
    try:
        if resume:
            callback.init_callback(model)
            callback.restore(state)
            _forget_rows_after(folder / "timing.jsonl", math.inf)
            for row in _forget_rows_after(folder / "metrics.jsonl", callback.iteration):
                tracker.remember(row)
                report(row["iteration"], row, {})
        else:
            for name in ("metrics.jsonl", "timing.jsonl", "imitation.jsonl"):
                (folder / name).unlink(missing_ok=True)
            if config.start is None:
                fit_scale(model.policy, config)
            else:
                start_from(model.policy, config, config.start)
            if config.warm_start.teacher != "none":
                imitate(model.policy, config, folder / "imitation.jsonl")
        if callback.iteration < config.iterations:
            left = total - model.num_timesteps
            model.learn(left, callback=callback, log_interval=None, reset_num_timesteps=not resume)
        outcome = "finished"
    except Exception as error:
        outcome = str(error) if isinstance(error, DispatchGymError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        write_run_report(folder, outcome)
        tracker.finish(outcome == "finished")
    return callback


def _forget_rows_after(path: Path, iteration: float) -> list[dict[str, Any]]:
    """Drop rows written after the checkpoint, the last one possibly cut short; returns those that stay."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("\n") or json.loads(line)["iteration"] > iteration:
            break
        kept.append(line)
    with atomic_write(path) as file:
        file.writelines(kept)
    return [json.loads(line) for line in kept]
