"""Checkpoints that appear whole or not at all, and from which a run goes on exactly."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.envs.api import UsageError

KEPT = 2
"""Checkpoints on disk: the latest and the one before."""


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Any]) -> None:
    """Write checkpoint `iteration` under `folder` and point `latest` at it.

    `state` holds tensors, numbers, strings and nested lists and dicts of them: it is read back without pickle's
    freedom to run code.
    """
    name = f"iteration-{iteration:06d}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}-{os.getpid()}"
    with temporary.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / name)
    with atomic_write(folder / "latest") as text:
        text.write(name + "\n")
    for old in sorted(folder.glob("iteration-*.pt"))[:-KEPT]:
        old.unlink()


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The state that `latest` points at, on the CPU.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    try:
        name = (folder / "latest").read_text(encoding="utf-8").strip()
        state: dict[str, Any] = torch.load(folder / name, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: no checkpoint to resume from ({error.strerror}); start without --resume"
        ) from error
    except Exception as error:  # whatever a damaged file makes torch raise
        raise UsageError(
            f"{folder}: the latest checkpoint is damaged ({error}); name the one before in latest"
        ) from error
    return state


def replace_folder(new: Path, path: Path) -> None:
    """Put folder `new` where `path` is; a reader sees the old one or the new one."""
    old = path.with_name(f".{path.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def random_states() -> dict[str, Any]:
    """The states of every global random generator."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (Stable-Baselines3 seeds it)
    return {
        "python": json.dumps(random.getstate()),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """The inverse of `random_states`. GPU generators are restored where there are as many GPUs as there were."""
    version, internal, gauss = json.loads(states["python"])
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def on_device(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors moved to `device`."""
    return {name: value.to(device) for name, value in state.items()}
