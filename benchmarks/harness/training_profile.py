"""What the time of a training iteration goes into: PyTorch's profiler over a piece of rollout and of update."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from stable_baselines3 import PPO
from torch.profiler import ProfilerActivity, profile

from dispatchgym.agents.rollout_buffer import Minibatch, RaggedRolloutBuffer

STEPS = 40  # of a rollout
MINIBATCHES = 8
TOP = 15


def print_profile(name: str, model: PPO) -> None:
    """Tables of the operations that take the device's time; the model has been through an iteration."""
    print(f"\n{name}: {STEPS} steps of a rollout")
    _profiled(lambda: _steps(model), model.device.type)
    print(f"\n{name}: {MINIBATCHES} minibatches of an update")
    _profiled(lambda: _minibatches(model), model.device.type)


def _steps(model: PPO) -> None:
    assert model.env is not None
    obs = model.env.reset()
    for _ in range(STEPS):
        with torch.no_grad():
            action = model.policy(obs)[0]
        obs = model.env.step(action.cpu().numpy())[0]


def _minibatches(model: PPO) -> None:
    buffer = model.rollout_buffer
    assert isinstance(buffer, RaggedRolloutBuffer)
    whole, epochs = buffer.get, model.n_epochs

    def first(batch_size: int | None = None) -> Iterator[Minibatch]:
        return itertools.islice(whole(batch_size), MINIBATCHES)

    buffer.get, model.n_epochs = first, 1  # type: ignore[method-assign, assignment]  # put back below
    try:
        model.train()
    finally:
        buffer.get, model.n_epochs = whole, epochs  # type: ignore[method-assign]  # see above


def _profiled(work: Callable[[], None], device: str) -> None:
    is_cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]

    def waited() -> float:
        if is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    began = waited()
    work()
    plain_s = waited() - began
    with profile(activities=activities) as recorded:
        work()
        waited()
    averages = recorded.key_averages()
    column = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    kernels_s = (
        sum(getattr(event, column) for event in averages if not is_cuda or event.device_type.name == "CUDA") / 1e6
    )
    print(f"{plain_s:.3f} s without the profiler; operations take {kernels_s:.3f} s", end="")
    print(f": the device idles {max(1 - kernels_s / plain_s, 0):.0%} of the time" if is_cuda else "")
    print(averages.table(sort_by=column, row_limit=TOP, max_name_column_width=70))
