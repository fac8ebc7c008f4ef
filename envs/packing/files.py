"""Clusters in files: one JSON object an instance, or lists of nodes and pods as CSV. docs/formats.md describes both."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dispatchgym.envs.api import InvalidInstanceError
from dispatchgym.envs.packing import openb
from dispatchgym.envs.packing.instance import (
    FOREVER,
    AntiAffinity,
    Nodes,
    PackingInstance,
    Pods,
    Requirement,
    Spread,
    Taint,
    Toleration,
    Typical,
    Workload,
)

FORMAT = "dispatchgym/cluster"
SCHEMA = 1

_COLUMNS = ("priority", "gpus", "gpu_milli", "workload", "arrival")


def plain(instance: PackingInstance) -> dict[str, Any]:
    """The instance as values that JSON can hold; a lifetime without end is null."""
    nodes, pods, typical = instance.nodes, instance.pods, instance.typical
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "instance": instance.name,
        "resources": list(instance.resources),
        "nodes": {
            "capacity": nodes.capacity.tolist(),
            "max_pods": nodes.max_pods.tolist(),
            "gpus": nodes.gpus.tolist(),
            "models": list(nodes.models),
            "labels": [dict(labels) for labels in nodes.labels],
            "taints": [[asdict(taint) for taint in taints] for taints in nodes.taints],
            "unschedulable": nodes.unschedulable.tolist(),
            "names": list(nodes.names),
        },
        "pods": {
            "request": pods.request.tolist(),
            **{key: getattr(pods, key).tolist() for key in _COLUMNS},
            "lifetime": [None if life == FOREVER else life for life in pods.lifetime.tolist()],
            "names": list(pods.names),
        },
        "workloads": [asdict(workload) for workload in instance.workloads],
        "typical": {
            **{key: getattr(typical, key).tolist() for key in ("cpu", "gpus", "gpu_milli", "share")},
            "models": [list(models) for models in typical.models],
        },
        "digest": instance.digest,
    }


def of_plain(content: dict[str, Any]) -> PackingInstance:
    """What `plain` gives, read back; only `nodes.capacity` and `pods.request` must be there.

    Raises:
        InvalidInstanceError: another format, or an entry that cannot be.
    """
    if (content.get("format"), content.get("schema")) != (FORMAT, SCHEMA):
        raise InvalidInstanceError(f'"format" must be "{FORMAT}" and "schema" {SCHEMA}')
    try:
        pods = dict(content["pods"])
        if "lifetime" in pods:
            pods["lifetime"] = np.array([FOREVER if x is None else x for x in pods["lifetime"]])
        nodes = dict(content["nodes"])
        if "taints" in nodes:
            nodes["taints"] = tuple(tuple(Taint(**t) for t in taints) for taints in nodes["taints"])
        given: dict[str, Any] = {}
        if "workloads" in content:
            given["workloads"] = tuple(_workload(each) for each in content["workloads"])
        if "resources" in content:
            given["resources"] = tuple(content["resources"])
        if "typical" in content:
            one = content["typical"]
            given["typical"] = Typical(
                cpu=np.array(one["cpu"], np.int64),
                gpus=np.array(one["gpus"], np.int32),
                gpu_milli=np.array(one["gpu_milli"], np.int32),
                models=tuple(tuple(models) for models in one["models"]),
                share=np.array(one["share"], np.float64),
            )
        return PackingInstance(content.get("instance", "cluster"), Nodes(**nodes), Pods(**pods), **given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InvalidInstanceError):
            raise
        what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidInstanceError(f"not a cluster: {what}") from error


def read(path: Path) -> PackingInstance:
    """The instance in a JSON file.

    Raises:
        InvalidInstanceError: naming the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInstanceError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInstanceError(f"{path} must hold an object")
    try:
        return of_plain(content)
    except InvalidInstanceError as error:
        raise InvalidInstanceError(f"{path}: {error}") from error


def read_lists(nodes: Path, pods: Path) -> PackingInstance:
    """The nodes of one list and the pods of another (see `openb.read_nodes`, `openb.read_pods`), in order of creation.

    Pods arrive at their creation times, counted from the first, or all at once where the list has none.

    Raises:
        InvalidInstanceError: naming the file and the line.
    """
    listed, workloads = openb.read_pods(pods)
    created = openb.creation_times(pods)
    order = np.argsort(created, kind="stable").tolist()
    name = pods.stem
    return PackingInstance(name, openb.read_nodes(nodes), listed.take(order, arrival=created[order]), workloads)


def _workload(entry: dict[str, Any]) -> Workload:
    def pairs(value: list[list[str]]) -> tuple[tuple[str, str], ...]:
        return tuple((key, text) for key, text in value)

    given = dict(entry)
    for key in ("labels", "selector"):
        if key in given:
            given[key] = pairs(given[key])
    if "models" in given:
        given["models"] = tuple(given["models"])
    if "affinity" in given:
        given["affinity"] = tuple(
            tuple(Requirement(r["key"], r["operator"], tuple(r["values"])) for r in term) for term in given["affinity"]
        )
    if "tolerations" in given:
        given["tolerations"] = tuple(Toleration(**each) for each in given["tolerations"])
    if "anti_affinity" in given:
        given["anti_affinity"] = tuple(AntiAffinity(t["topology"], pairs(t["match"])) for t in given["anti_affinity"])
    if "spread" in given:
        given["spread"] = tuple(Spread(t["topology"], pairs(t["match"]), t["max_skew"]) for t in given["spread"])
    return Workload(**given)
