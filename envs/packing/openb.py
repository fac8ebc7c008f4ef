"""The openb GPU cluster (Alibaba 2023): readers of its lists, and the arrival protocol of the FGD paper.

Source: Weng et al., Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent,
USENIX ATC 2023. The lists are data of that publication; DISPATCHGYM_DATA names the folder they lie in.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError, UsageError
from dispatchgym.envs.packing.instance import FOREVER, WHOLE_GPU, Nodes, PackingInstance, Pods, Typical, Workload
from dispatchgym.envs.packing.log import Log
from dispatchgym.envs.packing.state import BIND, KIND_COLUMN, POD_COLUMN
from dispatchgym.envs.registry import unknown_name

FAMILY = "openb"
SOURCE = "Weng et al. (2023)"
LICENCE = "Apache-2.0 (hkust-adsl/kubernetes-scheduler-simulator)"

WORKLOADS = ("default", "cpu250", "gpushare100", "gpuspec33", "multigpu50")
"""The pod lists that come with the data."""

SEEDS = tuple(range(42, 52))
"""Of the published runs."""

RATIO = 1.3
"""Arrived GPU demand over the cluster's GPUs, of the published runs."""

LIFETIMES_SHARE = 0.1
"""Of the cluster's nodes, where pods leave: the list would not fill all of them."""

LIFETIMES_SKIPPED = 0.1
"""Of the pods, where pods leave: the first created, spread over the months before all others."""

LIFETIMES_LOAD = 1.2
"""GPUs asked for at a time over GPUs, where pods leave."""

MAX_PODS = 1001
"""Pods of a node in the published runs."""


def data_folder() -> Path:
    """The folder with the lists.

    Raises:
        UsageError: DISPATCHGYM_DATA does not name one.
    """
    named = os.environ.get("DISPATCHGYM_DATA")
    folder = Path(named or ".") / "kubernetes"
    if not named or not folder.is_dir():
        raise UsageError(
            f"DISPATCHGYM_DATA is {named!r}; it must name a folder with the openb lists under kubernetes/. "
            "Without the data, use the synthetic twin: suites packing/openb-twin, packing/twin-lifetimes"
        )
    return folder


def read_nodes(file: Path, max_pods: int = MAX_PODS) -> Nodes:
    """The nodes of a list with columns sn, cpu_milli, memory_mib; optionally gpu, model.

    Raises:
        InvalidInstanceError: naming the file and the line.
    """
    columns = _columns(file, {"sn": str, "cpu_milli": int, "memory_mib": int}, {"gpu": int, "model": str})
    count = len(columns["sn"])
    gpus = np.array(columns["gpu"] or [0] * count, np.int32)
    models = columns["model"] or [""] * count
    return Nodes(
        np.column_stack([columns["cpu_milli"], columns["memory_mib"]]),
        max_pods=np.full(len(gpus), max_pods, np.int32),
        gpus=gpus,
        models=tuple(model if has else "" for model, has in zip(models, gpus, strict=True)),
        names=tuple(columns["sn"]),
    )


def read_pods(file: Path) -> tuple[Pods, tuple[Workload, ...]]:
    """The pods of a list in the order of the file, all arriving at time 0, with lifetimes where the list has them.

    Columns: name, cpu_milli, memory_mib; optionally num_gpu and gpu_milli, gpu_spec, priority, creation_time and
    deletion_time.
    A workload is a set of allowed GPU models.

    Raises:
        InvalidInstanceError: naming the file and the line.
    """
    whole = dict.fromkeys(("num_gpu", "gpu_milli", "priority", "creation_time", "deletion_time"), int)
    columns = _columns(file, {"name": str, "cpu_milli": int, "memory_mib": int}, {**whole, "gpu_spec": str})
    n = len(columns["name"])
    gpus = np.array(columns["num_gpu"] or [0] * n, np.int32)
    models = [tuple(m for m in spec.split("|") if m) for spec in columns["gpu_spec"] or [""] * n]
    known = sorted({(), *models})
    lifetime = np.zeros(0, np.int64)
    if columns["deletion_time"] and columns["creation_time"]:
        lifetime = np.maximum(1, np.array(columns["deletion_time"]) - np.array(columns["creation_time"]))
    pods = Pods(
        np.column_stack([columns["cpu_milli"], columns["memory_mib"]]),
        gpus=gpus,
        priority=np.array(columns["priority"], np.int32),
        gpu_milli=np.where(gpus > 0, columns["gpu_milli"] or WHOLE_GPU, 0).astype(np.int32),
        workload=np.array([known.index(m) for m in models], np.int32),
        lifetime=lifetime,
        names=tuple(columns["name"]),
    )
    return pods, tuple(Workload("|".join(m) or "any model", models=m) for m in known)


