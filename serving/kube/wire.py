"""What a scheduler extender is asked and answers, as kube-scheduler writes it: Go structs without JSON names.

Source: k8s.io/kube-scheduler, extender/v1/types.go. Pods and nodes inside keep their own spelling; they stay plain
objects here and are read by `convert`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

MOST_PRIORITY = 10
"""Highest score of a node in a HostPriorityList; 0 is the lowest."""


class NodeList(BaseModel):
    """Whole Node objects, as sent when `nodeCacheCapable` is off."""

    items: list[dict[str, Any]] | None = None


class ExtenderArgs(BaseModel):
    """A pod and the nodes left for it: whole, or by name when `nodeCacheCapable` is on."""

    Pod: dict[str, Any]
    Nodes: NodeList | None = None
    NodeNames: list[str] | None = None


class Victims(BaseModel):
    """Pods that kube-scheduler would evict from a node."""

    Pods: list[dict[str, Any]] | None = None
    NumPDBViolations: int = 0


class MetaPod(BaseModel):
    UID: str


class MetaVictims(BaseModel):
    """The same by uid, when `nodeCacheCapable` is on."""

    Pods: list[MetaPod] | None = None
    NumPDBViolations: int = 0


class ExtenderPreemptionArgs(BaseModel):
    """A pod and, by node, whom kube-scheduler would evict for it."""

    Pod: dict[str, Any]
    NodeNameToVictims: dict[str, Victims] | None = None
    NodeNameToMetaVictims: dict[str, MetaVictims] | None = None


class ExtenderBindingArgs(BaseModel):
    """A pod and the node that it shall be bound to."""

    PodName: str = Field(min_length=1, max_length=253)
    PodNamespace: str = Field(min_length=1, max_length=253)
    PodUID: str = Field(max_length=253)
    Node: str = Field(min_length=1, max_length=253)


class PodOnly(BaseModel):
    """A pod to be explained, as in a manifest; ours, kube-scheduler does not send it."""

    Pod: dict[str, Any]


FORMS: tuple[type[BaseModel], ...] = (ExtenderArgs, ExtenderPreemptionArgs, ExtenderBindingArgs, PodOnly)