def creation_times(file: Path) -> npt.NDArray[np.int64]:
    """When the pods of a list were created, seconds since the first, in the order of the file; else all 0."""
    columns = _columns(file, {"name": str}, {"creation_time": int})
    times = np.array(columns["creation_time"] or [0] * len(columns["name"]), np.int64)
    since: npt.NDArray[np.int64] = times - times.min()
    return since


def sizes() -> dict[str, tuple[str, str, str, str]]:
    """Nodes, pods, GPUs and GPUs asked for of every pod list, as text; "-" where the data are not there."""
    try:
        folder = data_folder()
    except UsageError:
        return dict.fromkeys(WORKLOADS, ("-", "-", "-", "-"))
    nodes = read_nodes(folder / "openb_node_list_gpu_node.csv")
    found = {}
    for workload in WORKLOADS:
        pods, _ = read_pods(folder / f"openb_pod_list_{workload}.csv")
        asked = float((pods.gpus.astype(np.int64) * pods.gpu_milli).sum()) / WHOLE_GPU
        found[workload] = str(len(nodes)), str(len(pods)), str(int(nodes.gpus.sum())), f"{asked:.1f}"
    return found


def load(workload: str = "default", seed: int = 42, ratio: float = RATIO) -> PackingInstance:
    """The published experiment: the 1,213 GPU nodes, and pods of a list until their GPU demand is `ratio`.

    Raises:
        UnknownNameError: no such list. UsageError: the data are not there.
    """
    if workload not in WORKLOADS:
        raise unknown_name("openb workload", workload, WORKLOADS)
    folder = data_folder()
    nodes = read_nodes(folder / "openb_node_list_gpu_node.csv")
    pods, workloads = read_pods(folder / f"openb_pod_list_{workload}.csv")
    return arrivals(nodes, pods, workloads, seed, ratio, f"openb-{workload}-seed{seed}")


def arrivals(
    nodes: Nodes, pods: Pods, workloads: tuple[Workload, ...], seed: int, ratio: float = RATIO, name: str = "openb"
) -> PackingInstance:
    """All pods in random order, then random ones of them again, until the next would ask for more than `ratio` GPUs.

    If the list already asks for more, random pods are taken out instead. Pods arrive one after another at times
    0, 1, 2, ... and stay; what fits nowhere is dropped. The nodes come in random order too: rules give ties to the
    first, and in the order of the list, where like nodes lie together, some of them do a point worse. Typical pods
    are those of the list. The draws are ours, not the published program's: only means over seeds compare.
    """
    if not ratio > 0:
        raise UsageError(f"ratio is {ratio}; it must be positive")
    rng = np.random.default_rng(seed)
    demand = pods.gpus.astype(np.int64) * pods.gpu_milli
    if not demand.any():
        raise UsageError("no pod of the list asks for a GPU, so their demand never reaches the ratio")
    target = ratio * WHOLE_GPU * int(nodes.gpus.sum())
    order = rng.permutation(len(pods)).tolist()
    asked = int(demand.sum())
    while asked > target:
        asked -= int(demand[order.pop(int(rng.integers(len(order))))])
    if not order:
        raise UsageError(f"ratio {ratio} leaves none of the pods; raise it")
    if len(order) == len(pods):
        while True:
            p = int(rng.integers(len(pods)))
            if asked + int(pods.gpu_milli[p]) > target:
                break
            asked += int(demand[p])
            order.append(p)
    arriving = pods.take(
        order,
        arrival=np.arange(len(order)),
        lifetime=np.full(len(order), FOREVER),
        names=tuple(f"{pods.names[p]}-{at}" for at, p in enumerate(order)),
    )
    mixed = nodes.take(rng.permutation(len(nodes)).tolist())
    return PackingInstance(name, mixed, arriving, workloads, typical=Typical.of(pods, workloads))


def over_time(
    nodes: Nodes,
    pods: Pods,
    workloads: tuple[Workload, ...],
    created: npt.NDArray[np.int64],
    seed: int,
    share: float = LIFETIMES_SHARE,
    load: float = LIFETIMES_LOAD,
    name: str = "openb-lifetimes",
) -> PackingInstance:
    """The pods of a list in order of creation, with their lifetimes, on a random `share` of the nodes.

    The published list asks for 0.3 % of its cluster on average, so the time between arrivals is shortened by one
    factor: such that, while pods arrive, those that have and would not have left ask for `load` times the GPUs there
    are, on average. Lifetimes are kept. What fits nowhere waits. The first tenth of the pods is left out. Typical
    pods are those of the list.

    Raises:
        UsageError: a share or a load that cannot be.
    """
    if not 0 < share <= 1 or not load > 0:
        raise UsageError(f"share {share} must be above 0 and at most 1, and load {load} above 0")
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(nodes))[: max(1, round(share * len(nodes)))]
    chosen = nodes.take(some.tolist())
    order = np.argsort(created, kind="stable")[int(LIFETIMES_SKIPPED * len(pods)) :]
    times, life = created[order].astype(np.float64), pods.lifetime[order].astype(np.float64)
    times -= times[0]
    gpus = (pods.gpus.astype(np.int64) * pods.gpu_milli)[order] / WHOLE_GPU
    wanted, span = load * float(chosen.gpus.sum()), max(1.0, float(times[-1]))

    def asked(shorter: float) -> float:
        end = span / shorter
        return float((gpus * np.minimum(life, end - times / shorter)).sum()) / end

    low, high = 1.0, span
    if asked(high) < wanted:
        raise UsageError(
            f"the list asks for {asked(high):.0f} GPUs at most, not for {wanted:.0f}; take a smaller share"
        )
    while high / low > 1.001:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if asked(middle) < wanted else (low, middle)
    arriving = pods.take(order.tolist(), arrival=np.round(times / high).astype(np.int64))
    return PackingInstance(name, chosen, arriving, workloads, typical=Typical.of(pods, workloads))


def load_over_time(workload: str = "default", seed: int = 42) -> PackingInstance:
    """`over_time` on the published lists.

    Raises:
        UnknownNameError: no such list. UsageError: the data are not there.
    """
    if workload not in WORKLOADS:
        raise unknown_name("openb workload", workload, WORKLOADS)
    folder = data_folder()
    file = folder / f"openb_pod_list_{workload}.csv"
    pods, workloads = read_pods(file)
    nodes = read_nodes(folder / "openb_node_list_gpu_node.csv")
    name = f"openb-lifetimes-{workload}-seed{seed}"
    return over_time(nodes, pods, workloads, creation_times(file), seed, name=name)


def allocation_curve(instance: PackingInstance, log: Log, arrived_pct: Sequence[int]) -> list[float]:
    """GPUs allocated, per cent of the cluster's, when the pods that arrived ask for so many per cent of them.

    As published: the mean over the arrivals whose cumulated demand rounds to that per cent; nan where there is none.
    For runs of `arrivals` without evictions, where event times are arrival numbers.
    """
    demand = instance.pods.gpus.astype(np.int64) * instance.pods.gpu_milli
    gained = np.zeros(len(demand), np.int64)
    bound = log.rows[log.rows[:, KIND_COLUMN] == BIND, POD_COLUMN]
    gained[bound] = demand[bound]
    percent = 100.0 / (WHOLE_GPU * int(instance.nodes.gpus.sum()))
    arrived, allocated = np.cumsum(demand) * percent, np.cumsum(gained) * percent
    return [
        float(allocated[at].mean()) if at.any() else float("nan")
        for at in (np.round(arrived) == pct for pct in arrived_pct)
    ]


def _columns(
    file: Path,
    needed: dict[str, Callable[[str], object]],
    optional: dict[str, Callable[[str], object]] | None = None,
) -> dict[str, list[Any]]:
    """Columns of a CSV file by name; an optional one that is not there is an empty list."""
    with file.open(newline="", encoding="utf-8") as lines:
        table = csv.DictReader(lines)
        header = table.fieldnames or []
        missing = [key for key in needed if key not in header]
        if missing:
            raise InvalidInstanceError(f"{file}: there is no column {missing[0]!r}; it has {', '.join(header)}")
        kinds = {**needed, **{key: kind for key, kind in (optional or {}).items() if key in header}}
        columns: dict[str, list[Any]] = {key: [] for key in (*needed, *(optional or {}))}
        for number, row in enumerate(table, 2):
            for key, kind in kinds.items():
                try:
                    columns[key].append(kind(row[key] or ""))
                except (TypeError, ValueError) as error:
                    raise InvalidInstanceError(
                        f"{file}, line {number}: {key} is {row[key]!r}; it must be a whole number"
                    ) from error
    if not columns[next(iter(needed))]:
        raise InvalidInstanceError(f"{file} has no rows")
    return columns
